"""Reading and checking of columns: which rows belong to which task, and whether they can be used at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.spec import TaskSpec

__all__ = [
    "Label",
    "Split",
    "check_examples",
    "open_split",
    "require_words",
    "rows_of_tasks",
    "with_label_names",
]

# The checked label of a row: one, or one for each word.
Label = int | tuple[int, ...]

_BATCH_ROWS = 1000
# Tokenizers need hundreds of bytes for a character, and abort the process where memory ends.
_LONGEST_TEXT = 2**22


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """One split of a data set, its needed columns only, and the task id of each row.

    Args:
        name (`str`): "train", "validation" or "test".
        dataset (`datasets.Dataset`): rows stay where they are (on disk, if they were) until a task is encoded.
        task_ids (*list* of `str`): one per row.
        class_names (*tuple* of `str`, *optional*): names of a `ClassLabel` column, or of a column of lists of them.
        files (*tuple* of pairs of `str` and `int`): the files that the rows came from, and how many came from each.
    """

    name: str
    dataset: Any
    task_ids: list[str]
    class_names: tuple[str, ...] | None
    files: tuple[tuple[str, int], ...] = ()

    def column(self, name: str) -> list[Any]:
        """Return one column as Python objects."""
        return list(self.dataset.select_columns([name])[:][name])

    def row(self, number: int) -> str:
        """Name a row: by its file, or by the split that the user gave; both count from 0."""
        first = 0
        for name, size in self.files:
            if number < first + size:
                return f"row {number - first} of {name} (the first is 0)"
            first += size
        return f"row {number}" if self.name == "train" else f"row {number} of the {self.name} split"

    def place(self, task_id: str, column: str | None, row: int) -> str:
        """Say where a bad value is."""
        return f"Task {task_id!r}, column {column!r}, {self.row(row)}"


def open_split(name: str, dataset: Any, spec: TaskSpec, files: tuple[tuple[str, int], ...] = ()) -> Split:
    """Check that the columns exist and that task ids are strings.

    Args:
        name (`str`): name of the split.
        dataset (`datasets.Dataset`): any format; it is read as plain Python objects.
        spec (`TaskSpec`): which column is which.
        files (*tuple* of pairs of `str` and `int`): the files that the rows came from, and how many came from each.

    Raises:
        TaskDataError: if a column is missing, there are no rows, or a task id is not a non-empty string.
    """
    for column, field in spec.columns.items():
        if column not in dataset.column_names:
            raise TaskDataError(
                f"The {name} split has no column {column!r} ({field}); it has {', '.join(dataset.column_names)}."
            )
    if len(dataset) == 0:
        raise TaskDataError(f"The {name} split has no rows, so there are no tasks.")
    dataset = _transformed(dataset, sorted(spec.columns), name)
    dataset = dataset.with_format(None).select_columns(sorted(spec.columns))
    feature = dataset.features.get(spec.label_column or spec.tags_column)
    class_names = getattr(getattr(feature, "feature", feature), "names", None)
    split = Split(
        name=name,
        dataset=dataset,
        task_ids=[],
        class_names=None if class_names is None else tuple(class_names),
        files=files,
    )
    for row, task_id in enumerate(split.column(spec.task_column)):
        _check_task_id(task_id, spec.task_column, split.row(row))
        split.task_ids.append(task_id)
    return split


def _transformed(dataset: Any, columns: list[str], name: str) -> Any:
    """Apply the transform that was set on a data set (`set_transform`, `with_transform`): it is part of the data."""
    from datasets import Dataset, concatenate_datasets

    if dataset.format["type"] != "custom":
        return dataset
    parts = []
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        missing = [column for column in columns if column not in batch]
        if missing:
            raise TaskDataError(f"The transform of the {name} split gives no column {missing[0]!r}.")
        try:
            part = Dataset.from_dict({column: batch[column] for column in columns})
            for column in columns:  # a transform gives values, and the numbers of a ClassLabel keep their names
                feature = dataset.features.get(column)
                if getattr(feature, "names", None) is not None and part.features[column].dtype.startswith("int"):
                    part = part.cast_column(column, feature)
            parts.append(part)
        except (ValueError, TypeError, OverflowError) as error:
            raise TaskDataError(
                f"The transform of the {name} split gives values that make no table ({' '.join(str(error).split())}). "
                "Apply it with map() first."
            ) from error
    return concatenate_datasets(parts)


def _check_task_id(task_id: Any, column: str, row: str) -> None:
    if isinstance(task_id, str) and task_id:
        return
    found = "an empty string" if task_id == "" else f"{task_id!r} ({type(task_id).__name__})"
    hint = ""
    if isinstance(task_id, (int, float)):
        hint = (
            f" Cast the column: dataset.cast_column({column!r}, datasets.Value('string')). Where ids begin with "
            "zeros, which numbers have lost, give the path of the file instead: there ids are read as text."
        )
    raise TaskDataError(f"Column {column!r}, {row}: a task id must be a non-empty string, found {found}.{hint}")


def rows_of_tasks(split: Split) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the row numbers of each task."""
    rows: dict[str, list[int]] = {}
    for row, task_id in enumerate(split.task_ids):
        rows.setdefault(task_id, []).append(row)
    return {task_id: np.asarray(numbers, dtype=np.int64) for task_id, numbers in rows.items()}


def with_label_names(spec: TaskSpec, splits: Sequence[Split]) -> TaskSpec:
    """Return the spec with its label names filled in, if it has labels and does not name them yet.

    They come from a `ClassLabel` column, else from the sorted strings (by number where all are whole numbers), or are
    "0" to the greatest number.
    """
    column = spec.label_column or spec.tags_column
    if column is None or spec.label_names is not None:
        return spec
    for split in splits:
        if split.class_names is not None:
            return dataclasses.replace(spec, label_names=split.class_names)
    found = (value for split in splits for value in split.column(column))
    if spec.tags_column is not None:
        # What is no list is refused later, where its row can be named.
        found = (value for tags in found for value in (tags if isinstance(tags, list) else [tags]))
    values = [value for value in found if value is not None and value != ""]
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


def check_examples(split: Split, spec: TaskSpec) -> Sequence[Label] | None:
    """Check texts, words, labels and ids of all rows, so that bad data show before the first task is trained.

    Returns:
        *sequence* of `Label`, *optional*: the label of each row, or those of its words, if there are labels.

    Raises:
        TaskDataError: naming task, column and row of the first bad value.
    """
    for column in (spec.text_column, spec.prompt_column, spec.completion_column):
        if column is not None:
            _check_texts(split, column)
    if spec.tags_column is not None:
        return _tags(split, spec)
    if spec.label_column is None:
        return None
    index = _label_index(spec, split)
    labels = []
    for row, (task_id, value) in enumerate(zip(split.task_ids, split.column(spec.label_column), strict=True)):
        try:
            labels.append(index(value))
        except ValueError as error:
            raise TaskDataError(f"{split.place(task_id, spec.label_column, row)}: {error}.") from error
    return labels


def _check_texts(split: Split, column: str) -> None:
    # Texts may be many times larger than memory, so they pass by in batches and are not kept.
    row = 0
    for batch in split.dataset.select_columns([column]).iter(batch_size=_BATCH_ROWS):
        for text in batch[column]:
            if not isinstance(text, str):
                where = split.place(split.task_ids[row], column, row)
                raise TaskDataError(f"{where}: not a text but {_shown(text)}.")
            if len(text) > _LONGEST_TEXT:
                where = split.place(split.task_ids[row], column, row)
                raise TaskDataError(
                    f"{where}: a text of {len(text):,} characters, and tokenizers take {_LONGEST_TEXT:,} at most. Cut "
                    "it into rows."
                )
            row += 1


def _tags(split: Split, spec: TaskSpec) -> list[Label]:
    tokens_column, tags_column = str(spec.tokens_column), str(spec.tags_column)
    index = _label_index(spec, split)
    labels: list[Label] = []
    # Batch by batch, as texts are.
    for batch in split.dataset.select_columns([tokens_column, tags_column]).iter(batch_size=_BATCH_ROWS):
        for words, tags in zip(batch[tokens_column], batch[tags_column], strict=True):
            row = len(labels)
            column, task_id = tokens_column, split.task_ids[row]
            try:
                require_words(words)
                column = tags_column
                if not isinstance(tags, list):
                    raise ValueError(f"expected a list of labels, found {_shown(tags)}")
                if len(tags) != len(words):
                    raise ValueError(f"{len(tags)} labels for {len(words)} words; give one label for each word")
                labels.append(tuple(index(tag) for tag in tags))
            except ValueError as error:
                raise TaskDataError(f"{split.place(task_id, column, row)}: {error}.") from error
    return labels


def require_words(words: Any) -> None:
    """Raise a `ValueError` unless this is a list of words that is not empty."""
    if isinstance(words, str):
        raise ValueError(
            f"expected a list of words, found the text {words!r}; split it into words (CSV holds no lists: use JSON "
            "lines or Parquet)"
        )
    if not isinstance(words, list):
        raise ValueError(f"expected a list of words, found {_shown(words)}")
    if not words:
        raise ValueError("the list of words is empty")
    for number, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"word {number} is not a text but {_shown(word)}")


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _label_index(spec: TaskSpec, split: Split) -> Callable[[Any], int]:
    names = spec.label_names or ()
    position = {name: number for number, name in enumerate(names)}
    is_numbered = any(map(_is_number, names))

    def index(value: Any) -> int:
        if value is None:
            raise ValueError("the label is null")
        if isinstance(value, int):
            if split.class_names is None:
                if not 0 <= value < len(names):
                    raise ValueError(
                        f"label {value} is out of range, there are {len(names)} labels (0 to {len(names) - 1})"
                    )
                return int(value)
            # A ClassLabel column numbers its own names, whose order need not be that of label_names.
            if not 0 <= value < len(split.class_names):
                raise ValueError(f"label {value} is out of range, the column has {len(split.class_names)} classes")
            value = split.class_names[value]
        if not isinstance(value, str):
            raise ValueError(f"a label must be a name or a whole number, found {value!r} ({type(value).__name__})")
        if value not in position and not is_numbered and _is_number(value) and int(value) < len(names):
            return int(value)  # files have names alone, and these are numbers of names
        if value not in position:
            raise ValueError(f"unknown label {value!r}; label_names are {', '.join(names)}")
        return position[value]

    return index
