"""Labels: their names, and the number that each value of a column stands for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.near_names import LABELS_REMEDY, describe_near, near_names
from hf_clamu.tasks.reading.problems import Problems
from hf_clamu.tasks.reading.splits import Split
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["Label", "label_index", "with_label_names"]

_logger = logging.getLogger(__name__)

_SHOWN = 10  # of the names
# The checked label of a row: one, or one for each word.
Label = int | tuple[int, ...]


def with_label_names(spec: TaskSpec, splits: Sequence[Split], problems: Problems) -> TaskSpec:
    """Return the spec with its label names filled in, if it has labels and does not name them yet.

    They come from a `ClassLabel` column; otherwise they are the sorted strings (by number where all are whole
    numbers), "false" and "true", or "0" to the greatest number. Labels that look alike are noted as a problem.

    Raises:
        TaskDataError: if the column holds no labels.
    """
    column = spec.label_column or spec.tags_column
    if column is None or spec.label_names is not None:
        return spec
    for split in splits:
        if split.class_names is not None:
            return dataclasses.replace(spec, label_names=split.class_names)
    cells = (value for split in splits for value in split.column(column))
    if spec.tags_column is not None:
        # A value that is not a list is refused later, where its row can be named.
        cells = (value for tags in cells for value in (tags if isinstance(tags, list) else [tags]))
    values = [value for value in cells if value is not None and value != ""]
    if values and all(isinstance(value, str) for value in values):
        _note_near_labels(values, splits, column, problems)
        return dataclasses.replace(spec, label_names=_in_order(set(values)))
    if values and all(isinstance(value, bool) for value in values):
        return dataclasses.replace(spec, label_names=("false", "true"))
    if values and all(isinstance(value, int) for value in values):
        count = max(0, *values) + 1
        _warn_of_gaps(column, values, count)
        return dataclasses.replace(spec, label_names=tuple(map(str, range(count))))
    role, many = ("label_column", "") if spec.tags_column is None else ("tags_column", "lists of ")
    raise TaskDataError(
        f"Column {column!r} must hold {many}strings or whole numbers from 0 to be a {role}; found "
        f"{_type_names(values)}."
    )


def _note_near_labels(names: Iterable[str], splits: Sequence[Split], column: str, problems: Problems) -> None:
    groups = near_names(names)
    if groups:
        shown = describe_near(groups, lambda name: _first_place(name, splits, column), "labels")
        problems.add(lambda: f"Column {column!r} has labels that look alike: {shown}. {LABELS_REMEDY}")


def _first_place(name: str, splits: Sequence[Split], column: str) -> str:
    for split in splits:
        for row, cell in enumerate(split.column(column)):
            if name == cell or (isinstance(cell, list) and name in cell):
                return split.row(row)
    raise AssertionError(f"{name!r} was read from these splits")


def _warn_of_gaps(column: str, values: Iterable[int], count: int) -> None:
    used = len({value for value in values if value >= 0})
    if used < count:
        _logger.warning(
            f"Column {column!r} has {used} of the numbers 0 to {count - 1}, and the head gets {count} labels. If the "
            "numbers do not count labels from 0, write them as texts."
        )


def _in_order(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=int) if all(map(_is_number, names)) else sorted(names))


def _is_number(name: str) -> bool:
    """Whether a name is a whole number as Python writes it: 10, not 010."""
    return name.isascii() and name.isdecimal() and len(name) < 19 and name == str(int(name))


def _type_names(values: Iterable[Any]) -> str:
    return " and ".join(sorted({type(value).__name__ for value in values})) or "nothing but nulls"


def label_index(spec: TaskSpec, class_names: tuple[str, ...] | None) -> Callable[[Any], int]:
    """Return the function from a value of a label column to its number in `label_names`.

    Args:
        spec (`TaskSpec`): has the names.
        class_names (*tuple* of `str`, *optional*): those of the column, if it is a `ClassLabel`.

    Raises:
        ValueError: (from the returned function) if a value is no label.
    """
    names = spec.label_names or ()
    position = {name: number for number, name in enumerate(names)}
    is_numbered = any(map(_is_number, names))

    def index(value: Any) -> int:
        if value is None:
            raise ValueError("the label is null")
        if value == "":
            raise ValueError("the cell is empty; each row needs a label")
        if isinstance(value, int):
            if class_names is None:
                if value < 0:
                    raise ValueError(f"label {value}: labels are numbered from 0; write them as texts, such as '-1'")
                if value >= len(names):
                    raise ValueError(
                        f"label {value} is out of range, there are {len(names)} labels (0 to {len(names) - 1})"
                    )
                return int(value)
            # A ClassLabel column numbers its own names, whose order need not be that of label_names.
            if not 0 <= value < len(class_names):
                raise ValueError(f"label {value} is out of range, the column has {len(class_names)} classes")
            value = class_names[value]
        if not isinstance(value, str):
            raise ValueError(f"a label must be a name or a whole number, found {value!r} ({type(value).__name__})")
        if value not in position and not is_numbered and _is_number(value) and int(value) < len(names):
            return int(value)  # files have names alone, and these are numbers of names
        if value not in position:
            known = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            raise ValueError(f"unknown label {value!r}; label_names are {known}")
        return position[value]

    return index
