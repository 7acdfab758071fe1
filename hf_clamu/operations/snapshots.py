"""The rows of merged tasks in a snapshot: the data of requests, kept before a model is saved, destroyed after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import DigestMismatchError, SnapshotError
from hf_clamu.merging import TaskRecord
from hf_clamu.storage import Snapshot
from hf_clamu.tasks import EncodedTask, StoredTask, TaskDataset, TaskSpec, pack, packed_template, unpack
from hf_clamu.tasks.encoding import arrange

__all__ = ["destroy_left_rows", "keep_rows", "snapshot_names", "snapshot_tasks"]


def snapshot_tasks(checkpoint: Checkpoint, snapshot: Snapshot) -> TaskDataset:
    """Return the merged tasks with the rows that a snapshot has of them; each is read when it is asked for.

    Args:
        checkpoint (`Checkpoint`): what is merged.
        snapshot (`Snapshot`): of this model.
    """
    records, spec = checkpoint.state.records, checkpoint.task_spec
    stored = {
        task_id: StoredTask(
            num_train=records[task_id].num_train,
            num_validation=records[task_id].num_validation,
            cluster_key=records[task_id].cluster_key,
            origin=f"the snapshot {snapshot.folder}",
            read=partial(_read, snapshot, spec, task_id, records[task_id]),
        )
        for task_id in snapshot_names(records)
    }
    return TaskDataset(spec, stored, checkpoint.source, keyed=checkpoint.has_keyed_ids)


def keep_rows(
    target: Snapshot, checkpoint: Checkpoint, source: Snapshot | None, tasks: TaskDataset | None, processor: Any
) -> None:
    """Bring the rows of all merged tasks into a snapshot, before the model that goes with it is saved.

    Args:
        target (`Snapshot`): of the place that the model is to be saved at.
        checkpoint (`Checkpoint`): what is merged.
        source (`Snapshot`, *optional*): of the place that the model came from.
        tasks (`TaskDataset`, *optional*): rows at hand.
        processor (*optional*): tokenizer or image processor.

    Raises:
        SnapshotError: if the rows of a task are nowhere, or cannot be written because the key is missing.
        DigestMismatchError: if the rows at hand are not those that were merged.
        OSError: if they cannot be written.
    """
    records = checkpoint.state.records
    target.make()
    for task_id, name in snapshot_names(records).items():
        if target.is_kept(name):
            continue
        target.require_writable()
        holder = next((one for one in (target, source) if one is not None and one.holds(name)), None)
        if holder is not None:
            target.copy_from(holder, name, task_id)
            continue
        if tasks is None or task_id not in tasks:
            raise SnapshotError(
                f"The rows of task {task_id!r} are needed for the snapshot {target.folder}, and neither given nor in "
                "the snapshot of the model that was loaded. Nothing was changed. Give the data (data=, --data FILE), "
                "save to another place, or remove that folder to go on without a snapshot."
            )
        encoded = tasks.encode(task_id, processor)
        if encoded.digest != records[task_id].data_digest:
            raise DigestMismatchError(
                f"The rows of task {task_id!r} changed since it was merged, so no snapshot can be kept of it. Nothing "
                "was changed. Give the data as it was at the merge."
            )
        target.write(name, pack(encoded))


def destroy_left_rows(snapshot: Snapshot, checkpoint: Checkpoint) -> int:
    """Destroy the rows of tasks that left a model, after it was saved; return of how many.

    Args:
        snapshot (`Snapshot`): beside the saved model.
        checkpoint (`Checkpoint`): what is saved there.

    Raises:
        OSError: if a file cannot be destroyed.
    """
    try:
        return snapshot.destroy_others(snapshot_names(checkpoint.state.records).values())
    except OSError as error:
        raise OSError(
            f"The model is saved, but the rows of a task that left it could not be destroyed in {snapshot.folder} "
            f"({error}). Repeat the command once that is possible; its receipt waits for it."
        ) from error


def snapshot_names(records: Mapping[str, TaskRecord]) -> dict[str, str]:
    """Return the names of the files of the tasks that came with data."""
    return {
        task_id: Snapshot.name(task_id, record.data_digest, record.cluster_key)
        for task_id, record in records.items()
        if record.data_digest is not None
    }


def _read(snapshot: Snapshot, spec: TaskSpec, task_id: str, record: TaskRecord) -> EncodedTask:
    name = Snapshot.name(task_id, str(record.data_digest), record.cluster_key)
    tensors = snapshot.read(name, task_id)
    try:
        train, validation = unpack(tensors)
        encoded = arrange(spec, task_id, train, validation, record.cluster_key, packed_template(tensors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise snapshot.unusable(name, task_id, f"it is none that a snapshot has ({error})") from error
    if encoded.digest != record.data_digest:
        reason = f"their SHA-256 is {str(encoded.digest)[:16]}…, the ledger says {str(record.data_digest)[:16]}…"
        raise snapshot.unusable(name, task_id, reason)
    return encoded
