"""Where the vector of a merged task comes from when it is needed again."""

from __future__ import annotations

from hf_clamu.errors import DigestMismatchError
from hf_clamu.exact import TaskVector
from hf_clamu.merging.state import TaskRecord
from hf_clamu.training import TaskTrainer

__all__ = ["REBUILD", "merged_vector"]

REBUILD = "rebuild from the retained tasks (on_mismatch='rebuild', --on-mismatch rebuild), which is always exact."


def merged_vector(trainer: TaskTrainer, task_id: str, record: TaskRecord) -> TaskVector:
    """Return the integer vector that was merged for a task.

    It comes from its local model if that is at hand, else from the archive if there is one, else by retraining.

    Args:
        trainer (`TaskTrainer`): live model and data, local models, or an archive.
        task_id (`str`): the merged task.
        record (`TaskRecord`): what the ledger has of it.

    Raises:
        ArchiveError, DigestMismatchError: if other bits come than those that were merged.
    """
    if trainer.archive is not None and not trainer.is_local(task_id):
        return trainer.archive.read(task_id, record.vector_digest, record.bounds, trainer.workspace.shapes)
    vector = trainer.vector(task_id)
    if trainer.is_local(task_id) and vector.digest != record.vector_digest:
        raise DigestMismatchError(
            f"The checkpoint that is given for task {task_id!r} is not what was merged: its task vector has SHA-256 "
            f"{vector.digest[:16]}…, the ledger says {record.vector_digest[:16]}…. Nothing was changed. Give the "
            f"folder as it was at the merge, or {REBUILD}"
        )
    if vector.digest != record.vector_digest or vector.bounds != record.bounds:
        raise DigestMismatchError(
            f"Retraining task {task_id!r} gave other bits than the merge did: SHA-256 {vector.digest[:16]}…, the "
            f"ledger says {record.vector_digest[:16]}…. Nothing was changed. The environment differs in something "
            f"that its fingerprint does not show: {REBUILD}"
        )
    return vector
