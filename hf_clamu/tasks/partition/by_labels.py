"""Partition into tasks of few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks.partition.cut import CutSettings, cut_rows, require_counts, rows_by_value
from hf_clamu.tasks.partition.ranks import rank, ranked, task_names
from hf_clamu.tasks.partition.report import PartitionReport

__all__ = ["partition_by_labels"]


def partition_by_labels(
    dataset: Any,
    label_column: str,
    *,
    num_tasks: int,
    labels_per_task: int | tuple[int, int],
    seed: int = 0,
    examples_per_task: int | None = None,
    num_validation: int = 0,
    content_columns: Sequence[str] | None = None,
    task_column: str = "task",
    prefix: str = "task",
) -> tuple[Any, PartitionReport]:
    """Give each task the examples of few labels (the paper's "task-and-label-level split").

    Labels are used equally often, as far as their rows last; a task gets equally many examples of each of its labels.
    Where the rows of a label run short, its tasks get fewer, evenly.

    Args:
        dataset (`datasets.Dataset`): rows with labels.
        label_column (`str`): their column, of names or numbers; rows without a label are left over.
        num_tasks (`int`): how many tasks.
        labels_per_task (`int` or *tuple* of `int`): how many labels each; of `(least, most)`, every number comes
            equally often.
        seed (`int`, defaults to 0): of the choice of labels and rows.
        examples_per_task, num_validation: as for `partition_uniform`.
        content_columns, task_column: as for `partition_by_column`.
        prefix (`str`, defaults to `"task"`): task ids are this and a number: "task_00".

    Returns:
        *tuple* of `datasets.Dataset` and `PartitionReport`: as for `partition_by_column`.

    Raises:
        RecipeError: if a number is out of range.
        TaskDataError: if a column is missing, or a label has fewer rows than tasks.

    Source: the ClAMU paper's task-and-label-level split.
    """
    least, most = labels_per_task if isinstance(labels_per_task, tuple) else (labels_per_task, labels_per_task)
    require_counts(num_tasks=num_tasks, labels_per_task=least)
    require_counts(labels_per_task=most)
    settings = CutSettings(
        num_tasks=num_tasks,
        examples_per_task=examples_per_task,
        num_validation=num_validation,
        label_column=label_column,
        content_columns=content_columns,
        task_column=task_column,
    )
    rows = rows_by_value(dataset, label_column, lambda label: label)
    if not least <= most <= len(rows):
        raise RecipeError(f"labels_per_task must be 1 to {len(rows)}, the number of labels; found {labels_per_task}.")
    names = task_names(prefix, num_tasks)
    numbers = {task: least + place % (most - least + 1) for place, task in enumerate(names)}
    shares = _shares_of_labels(rows, numbers, settings.rows_per_task, seed)
    return cut_rows(dataset, _deal(rows, names, shares, seed), settings)


def _shares_of_labels(
    rows: Mapping[Any, Sequence[int]], numbers: Mapping[str, int], rows_per_task: int | None, seed: int
) -> dict[Any, list[tuple[str, int | None]]]:
    """Return, for each label, the tasks that get some of its rows, and at most how many (`None`: no limit)."""
    chosen: dict[Any, list[tuple[str, int | None]]] = {label: [] for label in sorted(rows)}

    def preference(label: Any, task: str, share: int | None) -> tuple[bool, int, str]:
        num_tasks = len(chosen[label])
        is_used_up = share is not None and (num_tasks + 1) * share > len(rows[label])
        return is_used_up, num_tasks, rank(label, "labels", seed, task)

    for task, number in numbers.items():
        shares = _even_shares(rows_per_task, number)
        order = {label: preference(label, task, shares[0]) for label in chosen}
        for label, share in zip(sorted(order, key=order.__getitem__)[:number], shares, strict=True):
            chosen[label].append((task, share))
    return chosen


def _even_shares(rows_per_task: int | None, number: int) -> list[int | None]:
    """Return how many rows a task gets of each of its labels; the first have one more where it is not even."""
    if rows_per_task is None:
        return [None] * number
    even, rest = divmod(rows_per_task, number)
    return [even + (place < rest) for place in range(number)]


def _deal(
    rows: Mapping[Any, Sequence[int]],
    names: Sequence[str],
    shares: Mapping[Any, Sequence[tuple[str, int | None]]],
    seed: int,
) -> dict[str, list[int]]:
    dealt: dict[str, list[int]] = {task: [] for task in names}
    for label, tasks in shares.items():
        if len(tasks) > len(rows[label]):
            raise TaskDataError(f"Label {label!r} has {len(rows[label])} rows for {len(tasks)} tasks.")
        order = ranked(rows[label], "row", seed)
        for first, (task, share) in enumerate(tasks):
            dealt[task] += order[first :: len(tasks)][:share]
    return {task: ranked(numbers, "order", seed) for task, numbers in dealt.items()}
