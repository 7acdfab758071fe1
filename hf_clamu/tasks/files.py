"""Tables from files: CSV, JSON, JSON lines and Parquet, read without a cache that could go stale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["SUFFIXES", "read_files"]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def read_files(paths: Sequence[Path], spec: TaskSpec) -> Any:
    """Read files one after the other into one data set.

    Args:
        paths (*sequence* of `Path`): files ending in .csv, .json, .jsonl or .parquet.
        spec (`TaskSpec`): names the columns that a CSV file, which has no types, is to be read as strings.

    Returns:
        `datasets.Dataset`: all rows.

    Raises:
        TaskDataError: if a file is missing, is no table, or the files do not fit together.
    """
    from datasets import concatenate_datasets

    if not paths:
        raise TaskDataError("The list of data files is empty.")
    tables = [_read_file(path, spec) for path in paths]
    if len(tables) == 1:
        return tables[0]
    try:
        return concatenate_datasets(tables)
    except (ValueError, TypeError) as error:
        names = ", ".join(path.name for path in paths)
        raise TaskDataError(f"The columns of {names} do not fit together: {error}") from error


def _read_file(path: Path, spec: TaskSpec) -> Any:
    if path.suffix not in SUFFIXES:
        raise TaskDataError(f"Cannot read {path.name!r}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskDataError(f"There is no data file {path}.")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    try:
        return readers.get(path.suffix, _read_json)(path, spec)
    # Arrow's, JSON's and UTF-8's errors are all ValueErrors.
    except (OSError, ValueError) as error:
        raise TaskDataError(f"Cannot read {path.name!r} as {path.suffix[1:].upper()}: {error}") from error


def _read_csv(path: Path, spec: TaskSpec) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset
    from pyarrow import csv

    # Ids like 007 and texts like "null" or 2020-01-01 must stay the text that they are.
    strings = [spec.task_column, spec.id_column, spec.cluster_column]
    strings += [spec.text_column, spec.prompt_column, spec.completion_column, spec.tokens_column, spec.tags_column]
    table = csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={name: pa.string() for name in strings if name is not None}, null_values=[""]
        ),
    )
    return Dataset(table)


def _read_parquet(path: Path, spec: TaskSpec) -> Any:
    from datasets import Dataset
    from pyarrow import parquet

    return Dataset(parquet.read_table(path))


def _read_json(path: Path, spec: TaskSpec) -> Any:
    from datasets import Dataset

    text = path.read_text(encoding="utf-8")
    # Not str.splitlines: JSON strings may hold U+2028 and its like.
    rows = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(r) for r in text.split("\n") if r.strip()]
    )
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object per row, either one per line or in a list")
    if not rows:
        raise ValueError("the file has no rows")
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
