"""Tables from files: CSV, JSON, JSON lines and Parquet, read without a cache that could go stale.

Only the columns that a `TaskSpec` names are read, whatever else is in a file. Ids and labels are names: they are text,
whatever they look like, so that 007 and true stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.csv_file import read_csv
from hf_clamu.tasks.reading.json_file import read_json
from hf_clamu.tasks.reading.parquet_file import read_parquet
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["SUFFIXES", "read_files"]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def read_files(
    paths: Sequence[Path], spec: TaskSpec, *, partial: bool = False
) -> tuple[Any, tuple[tuple[str, int], ...]]:
    """Read files one after the other into one data set of the columns that a spec names.

    Args:
        paths (*sequence* of `Path`): files ending in .csv, .json, .jsonl or .parquet.
        spec (`TaskSpec`): names the columns.
        partial (`bool`): columns may be missing.

    Returns:
        *tuple*: all rows (`datasets.Dataset`), and the name and number of rows of each file.

    Raises:
        TaskDataError: if a file is missing, is no table, lacks a column, or the files do not fit together.
    """
    from datasets import concatenate_datasets

    if not paths:
        raise TaskDataError("The list of data files is empty.")
    tables = [_read_file(path, spec, partial) for path in paths]
    sizes = tuple((path.name, len(table)) for path, table in zip(paths, tables, strict=True))
    if len(tables) == 1:
        return tables[0], sizes
    try:
        return concatenate_datasets(tables), sizes
    except (ValueError, TypeError) as error:
        names = ", ".join(path.name for path in paths)
        raise TaskDataError(f"The columns of {names} do not fit together: {error}") from error


def _read_file(path: Path, spec: TaskSpec, partial: bool) -> Any:
    if path.suffix.lower() not in SUFFIXES:
        raise TaskDataError(f"Cannot read {path.name!r}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskDataError(f"There is no data file {path}.")
    readers = {".csv": read_csv, ".parquet": read_parquet}
    kind = path.suffix[1:].upper()
    try:
        return readers.get(path.suffix.lower(), read_json)(path, spec, partial)
    except TaskDataError as error:
        raise TaskDataError(f"{path.name}: {error}") from error
    # Of Arrow, JSON, UTF-8 and the disk; Arrow's are ValueErrors, TypeErrors, KeyErrors and more.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, NotImplementedError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise TaskDataError(f"Cannot read {path.name!r} as {kind}: {problem}") from error
