"""The forms in which users give data: data sets, data frames, rows and paths of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks.conversations import as_texts
from hf_clamu.tasks.reading.files import DataFile, read_files
from hf_clamu.tasks.reading.problems import Problems
from hf_clamu.tasks.reading.splits import Split, open_split
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["open_splits", "tables_of"]


def open_splits(dataset: Any, spec: TaskSpec, problems: Problems) -> list[Split]:
    """Open the splits of data in any form that users give: "train", and those kept out of training if there are any.

    Args:
        dataset: what `TaskDataset.from_dataset` takes.
        spec (`TaskSpec`): which column is which.
        problems (`Problems`): gets those of task ids.

    Raises:
        RecipeError: if both the data and the spec keep examples out of training.
        TaskDataError: if these are no data, or a column is missing.
    """
    return [open_split(name, rows, spec, problems, files) for name, rows, files in tables_of(dataset, spec)]


def tables_of(dataset: Any, spec: TaskSpec, *, partial: bool = False) -> list[tuple[str, Any, tuple[DataFile, ...]]]:
    """Return the splits of data in any form that users give as `datasets.Dataset`, each with its name and files.

    Args:
        dataset, spec: as in `open_splits`.
        partial (`bool`): columns may be missing in files.

    Raises:
        RecipeError, TaskDataError: as in `open_splits`.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, (str, Path)):
        dataset = [dataset]
    if isinstance(dataset, (list, tuple)) and dataset and all(isinstance(row, Mapping) for row in dataset):
        rows = list(dataset)
        dataset = _table_of("a list of rows", lambda: Dataset.from_list([_kept(row, spec) for row in rows]))
    if type(dataset).__name__ == "DataFrame" and hasattr(dataset, "to_dict"):
        frame = dataset
        dataset = _table_of("a DataFrame", lambda: Dataset.from_pandas(_kept_frame(frame, spec), preserve_index=False))
    if isinstance(dataset, (list, tuple)) and all(isinstance(path, (str, Path)) for path in dataset):
        rows, files = read_files([Path(path) for path in dataset], spec, partial=partial)
        return [("train", rows, files)]
    if isinstance(dataset, Dataset):
        return [("train", dataset, ())]
    if type(dataset).__name__ in ("IterableDataset", "IterableDatasetDict"):
        raise TaskDataError(
            "A stream can be read once and in one order, and tasks are read many times. Give a data set that is "
            "loaded (streaming=False), or datasets.Dataset.from_list(list(stream))."
        )
    if not isinstance(dataset, DatasetDict):
        raise TaskDataError(
            "Expected a datasets.Dataset, a datasets.DatasetDict, a DataFrame, rows or paths of CSV, JSON, JSONL or "
            "Parquet files, "
            f"found {type(dataset).__name__}."
        )
    if "train" not in dataset:
        raise TaskDataError(f"The data set has no 'train' split, only {', '.join(dataset) or 'nothing'}.")
    held_out = [name for name in ("validation", "test") if name in dataset][:1]
    if held_out and spec.validation_fraction > 0:
        raise RecipeError(
            f"validation_fraction must be 0 here: the data set brings its own {held_out[0]!r} split. "
            "Pass dataset['train'] alone to split it."
        )
    return [("train", dataset["train"], ()), *((name, dataset[name], ()) for name in held_out)]


def _kept(row: Mapping[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """Return a row whose messages do not get keys of other rows in a table."""
    return {**row, **{column: as_texts(row[column]) for column in spec.message_columns if column in row}}


def _kept_frame(frame: Any, spec: TaskSpec) -> Any:
    columns = [column for column in sorted(spec.message_columns) if column in frame]
    if not columns:
        return frame
    return frame.assign(**{column: frame[column].map(as_texts) for column in columns})


def _table_of(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise TaskDataError(
            f"The columns of {what} make no table: {' '.join(str(error).split())}. Give the values of a column one "
            "type."
        ) from error
