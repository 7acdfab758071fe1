"""Merging more tasks: they are finetuned and added, and the rest is derived again."""

from __future__ import annotations

import time

from hf_clamu.errors import TaskAlreadyMergedError, TaskDataError
from hf_clamu.merging import add_tasks, require_no_data
from hf_clamu.operations.request import ChangeResult, Request
from hf_clamu.tasks import TaskDataset

__all__ = ["add"]


def add(request: Request, new: TaskDataset) -> ChangeResult:
    """Merge more tasks.

    Args:
        request (`Request`): on the model before.
        new (`TaskDataset`): the tasks to add, under the ledger's ids.

    Raises:
        TaskAlreadyMergedError: if one is merged already.
        TaskDataError: if there is a local model of a task that is neither merged nor added.
        EnvironmentMismatchError: if this environment is not that of the build.
    """
    before = request.checkpoint.state
    for task_id in new.task_ids:
        if task_id in before.records:
            raise TaskAlreadyMergedError(
                f"Task {task_id!r} is merged already. To replace its data, update it (update_task, clamu update)."
            )
    unexpected = [
        task_id for task_id in request.local_models or () if task_id not in before.records and task_id not in new
    ]
    if unexpected:
        raise TaskDataError(
            f"There is a checkpoint of task {unexpected[0]!r}, which is neither merged nor among the tasks to add. "
            "Name it as the task is, or leave it out."
        )
    if len(new) and not new.has_rows:
        require_no_data(request.arguments)
    started = time.perf_counter()
    request.require_environment()
    tasks = new
    if before.task_ids:
        old = request.tasks_if_needed(new)
        tasks = old.select([task_id for task_id in before.task_ids if task_id in old]).merged_with(new)
    state, seconds = request.context(tasks).run(
        lambda trainer: add_tasks(before, new.task_ids, trainer, request.arguments), adds=True
    )
    seconds["total"] = time.perf_counter() - started
    return request.answer("added", state, tasks=tasks, seconds=seconds)
