"""Cuts of a data set into tasks: by a column, by labels, or evenly.

Rows and tasks are ranked by SHA-256, so that no random number generator's version can change a cut. A rank depends on
the row's number: the same rows in another order are cut otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import canonical_json, sha256_hex
from hf_clamu.tasks.cuts import PartitionReport, column_values, cut_rows

__all__ = ["partition_by_column", "partition_by_labels", "partition_uniform"]


def partition_by_column(
    dataset: Any,
    column: str,
    *,
    seed: int = 0,
    num_tasks: int | None = None,
    min_examples: int = 1,
    max_examples: int | None = None,
    examples_per_task: int | None = None,
    num_validation: int = 0,
    label_column: str | None = None,
    content_columns: Sequence[str] | None = None,
    task_column: str = "task",
) -> tuple[Any, PartitionReport]:
    """Make one task of each value of a column: of each user, author or hospital.

    Rows whose value is null or empty are left over. Where fewer values than `num_tasks` qualify, there are fewer
    tasks.

    Args:
        dataset (`datasets.Dataset`): any rows.
        column (`str`): the column; its values, as text, are the task ids.
        seed (`int`, defaults to 0): chooses among values and among rows.
        num_tasks (`int`, *optional*): how many values become tasks; by default all that qualify.
        min_examples (`int`, defaults to 1): values with fewer rows are left out.
        max_examples (`int`, *optional*): values with more rows are left out: often no person writes so much.
        examples_per_task (`int`, *optional*): the most rows that a task gets, without its validation examples; further
            rows are left over.
        num_validation (`int`, defaults to 0): validation examples per task.
        label_column (`str`, *optional*): labels to count for the report.
        content_columns (*sequence* of `str`, *optional*): what makes the content of a row, for the report; by default
            all columns but this one.
        task_column (`str`, defaults to `"task"`): the new column.

    Returns:
        *tuple* of `datasets.Dataset` and `PartitionReport`: the rows in use with their task; a `datasets.DatasetDict`
        of "train" and "validation" if there are validation examples. `TaskDataset.from_dataset` takes either.

    Raises:
        RecipeError: if a number is out of range.
        TaskDataError: if a column is missing, or no value qualifies.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> dataset = Dataset.from_dict({"user": ["ann", "bob", "ann", ""], "text": ["a", "b", "c", "d"]})
    >>> cut, report = partition_by_column(dataset, "user", min_examples=2)
    >>> list(cut["task"]), report.num_left_over
    (['ann', 'ann'], 2)

    ```
    """
    _require_counts(num_tasks=num_tasks, min_examples=min_examples, max_examples=max_examples)
    whole = _whole(examples_per_task, num_validation)
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(column_values(dataset, column)):
        if value is not None and value != "":
            rows.setdefault(str(value), []).append(row)
    most = len(dataset) if max_examples is None else max_examples
    found = [value for value, numbers in rows.items() if min_examples <= len(numbers) <= most]
    if not found:
        limit = "" if max_examples is None else f" and at most {max_examples}"
        raise TaskDataError(
            f"No value of column {column!r} has at least {min_examples}{limit} rows; there are {len(rows)} values."
        )
    drawn = sorted(_ranked(found, "task", seed)[:num_tasks])
    dealt = {task: _ranked(rows[task], "row", seed)[:whole] for task in drawn}
    if content_columns is None:
        content_columns = [name for name in dataset.column_names if name != column]
    return cut_rows(dataset, dealt, num_tasks, whole, num_validation, label_column, content_columns, task_column)


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
    _require_counts(num_tasks=num_tasks)
    whole = _whole(examples_per_task, num_validation)
    if len(dataset) < num_tasks:
        raise TaskDataError(f"{len(dataset)} rows cannot be dealt to {num_tasks} tasks.")
    ranked = _ranked(range(len(dataset)), "row", seed)
    dealt = {task: ranked[place::num_tasks][:whole] for place, task in enumerate(_names(prefix, num_tasks))}
    return cut_rows(dataset, dealt, num_tasks, whole, num_validation, label_column, content_columns, task_column)


def partition_by_labels(
    dataset: Any,
    label_column: str,
    *,
    num_tasks: int,
    labels_per_task: int,
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
        labels_per_task (`int`): how many labels each.
        seed (`int`, defaults to 0): of the choice of labels and rows.
        examples_per_task (`int`, *optional*): the most rows that a task gets, without its validation examples; by
            default all rows are dealt.
        num_validation (`int`, defaults to 0): validation examples per task; fewer, in proportion, where rows run
            short.
        content_columns, task_column: as for `partition_by_column`.
        prefix (`str`, defaults to `"task"`): task ids are this and a number: "task_00".

    Returns:
        *tuple* of `datasets.Dataset` and `PartitionReport`: as for `partition_by_column`.

    Raises:
        RecipeError: if a number is out of range.
        TaskDataError: if a column is missing, or a label has fewer rows than tasks.

    Source: the ClAMU paper's task-and-label-level split.
    """
    _require_counts(num_tasks=num_tasks, labels_per_task=labels_per_task)
    whole = _whole(examples_per_task, num_validation)
    rows: dict[Any, list[int]] = {}
    for row, label in enumerate(column_values(dataset, label_column)):
        if label is not None and label != "":
            rows.setdefault(label, []).append(row)
    if labels_per_task > len(rows):
        raise RecipeError(f"labels_per_task must be 1 to {len(rows)}, the number of labels; found {labels_per_task}.")
    names = _names(prefix, num_tasks)
    # The share of a label in a task; the first labels of a task have one row more where it does not come out even.
    shares = [
        len(dataset) if whole is None else whole // labels_per_task + (place < whole % labels_per_task)
        for place in range(labels_per_task)
    ]
    takers: dict[Any, list[tuple[str, int]]] = {label: [] for label in sorted(rows)}
    for task in names:

        def preference(label: Any, task: str = task) -> tuple[bool, int, str]:
            taken = len(takers[label])
            is_used_up = whole is not None and (taken + 1) * shares[0] > len(rows[label])
            return is_used_up, taken, _rank(label, "labels", seed, task)

        for place, label in enumerate(sorted(takers, key=preference)[:labels_per_task]):
            takers[label].append((task, shares[place]))
    dealt: dict[str, list[int]] = {task: [] for task in names}
    for label, tasks in takers.items():
        if len(tasks) > len(rows[label]):
            raise TaskDataError(f"Label {label!r} has {len(rows[label])} rows for {len(tasks)} tasks.")
        ranked = _ranked(rows[label], "row", seed)
        for place, (task, share) in enumerate(tasks):
            dealt[task] += ranked[place :: len(tasks)][:share]
    dealt = {task: _ranked(numbers, "order", seed) for task, numbers in dealt.items()}
    return cut_rows(dataset, dealt, num_tasks, whole, num_validation, label_column, content_columns, task_column)


def _whole(examples_per_task: int | None, num_validation: int) -> int | None:
    _require_counts(examples_per_task=examples_per_task)
    if isinstance(num_validation, bool) or not isinstance(num_validation, int) or num_validation < 0:
        raise RecipeError(f"num_validation must be a whole number, at least 0; found {num_validation!r}.")
    return None if examples_per_task is None else examples_per_task + num_validation


def _require_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise RecipeError(f"{name} must be a whole number, at least 1; found {count!r}.")


def _rank(value: Any, *salt: Any) -> str:
    return sha256_hex(canonical_json([*salt, value]))


def _ranked(values: Sequence[Any], *salt: Any) -> list[Any]:
    return sorted(values, key=lambda value: _rank(value, *salt))


def _names(prefix: str, count: int) -> list[str]:
    width = max(2, len(str(count - 1)))
    return [f"{prefix}_{number:0{width}d}" for number in range(count)]
