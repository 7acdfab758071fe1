"""Rows of CSV, which has no types: everything is text."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.tables import columns_to_read, require_once
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["csv_line", "csv_rows", "read_csv"]

# A row of a CSV file must fit into a block.
_CSV_BLOCK = 2**26
_SEPARATORS = (",", ";", "\t")


def read_csv(path: Path, spec: TaskSpec, partial: bool) -> Any:
    """Return the wanted columns as a `datasets.Dataset` of texts."""
    from datasets import Dataset

    names, separator = _header(path)
    columns = columns_to_read(names, spec, partial)
    if not columns:
        raise TaskDataError(f"the file has none of the columns {', '.join(spec.columns)}.")
    return Dataset(_table(path, columns, separator))


def csv_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows with all columns, as texts."""
    names, separator = _header(path)
    require_once(names, names)
    rows: list[dict[str, Any]] = _table(path, names, separator).to_pylist()
    return rows


def _header(path: Path) -> tuple[list[str], str]:
    """Return the names of the columns, and what separates them.

    It is a comma. Where the first line names one column by commas, and several by semicolons (as spreadsheets write
    in many languages) or tabs, it is that.
    """
    names: list[str] = []
    for separator in _SEPARATORS:
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                found = next(csv.reader(file, delimiter=separator))
            except StopIteration:
                raise TaskDataError("the file is empty; its first line names the columns.") from None
            except csv.Error as error:
                raise TaskDataError(f"the first line does not name columns ({error}).") from error
        if len(found) > 1:
            return found, separator
        names = names or found
    return names, _SEPARATORS[0]


def _table(path: Path, columns: list[str], separator: str) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow

    try:
        return arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(block_size=min(max(path.stat().st_size, 2**20), _CSV_BLOCK)),
            parse_options=arrow.ParseOptions(newlines_in_values=True, delimiter=separator),
            # CSV has no types, and texts like "null" or 2020-01-01 must stay what they are.
            convert_options=arrow.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), null_values=[""]
            ),
        )
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise TaskDataError(
            f"a row is larger than {_CSV_BLOCK // 2**20} MiB, or a quotation mark is not closed. Write it as JSON "
            "lines, or close it."
        ) from error


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the limit on the length of a cell, which all readers of Python's `csv` share: texts may be long."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def csv_line(path: Path, row: int) -> int | None:
    """Return the line on which a row begins; the first is 1, and has the names of the columns."""
    try:
        with _cells_of_any_length(), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_header(path)[1])
            count, begin = -1, 1
            for cells in reader:
                if cells:  # an empty line is no row
                    if count == row:
                        return begin
                    count += 1
                begin = reader.line_num + 1
    except (OSError, ValueError, csv.Error, TaskDataError):
        pass
    return None
