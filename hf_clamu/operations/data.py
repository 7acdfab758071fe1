"""The data of merged tasks: given or found, and under the ids that the ledger has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.operations.snapshots import snapshot_tasks
from hf_clamu.storage import Snapshot
from hf_clamu.tasks import DataFiles, IdsSetting, TaskDataset, keyed_id, load_tasks

__all__ = ["ledger_id", "load_merged_tasks", "load_rows", "with_ledger_ids"]


def load_merged_tasks(
    checkpoint: Checkpoint,
    data: TaskDataset | DataFiles | None,
    origin: Path | None,
    task_id_key: str | None = None,
    snapshot: Snapshot | None = None,
    *,
    snapshot_place: Path | None = None,
    ids: IdsSetting | None = None,
) -> TaskDataset:
    """Return the tasks' data: given, from a snapshot, or from the source that the ledger names.

    Args:
        checkpoint (`Checkpoint`): the merged model.
        data (`TaskDataset`, `str`, `Path` or *list* of them, *optional*): the data, or files of their rows.
        origin (`Path`, *optional*): the saved model's folder; files are looked for beside it, then in the working
            directory.
        task_id_key (`str`, *optional*): the key of the ledger's task ids, if they are keyed.
        snapshot (`Snapshot`, *optional*): of the model.
        snapshot_place (`Path`, *optional*): where it would be, for messages.
        ids (`str`, *optional*): for files of new rows, how their ids are read and whether those that look alike are
            refused, see `TaskSpec`. By default ids are read as the recipe says, and none is refused: the merged ones
            are told apart already.

    Raises:
        TaskDataError: if they are not found, or were read with other settings than the merged ones.
    """
    if data is None and snapshot is not None:
        return snapshot_tasks(checkpoint, snapshot)
    no_snapshot = "" if snapshot_place is None else f" There is no snapshot of the rows either, at {snapshot_place}."
    tasks = load_rows(checkpoint, data, origin, ids=ids, also_missing=no_snapshot)
    return with_ledger_ids(checkpoint, tasks, task_id_key)


def load_rows(
    checkpoint: Checkpoint,
    data: TaskDataset | DataFiles | None,
    origin: Path | None,
    *,
    ids: IdsSetting | None = None,
    also_missing: str = "",
) -> TaskDataset:
    """Return rows under the ids that stand in them, read with the settings of a merged model.

    Args:
        checkpoint, data, origin, ids: as in `load_merged_tasks`.
        also_missing (`str`): ends the message if they are not found.

    Raises:
        TaskDataError: if they are not found, or were read with other settings than the merged ones.
    """
    spec = checkpoint.task_spec
    tasks = data if isinstance(data, TaskDataset) else _load_files(checkpoint, data, origin, ids, also_missing)
    tasks = tasks.with_ids(spec.ids)  # which decides nothing once the ids are read
    expected, given = asdict(spec), asdict(tasks.spec)
    differing = [key for key in expected if given[key] != expected[key]]
    if differing:
        key = differing[0]
        raise TaskDataError(
            f"The data were read with other settings than the merged tasks: {key} is {given[key]!r}, the "
            f"model's recipe says {expected[key]!r}. Give the data with the recipe's settings."
        )
    return tasks


def ledger_id(checkpoint: Checkpoint, task_id: str, task_id_key: str | None) -> str:
    """Return the id that a ledger has for a task: the same, or its keyed commitment.

    Args:
        checkpoint (`Checkpoint`): the merged model.
        task_id (`str`): what the owner is called.
        task_id_key (`str`, *optional*): the key of the ledger's ids, if they are keyed.

    Raises:
        TaskNotFoundError: if the ledger's ids are keyed and the key is not known.
    """
    if not checkpoint.has_keyed_ids or task_id in checkpoint.state.records:
        return task_id
    if task_id_key is None:
        raise TaskNotFoundError(
            f"The ledger keeps keyed commitments instead of task ids, so {task_id!r} cannot be looked up without "
            "the key: load the model with task_id_key= (CLAMU_TASK_ID_KEY for the command line)."
        )
    return keyed_id(task_id_key, task_id)


def with_ledger_ids(checkpoint: Checkpoint, tasks: TaskDataset, task_id_key: str | None) -> TaskDataset:
    """Return tasks under the ids that the ledger has: as they are, or keyed.

    Raises:
        TaskDataError: if the ledger's ids are keyed and the key is not given.
    """
    if not checkpoint.has_keyed_ids or tasks.is_keyed:
        return tasks
    if task_id_key is None:
        raise TaskDataError(
            "The ledger of this model keeps keyed commitments instead of task ids, so the data's ids say nothing "
            "without the key: give task_id_key to from_pretrained (CLAMU_TASK_ID_KEY for the command line)."
        )
    return tasks.with_key(task_id_key)


def _load_files(
    checkpoint: Checkpoint, data: DataFiles | None, origin: Path | None, ids: IdsSetting | None, no_snapshot: str
) -> TaskDataset:
    spec = checkpoint.task_spec.to_dict()
    source = checkpoint.source
    if source is None:
        if data is None:
            raise TaskDataError(
                "The ledger of this model names no source of rows: it was built from data in memory, or from "
                f"checkpoints. Give the data of the merged tasks (data=, --data PATH).{no_snapshot}"
            )
        source = {"files": data, **{key: value for key, value in spec.items() if value is not None}}
    # Labels are declared once for the whole space: rows of forgotten tasks may be gone by now.
    source = {**source, "label_names": spec.get("label_names")} if spec.get("label_names") else source
    beside = [origin.absolute().parent] if origin is not None else []
    source = source if ids is None else {**source, "ids": ids}
    folders = [*beside, Path.cwd()]
    return load_tasks(
        source, data=data, search_dirs=folders, refuse_near_ids=ids is not None, also_missing=no_snapshot
    )
