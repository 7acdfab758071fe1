"""Tables from files: CSV, JSON, JSON lines and Parquet, read without a cache that could go stale.

Only the columns that a `TaskSpec` names are read, whatever else is in a file. Ids and labels are names: they are text,
whatever they look like, so that 007 and true stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.csv_file import csv_line, csv_rows, read_csv
from hf_clamu.tasks.reading.json_file import json_line, json_rows, read_json
from hf_clamu.tasks.reading.parquet_file import parquet_rows, read_parquet
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["SUFFIXES", "DataFile", "place_in", "read_files", "read_rows"]

_Read = TypeVar("_Read")

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that was read.

    Args:
        path (`Path`): where it is.
        num_rows (`int`): the rows that came from it.
    """

    path: Path
    num_rows: int

    def place(self, row: int) -> str:
        """Say where a row is, the first being 0: on a line where the file has lines, counted as editors count them.

        The file is read again for it: this is for messages.
        """
        lines = {".csv": csv_line, ".json": json_line, ".jsonl": json_line}.get(self.path.suffix.lower())
        line = lines(self.path, row) if lines is not None and self.path.is_file() else None
        where = f"row {row} (the first is 0)" if line is None else f"line {line}"
        return f"{where} of {self.path.name}"


def place_in(files: Sequence[DataFile], row: int) -> str | None:
    """Say where a row of files that were read one after the other is; `None` if it is of none of them."""
    for file in files:
        if row < file.num_rows:
            return file.place(row)
        row -= file.num_rows
    return None


def read_files(paths: Sequence[Path], spec: TaskSpec, *, partial: bool = False) -> tuple[Any, tuple[DataFile, ...]]:
    """Read files one after the other into one data set of the columns that a spec names.

    Args:
        paths (*sequence* of `Path`): files ending in .csv, .json, .jsonl or .parquet.
        spec (`TaskSpec`): names the columns.
        partial (`bool`): columns may be missing.

    Returns:
        *tuple*: all rows (`datasets.Dataset`), and the files.

    Raises:
        TaskDataError: if a file is missing, is no table, lacks a column, or the files do not fit together.
    """
    from datasets import concatenate_datasets

    if not paths:
        raise TaskDataError("The list of data files is empty.")
    tables = [_read_file(path, spec, partial) for path in paths]
    files = tuple(DataFile(path=path, num_rows=len(table)) for path, table in zip(paths, tables, strict=True))
    if len(tables) == 1:
        return tables[0], files
    try:
        return concatenate_datasets(tables), files
    except (ValueError, TypeError) as error:
        names = ", ".join(path.name for path in paths)
        raise TaskDataError(f"The columns of {names} do not fit together: {error}") from error


def read_rows(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], tuple[DataFile, ...]]:
    """Read files one after the other with all their columns, for those who do not know yet which they need.

    Args:
        paths (*sequence* of `Path`): files ending in .csv, .json, .jsonl or .parquet.

    Returns:
        *tuple*: all rows, with the values as they are in the files (of CSV: texts), and the files.

    Raises:
        TaskDataError: if a file is missing or is no table.
    """
    readers = {".csv": csv_rows, ".parquet": parquet_rows}
    parts = [_readable(path, readers.get(path.suffix.lower(), json_rows)) for path in paths]
    files = tuple(DataFile(path=path, num_rows=len(part)) for path, part in zip(paths, parts, strict=True))
    return [row for part in parts for row in part], files


def _read_file(path: Path, spec: TaskSpec, partial: bool) -> Any:
    readers: Mapping[str, Callable[[Path, TaskSpec, bool], Any]] = {".csv": read_csv, ".parquet": read_parquet}
    read = readers.get(path.suffix.lower(), read_json)
    return _readable(path, lambda path: read(path, spec, partial))


def _readable(path: Path, read: Callable[[Path], _Read]) -> _Read:
    """Return what a reader makes of a file, or say which file it cannot read and why."""
    if path.suffix.lower() not in SUFFIXES:
        raise TaskDataError(f"Cannot read {path.name!r}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskDataError(f"There is no data file {path}.")
    kind = path.suffix[1:].upper()
    try:
        return read(path)
    except TaskDataError as error:
        raise TaskDataError(f"{path.name}: {error}") from error
    # Of Arrow, JSON, UTF-8 and the disk; Arrow's are ValueErrors, TypeErrors, KeyErrors and more.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, NotImplementedError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        if kind == "CSV" and "utf" in problem.lower():
            problem += ". Save it as UTF-8; spreadsheets call that CSV UTF-8"
        raise TaskDataError(f"Cannot read {path.name!r} as {kind}: {problem}") from error
