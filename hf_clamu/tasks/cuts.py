"""What a cut of a data set into tasks gives: rows with their task, and a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import sha256_hex

__all__ = ["PartitionReport", "column_values", "cut_rows"]

_BATCH_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionReport:
    """What a cut gave, and what was asked for.

    Args:
        num_rows (`int`): rows of the data set.
        num_used (`int`): rows that are in a task; never in two.
        num_validation (`int`): of these, validation examples.
        num_tasks (`int`): tasks made.
        num_tasks_wanted (`int`, *optional*): tasks asked for.
        examples (*tuple* of numbers): minimum, median and maximum of the examples per task, validation included.
        examples_wanted (`int`, *optional*): examples asked for per task, validation included.
        labels (*tuple* of numbers, *optional*): minimum, median and maximum of the different labels per task; `None`
            where no label column was named.
        num_shared (`int`): different contents that occur in more than one task. Rows are never shared, but data sets
            hold the same text or image twice, and whoever forgets one task may find its content in another.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_clamu.tasks import partition_uniform
    >>> dataset = Dataset.from_dict({"text": ["a", "b", "a", "c", "d"]})
    >>> _, report = partition_uniform(dataset, num_tasks=2, examples_per_task=3)
    >>> report.is_short, report.num_used, report.examples
    (True, 5, (2, 2.5, 3))

    ```
    """

    num_rows: int
    num_used: int
    num_validation: int
    num_tasks: int
    num_tasks_wanted: int | None
    examples: tuple[int, float, int]
    examples_wanted: int | None
    labels: tuple[int, float, int] | None
    num_shared: int

    @property
    def num_left_over(self) -> int:
        """Rows in no task."""
        return self.num_rows - self.num_used

    @property
    def is_short(self) -> bool:
        """Whether there are fewer tasks, or fewer examples in one of them, than were asked for."""
        return self.num_tasks < (self.num_tasks_wanted or 0) or self.examples[0] < (self.examples_wanted or 0)

    def __str__(self) -> str:
        def asked(number: int | None) -> str:
            return "" if number is None else f" (asked for: {number:,})"

        tasks = "1 task" if self.num_tasks == 1 else f"{self.num_tasks:,} tasks"
        text = (
            f"{tasks}{asked(self.num_tasks_wanted)} of {_shown(self.examples)} examples{asked(self.examples_wanted)}"
        )
        text += "" if self.labels is None else f" and {_shown(self.labels)} labels"
        text += f"; {self.num_used:,} of {self.num_rows:,} rows used, {self.num_left_over:,} left over"
        return f"{text}; {self.num_shared:,} contents in more than one task"


def cut_rows(
    dataset: Any,
    dealt: Mapping[str, Sequence[int]],
    num_tasks_wanted: int | None,
    whole: int | None,
    num_validation: int,
    label_column: str | None,
    content_columns: Sequence[str] | None,
    task_column: str,
) -> tuple[Any, PartitionReport]:
    """Add the task column, select the rows in use, split off the validation examples, and report.

    Args:
        dataset (`datasets.Dataset`): all rows.
        dealt (*mapping*): the row numbers of each task, validation examples first.
        num_tasks_wanted (`int`, *optional*): tasks asked for.
        whole (`int`, *optional*): examples asked for per task, validation included.
        num_validation (`int`): validation examples asked for per task.
        label_column, content_columns, task_column: see `partition_by_column`.
    """
    from datasets import DatasetDict

    if task_column in dataset.column_names:
        raise RecipeError(f"The data set has a column {task_column!r} already; give task_column another name.")
    owners = [""] * len(dataset)
    train: list[int] = []
    validation: list[int] = []
    for task, rows in dealt.items():
        count = _validation_count(len(rows), whole, num_validation)
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
        num_tasks_wanted=num_tasks_wanted,
        examples=_spread(sizes),
        examples_wanted=whole,
        labels=labels,
        num_shared=_num_shared(dataset, owners, content_columns),
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


def _validation_count(num_examples: int, whole: int | None, num_validation: int) -> int:
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


def _spread(numbers: Sequence[int]) -> tuple[int, float, int]:
    return min(numbers), statistics.median(numbers), max(numbers)


def _shown(spread: tuple[int, float, int]) -> str:
    low, middle, high = spread
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:g})"
