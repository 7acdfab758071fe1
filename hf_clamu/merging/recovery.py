"""The vectors of merged tasks, recovered: to subtract them, or to sum them per cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.errors import DigestMismatchError
from hf_clamu.exact import DeltaAccumulator, TaskVector
from hf_clamu.merging.requirements import REBUILD, check_data
from hf_clamu.merging.state import MergedState, PartialState, TaskRecord
from hf_clamu.merging.summation import sum_vectors
from hf_clamu.training import TaskTrainer

__all__ = ["merged_vector", "subtract_tasks"]


def merged_vector(trainer: TaskTrainer, task_id: str, record: TaskRecord) -> TaskVector:
    """Return the integer vector that was merged for a task.

    It is read from its local model if that was given, otherwise from the archive if there is one; otherwise the task
    is retrained.

    Args:
        trainer (`TaskTrainer`): live model and data, local models, or an archive.
        task_id (`str`): the merged task.
        record (`TaskRecord`): what the ledger has of it.

    Raises:
        ArchiveError, DigestMismatchError: if the bits are not those that were merged.
    """
    if trainer.archive is not None and not trainer.is_local(task_id):
        shapes, least_bits = trainer.workspace.shapes, trainer.codec.least_bits
        with trainer.timed("read"):
            return trainer.archive.read(task_id, record.vector_digest, record.bounds, shapes, least_bits=least_bits)
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


def subtract_tasks(state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer) -> PartialState:
    """Subtract the vectors of merged tasks and drop what is kept of them.

    Args:
        state (`MergedState`): the state before; it is not changed.
        task_ids (*sequence* of `str`): the tasks.
        trainer (`TaskTrainer`): live model and the data of these tasks.

    Raises:
        DigestMismatchError: if data changed or the recovered bits differ.
    """
    leaving = sorted(set(task_ids))
    # A local model or an archive spares the retraining; its digest is checked.
    if trainer.archive is None:
        retrained = [task_id for task_id in leaving if not trainer.is_local(task_id)]
        check_data(state, retrained, trainer.tasks, trainer.encoded)
    with trainer.timed("add"), sum_vectors(trainer, [tuple(leaving)], _Recovery(trainer, state)) as sums:
        folder = None if trainer.journal is None else trainer.journal.folder
        bounds = [record.bounds for record in state.records.values()]
        total = DeltaAccumulator.restore(state.delta, bounds, folder, least_bits=trainer.codec.least_bits)
        total.subtract(sums.total)
        sums.total.release()
    return PartialState.of(state).without(leaving, total)


class _Recovery:
    """Recovers the vectors of merged tasks, as the work of `sum_vectors`."""

    description = "retrain"
    is_last = False

    def __init__(self, trainer: TaskTrainer, state: MergedState) -> None:
        self._trainer = trainer
        self._records = state.records

    def finish(self, task_id: str) -> tuple[TaskVector, dict[str, Any]]:
        record = self._records[task_id]
        return merged_vector(self._trainer, task_id, record), record.to_dict()

    def is_sound(self, task_id: str, entry: Mapping[str, Any]) -> bool:
        return bool(entry["vector_digest"] == self._records[task_id].vector_digest)
