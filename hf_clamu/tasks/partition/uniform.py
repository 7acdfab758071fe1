"""Partition into tasks of equal size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.partition.cut import CutSettings, cut_rows, require_counts
from hf_clamu.tasks.partition.ranks import ranked, task_names
from hf_clamu.tasks.partition.report import PartitionReport

__all__ = ["partition_uniform"]


def partition_uniform(
    dataset: Any,
    *,
    num_tasks: int,
    seed: int = 0,
    examples_per_task: int | None = None,
    num_validation: int = 0,
    label_column: str | None = None,
    content_columns: Sequence[str] | None = None,
    task_column: str = "task",
    prefix: str = "task",
) -> tuple[Any, PartitionReport]:
    """Deal rows evenly to tasks, whatever is in them (the paper's "task-level split").

    Where rows run short, tasks get fewer, evenly: their sizes differ by one at most.

    Args:
        dataset (`datasets.Dataset`): any rows.
        num_tasks (`int`): how many tasks.
        seed (`int`, defaults to 0): of the choice of rows.
        examples_per_task (`int`, *optional*): the most rows that a task gets, without its validation examples; by
            default all rows are dealt.
        num_validation (`int`, defaults to 0): validation examples per task; fewer, in proportion, where rows run
            short.
        label_column, content_columns, task_column: as for `partition_by_column`.
        prefix (`str`, defaults to `"task"`): task ids are this and a number: "task_00".

    Returns:
        *tuple* of `datasets.Dataset` and `PartitionReport`: as for `partition_by_column`.

    Raises:
        RecipeError: if a number is out of range.
        TaskDataError: if a column is missing, or there are fewer rows than tasks.

    Source: the ClAMU paper's task-level split.
    """
    require_counts(num_tasks=num_tasks)
    settings = CutSettings(
        num_tasks=num_tasks,
        examples_per_task=examples_per_task,
        num_validation=num_validation,
        label_column=label_column,
        content_columns=content_columns,
        task_column=task_column,
    )
    if len(dataset) < num_tasks:
        raise TaskDataError(f"{len(dataset)} rows cannot be dealt to {num_tasks} tasks.")
    order = ranked(range(len(dataset)), "row", seed)
    names = task_names(prefix, num_tasks)
    dealt = {task: order[first::num_tasks][: settings.rows_per_task] for first, task in enumerate(names)}
    return cut_rows(dataset, dealt, settings)
