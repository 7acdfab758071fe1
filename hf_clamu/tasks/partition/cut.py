"""Cutting a data set into tasks whose rows are chosen: the columns, the validation examples, the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import sha256_hex
from hf_clamu.tasks.partition.report import PartitionReport

__all__ = ["CutSettings", "column_values", "cut_rows", "require_counts", "rows_by_value"]

_BATCH_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class CutSettings:
    """What every partition can be asked for; see `partition_by_column`.

    Raises:
        RecipeError: if a number is out of range.
    """

    num_tasks: int | None
    examples_per_task: int | None
    num_validation: int
    label_column: str | None
    content_columns: Sequence[str] | None
    task_column: str

    def __post_init__(self) -> None:
        require_counts(num_tasks=self.num_tasks, examples_per_task=self.examples_per_task)
        count: Any = self.num_validation
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise RecipeError(f"num_validation must be a whole number, at least 0; found {count!r}.")

    @property
    def rows_per_task(self) -> int | None:
        """The most rows of a task, with its validation examples."""
        return None if self.examples_per_task is None else self.examples_per_task + self.num_validation


def require_counts(**counts: int | None) -> None:
    """Check that numbers are whole and positive.

    Raises:
        RecipeError: naming the first that is not.
    """
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise RecipeError(f"{name} must be a whole number, at least 1; found {count!r}.")


def cut_rows(dataset: Any, dealt: Mapping[str, Sequence[int]], settings: CutSettings) -> tuple[Any, PartitionReport]:
    """Add the task column, select the rows in use, split off the validation examples, and report.

    Args:
        dataset (`datasets.Dataset`): all rows.
        dealt (*mapping*): the row numbers of each task, validation examples first.
        settings (`CutSettings`): what was asked for.
    """
    from datasets import DatasetDict

    task_column, label_column = settings.task_column, settings.label_column
    if task_column in dataset.column_names:
        raise RecipeError(f"The data set has a column {task_column!r} already; give task_column another name.")
    owners = [""] * len(dataset)
    train: list[int] = []
    validation: list[int] = []
    for task, rows in dealt.items():
        count = _validation_count(len(rows), settings)
        validation += rows[:count]
        train += rows[count:]
        for row in rows:
            assert not owners[row], f"row {row} is in two tasks"
            owners[row] = task
    sizes = [len(rows) for rows in dealt.values()]
    labels = None
    if label_column is not None:
        values = column_values(dataset, label_column)
        labels = _spread([len({values[row] for row in rows}) for rows in dealt.values()])
    report = PartitionReport(
        num_rows=len(dataset),
        num_used=len(train) + len(validation),
        num_validation=len(validation),
        num_tasks=len(dealt),
        num_tasks_wanted=settings.num_tasks,
        examples=_spread(sizes),
        examples_wanted=settings.rows_per_task,
        labels=labels,
        num_shared=_num_shared(dataset, owners, settings.content_columns),
    )
    # The column comes before the selection: the other way round, all rows in use would be copied.
    cut = dataset.add_column(task_column, owners)
    if not validation:
        return cut.select(train), report
    return DatasetDict({"train": cut.select(train), "validation": cut.select(validation)}), report


def _num_shared(dataset: Any, owners: Sequence[str], content_columns: Sequence[str] | None) -> int:
    """Count the contents that more than one task has."""
    from datasets import Image

    names = list(dataset.column_names if content_columns is None else content_columns)
    for name in names:
        _require_column(dataset, name)
    contents = dataset.with_format(None).select_columns(names)
    for name, feature in contents.features.items():
        if isinstance(feature, Image):
            # The bytes of the file are enough to compare, and nothing is decoded.
            contents = contents.cast_column(name, Image(decode=False))
    first: dict[str, str] = {}
    shared = set()
    row = 0
    for batch in contents.iter(batch_size=_BATCH_ROWS):
        for values in zip(*(batch[name] for name in names), strict=True):
            if owners[row]:
                digest = sha256_hex(repr(tuple(map(_without_path, values))).encode("utf-8", "surrogatepass"))
                if first.setdefault(digest, owners[row]) != owners[row]:
                    shared.add(digest)
            row += 1
    return len(shared)


def _without_path(value: Any) -> Any:
    # A picture under another name is the same picture.
    return sha256_hex(value["bytes"]) if isinstance(value, dict) and isinstance(value.get("bytes"), bytes) else value


def _validation_count(num_examples: int, settings: CutSettings) -> int:
    whole, num_validation = settings.rows_per_task, settings.num_validation
    if num_validation == 0 or num_examples < 2:
        return 0
    if whole is None or num_examples >= whole:
        return min(num_validation, num_examples - 1)
    return min(max(round(num_examples * num_validation / whole), 1), num_examples - 1)


def _require_column(dataset: Any, name: str) -> None:
    if name not in dataset.column_names:
        raise TaskDataError(f"The data set has no column {name!r}; it has {', '.join(dataset.column_names)}.")


def column_values(dataset: Any, name: str) -> list[Any]:
    """Return one column as Python objects."""
    _require_column(dataset, name)
    return list(dataset.with_format(None).select_columns([name])[:][name])


def rows_by_value(dataset: Any, column: str, key: Callable[[Any], Any]) -> dict[Any, list[int]]:
    """Return the row numbers of each value of a column, by the value's key; null and empty values are left out."""
    rows: dict[Any, list[int]] = {}
    for row, value in enumerate(column_values(dataset, column)):
        if value is not None and value != "":
            rows.setdefault(key(value), []).append(row)
    return rows


def _spread(numbers: Sequence[int]) -> tuple[int, float, int]:
    return min(numbers), statistics.median(numbers), max(numbers)
