"""Labels: their names, and the number that each value of a column stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.splits import Split
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["Label", "label_index", "with_label_names"]

# The checked label of a row: one, or one for each word.
Label = int | tuple[int, ...]


def with_label_names(spec: TaskSpec, splits: Sequence[Split]) -> TaskSpec:
    """Return the spec with its label names filled in, if it has labels and does not name them yet.

    They come from a `ClassLabel` column; otherwise they are the sorted strings (by number where all are whole
    numbers), or "0" to the greatest number.
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
        return dataclasses.replace(spec, label_names=_in_order(set(values)))
    if values and all(isinstance(value, int) for value in values):
        return dataclasses.replace(spec, label_names=tuple(str(n) for n in range(max(0, *values) + 1)))
    role, many = ("label_column", "") if spec.tags_column is None else ("tags_column", "lists of ")
    raise TaskDataError(
        f"Column {column!r} must hold {many}strings or whole numbers from 0 to be a {role}; found "
        f"{_type_names(values)}."
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
        if isinstance(value, int):
            if class_names is None:
                if not 0 <= value < len(names):
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
            raise ValueError(f"unknown label {value!r}; label_names are {', '.join(names)}")
        return position[value]

    return index
