"""Members and held-out rows: what a task was trained on, and rows of the same owner that it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_clamu.errors import DigestMismatchError, TaskDataError
from hf_clamu.exact.digest import digest_tensors
from hf_clamu.tasks import EncodedTask, Example, ModelLimits, TaskDataset

__all__ = ["LEAST_ROWS", "AttackedTask", "attacked_tasks"]

# Fewer on either side, and an interval says nothing.
LEAST_ROWS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackedTask:
    """The rows of a task that attacks tell apart.

    Args:
        task_id (`str`): the id as it was asked for.
        members (*tuple* of `Example`): the rows that it is trained on.
        held_out (*tuple* of `Example`): rows of the same owner that are none of them.
    """

    task_id: str
    members: tuple[Example, ...]
    held_out: tuple[Example, ...]


def attacked_tasks(
    model: Any, models: Sequence[Any], tasks: TaskDataset, task_ids: Sequence[str], held_out: TaskDataset | None
) -> list[AttackedTask]:
    """Return the rows of tasks, each of which may be merged into some of the models.

    Args:
        model (`ClamuModel`): reads the rows.
        models (*sequence* of `ClamuModel`): whose ledgers say what was merged.
        tasks (`TaskDataset`): the data of the tasks, as it was or would be merged.
        task_ids (*sequence* of `str`): the tasks.
        held_out (`TaskDataset`, *optional*): rows that were not trained on; by default the tasks' validation rows.

    Raises:
        TaskDataError: if a task has no rows, or there are too few.
        TaskNotFoundError: if ids are keyed and the key is missing.
        DigestMismatchError: if rows are not those that were merged.
    """
    tasks = model.keyed_tasks(tasks)
    held_out = None if held_out is None else model.keyed_tasks(held_out)
    found = []
    for task_id in dict.fromkeys(task_ids):
        encoded = _encoded(model, tasks, task_id, "--data FILE")
        _require_merged_rows(models, task_id, encoded)
        others = encoded.validation
        if held_out is not None:
            given = _encoded(model, held_out, task_id, "--held-out FILE")
            others = (*given.train, *given.validation)
        # A row that was trained on is a member, wherever it stands as well.
        trained = {digest_tensors(example) for example in encoded.train}
        found.append(
            AttackedTask(
                task_id=task_id,
                members=encoded.train,
                held_out=tuple(example for example in others if digest_tensors(example) not in trained),
            )
        )
    _require_enough(found)
    return found


def _encoded(model: Any, tasks: TaskDataset, task_id: str, option: str) -> EncodedTask:
    named = model.ledger_id(task_id)
    if named not in tasks or tasks.num_examples(named) == 0:
        raise TaskDataError(
            f"Task {task_id!r} has no rows in {tasks.origin}, which has rows of {len(tasks)} tasks. Give the file "
            f"that has them ({option}), or check the id."
        )
    return tasks.encode(named, model.processor, ModelLimits.of(model))


def _require_merged_rows(models: Sequence[Any], task_id: str, encoded: EncodedTask) -> None:
    """Check the rows against every ledger that knows the task: of other rows nobody knows which are members."""
    for model in models:
        record = model.merged.state.records.get(model.ledger_id(task_id))
        if record is not None and record.data_digest not in (None, encoded.digest):
            raise DigestMismatchError(
                f"The rows of task {task_id!r} are not those that were merged, so nobody can say which of them are "
                f"members: their tokenised examples have SHA-256 {str(encoded.digest)[:16]}…, the ledger says "
                f"{record.data_digest[:16]}…. Give them as they were at the merge (--data FILE)."
            )


def _require_enough(tasks: Sequence[AttackedTask]) -> None:
    num_members = sum(len(task.members) for task in tasks)
    num_held_out = sum(len(task.held_out) for task in tasks)
    if min(num_members, num_held_out) >= LEAST_ROWS:
        return
    who = f"Task {tasks[0].task_id!r} has" if len(tasks) == 1 else f"The {len(tasks)} tasks have"
    raise TaskDataError(
        f"{who} {num_members} rows that were trained on and {num_held_out} that were held out, and an interval takes "
        f"{LEAST_ROWS} of each. Give more held-out rows of the same owner (--held-out FILE), or several tasks at once "
        "(--task, repeated)."
    )
