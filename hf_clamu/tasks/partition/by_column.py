"""Partition by the values of a column.

Example:

```python
>>> from datasets import Dataset
>>> from hf_clamu.tasks import partition_by_column
>>> dataset = Dataset.from_dict({"user": ["ann", "bob", "ann", ""], "text": ["a", "b", "c", "d"]})
>>> cut, report = partition_by_column(dataset, "user", min_examples=2)
>>> list(cut["task"]), report.num_left_over
(['ann', 'ann'], 2)

```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.partition.cut import CutSettings, cut_rows, require_counts, rows_by_value
from hf_clamu.tasks.partition.ranks import ranked
from hf_clamu.tasks.partition.report import PartitionReport

__all__ = ["partition_by_column"]


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
    """
    require_counts(num_tasks=num_tasks, min_examples=min_examples, max_examples=max_examples)
    if content_columns is None:
        content_columns = [name for name in dataset.column_names if name != column]
    settings = CutSettings(
        num_tasks=num_tasks,
        examples_per_task=examples_per_task,
        num_validation=num_validation,
        label_column=label_column,
        content_columns=content_columns,
        task_column=task_column,
    )
    rows = rows_by_value(dataset, column, str)
    values = _with_enough_rows(rows, column, min_examples, max_examples)
    chosen = sorted(ranked(values, "task", seed)[:num_tasks])
    dealt = {task: ranked(rows[task], "row", seed)[: settings.rows_per_task] for task in chosen}
    return cut_rows(dataset, dealt, settings)


def _with_enough_rows(rows: Mapping[str, Sequence[int]], column: str, least: int, most: int | None) -> list[str]:
    values = [
        value for value, numbers in rows.items() if least <= len(numbers) and (most is None or len(numbers) <= most)
    ]
    if not values:
        limit = "" if most is None else f" and at most {most}"
        raise TaskDataError(
            f"No value of column {column!r} has at least {least}{limit} rows; there are {len(rows)} values."
        )
    return values
