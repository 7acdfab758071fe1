"""Splits of a data set: the columns that a spec names, and the task of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.conversations import as_texts
from hf_clamu.tasks.kinds import traits_of
from hf_clamu.tasks.reading.files import DataFile, place_in
from hf_clamu.tasks.reading.problems import BATCH_ROWS, Problems, complete_rows
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["Split", "open_split", "rows_of_tasks", "with_form"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """One split of a data set, its needed columns only, and the task id of each row.

    Args:
        name (`str`): "train", "validation" or "test".
        dataset (`datasets.Dataset`): rows stay where they are (on disk, if they were) until a task is encoded.
        task_ids (*list* of `str`): one per row; "" where it is none, which is a problem that was noted.
        class_names (*tuple* of `str`, *optional*): names of a `ClassLabel` column, or of a column of lists of them.
        files (*tuple* of `DataFile`): the files that the rows came from.
        kept (*list* of `int`, *optional*): numbers of the rows in the data as given, if some are left out.
    """

    name: str
    dataset: Any
    task_ids: list[str]
    class_names: tuple[str, ...] | None
    files: tuple[DataFile, ...] = ()
    kept: list[int] | None = None

    def column(self, name: str) -> list[Any]:
        """Return one column as Python objects."""
        return list(self.dataset.select_columns([name])[:][name])

    def row(self, number: int) -> str:
        """Name a row: by its place in a file, or by its number, from 0, in the split that the user gave."""
        number = number if self.kept is None else self.kept[number]
        place = place_in(self.files, number)
        if place is not None:
            return place
        return f"row {number}" if self.name == "train" else f"row {number} of the {self.name} split"

    def location(self, task_id: str, column: str | None, row: int) -> str:
        """Say where a bad value is."""
        task = f"Task {task_id!r}, column" if task_id else "Column"
        return f"{task} {column!r}, {self.row(row)}"


def open_split(name: str, dataset: Any, spec: TaskSpec, problems: Problems, files: tuple[DataFile, ...] = ()) -> Split:
    """Check that the columns exist and that task ids are strings, and leave incomplete rows out if the spec says so.

    Args:
        name (`str`): name of the split.
        dataset (`datasets.Dataset`): any format; it is read as plain Python objects.
        spec (`TaskSpec`): which column is which.
        problems (`Problems`): gets each task id that is not a non-empty string.
        files (*tuple* of `DataFile`): the files that the rows came from.

    Raises:
        TaskDataError: if a column is missing, or there are no rows.
    """
    for column, field in spec.columns.items():
        if column not in dataset.column_names:
            raise TaskDataError(
                f"The {name} split has no column {column!r} ({field}); it has {', '.join(dataset.column_names)}."
            )
    if len(dataset) == 0:
        raise TaskDataError(f"The {name} split has no rows, so there are no tasks.")
    dataset = _transformed(dataset, spec, name)
    dataset = dataset.with_format(None).select_columns(sorted(spec.columns))
    kept = complete_rows(dataset, spec, name)
    if kept is not None:
        dataset = dataset.select(kept)
    feature = dataset.features.get(spec.label_column or spec.tags_column)
    class_names = getattr(getattr(feature, "feature", feature), "names", None)
    split = Split(
        name=name,
        dataset=dataset,
        task_ids=[],
        class_names=None if class_names is None else tuple(class_names),
        files=files,
        kept=kept,
    )
    for row, value in enumerate(split.column(spec.task_column)):
        task_id = spec.task_id(value) if isinstance(value, str) else ""
        if not task_id:
            problems.add(partial(_no_task_id, split, spec.task_column, row, value), value=value)
        split.task_ids.append(task_id)
    return split


def with_form(spec: TaskSpec, splits: Sequence[Split]) -> TaskSpec:
    """Return the spec with `conversational` set, if its prompts or completions are lists of messages.

    Args:
        spec (`TaskSpec`): which column is which.
        splits (*sequence* of `Split`): all rows.

    Raises:
        RecipeError: if settings do not go with what the rows are.
    """
    columns = [column for column in (spec.prompt_column, spec.completion_column) if column is not None]
    if not columns or spec.conversational:
        return spec
    for split in splits:
        for batch in split.dataset.select_columns(columns).iter(batch_size=BATCH_ROWS):
            cells = [value for column in columns for value in batch[column] if value is not None]
            if cells:
                if traits_of(spec.kind).takes_conversations and any(isinstance(value, list) for value in cells):
                    return dataclasses.replace(spec, conversational=True)
                spec.require_texts()
                return spec
    return spec


def _transformed(dataset: Any, spec: TaskSpec, name: str) -> Any:
    """Apply the transform that was set on a data set (`set_transform`, `with_transform`): it is part of the data."""
    from datasets import Dataset, concatenate_datasets

    columns = sorted(spec.columns)
    if dataset.format["type"] != "custom":
        return dataset
    parts = []
    for batch in dataset.iter(batch_size=BATCH_ROWS):
        missing = [column for column in columns if column not in batch]
        if missing:
            raise TaskDataError(f"The transform of the {name} split gives no column {missing[0]!r}.")
        try:
            part = Dataset.from_dict({column: _kept(batch[column], column, spec) for column in columns})
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


def _kept(values: Any, column: str, spec: TaskSpec) -> Any:
    """Return the cells of a column; messages so that they do not get keys of other rows in a table."""
    return list(map(as_texts, values)) if column in spec.message_columns else values


def _no_task_id(split: Split, column: str, row: int, task_id: Any) -> str:
    shown = "an empty cell" if task_id in ("", None) else f"{task_id!r} ({type(task_id).__name__})"
    hint = ""
    if isinstance(task_id, (int, float)):
        hint = (
            f" Cast the column: dataset.cast_column({column!r}, datasets.Value('string')). Where ids begin with "
            "zeros, which numbers have lost, give the path of the file instead: there ids are read as text."
        )
    return f"{split.location('', column, row)}: a task id must be a non-empty string, found {shown}.{hint}"


def rows_of_tasks(split: Split) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the row numbers of each task."""
    rows: dict[str, list[int]] = {}
    for row, task_id in enumerate(split.task_ids):
        rows.setdefault(task_id, []).append(row)
    return {task_id: np.asarray(numbers, dtype=np.int64) for task_id, numbers in rows.items()}
