"""What is wrong with rows: collected, so that all of it is told at once, and rows with empty cells left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["BATCH_ROWS", "EMPTY_REMEDY", "Problems", "complete_rows", "empty_cells", "is_empty"]

_logger = logging.getLogger(__name__)

# Rows that are read at a time where a column may be larger than memory.
BATCH_ROWS = 1000
EMPTY_REMEDY = (
    "Fill in what is missing, delete these rows, or build with incomplete_rows: skip (--incomplete-rows skip), which "
    "leaves them out."
)
_SHOWN = 10


class Problems:
    """Collects what is wrong with rows; the first ones are shown, and all are counted.

    Example:

    ```python
    >>> problems = Problems()
    >>> problems.refuse()
    >>> problems.add(lambda: "Row 1: no label.", value=None)
    >>> problems.refuse()
    Traceback (most recent call last):
      ...
    hf_clamu.errors.TaskDataError: Row 1: no label. Fill in what is missing, ...

    ```
    """

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._count = 0
        self._has_empty_cell = False

    def add(self, describe: Callable[[], str], *, value: Any = "given") -> None:
        """Take one problem.

        Args:
            describe (*callable*): gives its sentence; called only if it is shown, because finding a line takes time.
            value (*optional*): of the cell that it is about.
        """
        self._count += 1
        self._has_empty_cell |= is_empty(value)
        if len(self._shown) < _SHOWN:
            self._shown.append(describe())

    def refuse(self) -> None:
        """Raise if there is any problem.

        Raises:
            TaskDataError: with up to ten of them.
        """
        if not self._count:
            return
        remedy = f" {EMPTY_REMEDY}" if self._has_empty_cell else ""
        if self._count == 1:
            raise TaskDataError(f"{self._shown[0]}{remedy}")
        some = f", the first {_SHOWN} of which are" if self._count > _SHOWN else ""
        listed = " ".join(f"({number}) {text}" for number, text in enumerate(self._shown, start=1))
        raise TaskDataError(f"{self._count} problems in the data{some}: {listed}{remedy}")


def is_empty(value: Any) -> bool:
    """Whether a cell has nothing in it: no value, no character but white space, or no entry."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def empty_cells(dataset: Any, column: str) -> Iterator[bool]:
    """Say of each row whether its cell is empty; images are not decoded for it.

    Args:
        dataset (`datasets.Dataset`): the rows.
        column (`str`): one of its columns.
    """
    import pyarrow as pa
    from pyarrow import compute

    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        values = batch.column(column)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            yield from map(is_empty, values.to_pylist())
        elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            yield from (not length for length in compute.list_value_length(values).to_pylist())
        else:
            yield from values.is_null().to_pylist()


def complete_rows(dataset: Any, spec: TaskSpec, name: str) -> list[int] | None:
    """Return the numbers of the rows without an empty cell, and log how many are left out.

    Args:
        dataset (`datasets.Dataset`): the rows.
        spec (`TaskSpec`): which column is which.
        name (`str`): of the split.

    Returns:
        *list* of `int`, *optional*: `None` if no row is left out, or the spec refuses such rows instead.

    Raises:
        TaskDataError: if no row is left.
    """
    if spec.incomplete_rows != "skip":
        return None
    # Most conversations have no tools.
    needed = [column for column in spec.content_columns if column != spec.tools_column]
    columns = dict.fromkeys([spec.task_column, *needed])
    cells = list(zip(*(empty_cells(dataset, column) for column in columns), strict=True))
    kept = [row for row, empty in enumerate(cells) if not any(empty)]
    if len(kept) == len(cells):
        return None
    if not kept:
        raise TaskDataError(f"Each of the {len(cells)} rows of the {name} split has an empty cell, so none is left.")
    ids = dataset.select_columns([spec.task_column])[:][spec.task_column]
    staying = {spec.task_id(str(ids[row])) for row in kept}
    leaving = {spec.task_id(str(ids[row])) for row, empty in enumerate(cells) if any(empty) and not empty[0]}
    nobodys = sum(empty[0] for empty in cells)
    gone = len(leaving - staying)
    _logger.warning(
        f"Left out {len(cells) - len(kept)} of the {len(cells)} rows, because a cell is empty: rows of {len(leaving)} "
        f"{'task' if len(leaving) == 1 else 'tasks'}{f' (no row is left of {gone})' if gone else ''}"
        f"{f', and {nobodys} without a task id' if nobodys else ''}."
    )
    return kept
