"""Giving merged tasks other data: their old vectors are subtracted, the new ones added, the rest is derived once."""

from __future__ import annotations

import time

from hf_clamu.errors import TaskDataError
from hf_clamu.known_names import OnMismatch
from hf_clamu.merging import update_tasks, with_rows
from hf_clamu.operations.build import rebuild
from hf_clamu.operations.request import MISMATCHES, ChangeResult, Request
from hf_clamu.tasks import TaskDataset

__all__ = ["update"]


def update(request: Request, new: TaskDataset, on_mismatch: OnMismatch) -> ChangeResult:
    """Give merged tasks other data; on a mismatch raise, or rebuild with the new data if the caller chose so.

    Args:
        request (`Request`): its data are those that were merged.
        new (`TaskDataset`): tasks under the ledger's ids, see `Request.changed_tasks`.
        on_mismatch (`str`): `"error"` or `"rebuild"`.

    Raises:
        TaskDataError: if a task came from a checkpoint, or the old data are missing.
        ArchiveError, DigestMismatchError, EnvironmentMismatchError: on a mismatch.
    """
    before = request.checkpoint.state
    foreign = [task_id for task_id in new.task_ids if before.records[task_id].from_checkpoint]
    if foreign:
        raise TaskDataError(
            f"Task {foreign[0]!r} came from a checkpoint, so other data do not give another vector. Unmerge it, then "
            "add its new checkpoint."
        )
    old = request.tasks()
    others = [task_id for task_id in before.task_ids if task_id not in new]
    tasks = old.select([task_id for task_id in others if task_id in old]).merged_with(new)
    started = time.perf_counter()
    if on_mismatch == "rebuild" and request.lacks_rows(new.task_ids, old):
        return rebuild(request, with_rows(old, others).merged_with(new))  # the old rows are deleted already
    try:
        request.require_environment()
        state, seconds = request.context(old).run(
            lambda trainer: update_tasks(before, new, trainer, request.arguments), adds=False
        )
    except MISMATCHES:
        if on_mismatch != "rebuild":
            raise
        return rebuild(request, with_rows(old, others).merged_with(new))
    seconds["total"] = time.perf_counter() - started
    return request.answer("updated", state, tasks=tasks, seconds=seconds, subtracted=new.task_ids)
