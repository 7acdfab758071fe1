"""Rows of JSON and JSON lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.tables import TableBuilder, columns_to_read
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["json_line", "json_rows", "read_json"]


def read_json(path: Path, spec: TaskSpec, partial: bool) -> Any:
    """Return the wanted columns as a `datasets.Dataset`; a file has one object per line, or a list of them."""
    import pyarrow as pa
    from datasets import Dataset

    names: dict[str, None] = {}
    builder = TableBuilder(spec)
    for position, row in _json_rows(path):
        names.update(dict.fromkeys(row))
        builder.add(row, position)
    if not builder.num_rows:
        raise TaskDataError("the file has no rows.")
    columns = columns_to_read(list(names), spec, partial)
    if not columns:
        raise TaskDataError(f"the rows have none of the columns {', '.join(spec.columns)}.")
    tables = [table.select(columns) for table in builder.tables()]
    return Dataset(pa.concat_tables(tables, promote_options="permissive").combine_chunks())


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows with all columns, as they are."""
    return [row for _, row in _json_rows(path)]


def json_line(path: Path, row: int) -> int | None:
    """Return the line of a row, the first is 1; `None` for the rows of a list, which may share lines."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = (number for number, line in enumerate(file, start=1) if line.strip())
        return None if _is_list(file) else next(itertools.islice(lines, row, None), None)


def _is_list(file: TextIO) -> bool:
    """Whether the first character of a file says that it holds a list; reading starts again after it."""
    start = " "
    while start and not start.strip():
        start = file.readline()
    file.seek(0)
    return start.lstrip().startswith("[")


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its place; no more than one line, or the text of a list, is in memory."""
    for position, row in _json_values(path):
        if not isinstance(row, dict):
            raise TaskDataError(f"{position}: expected one object per row, either one per line or in a list.")
        yield position, row


def _json_values(path: Path) -> Iterator[tuple[str, Any]]:
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        if _is_list(file):
            yield from _rows_of_list(file.read(), decoder)
            return
        # Not str.splitlines: JSON strings may hold U+2028 and its like.
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = decoder.decode(line.strip())
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                yield f"line {number}", row


def _rows_of_list(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any]]:
    position, number, space = text.index("[") + 1, 0, " \t\r\n"

    def skip_space(position: int) -> int:
        while position < len(text) and text[position] in space:
            position += 1
        return position

    position = skip_space(position)
    while text[position : position + 1] != "]":
        row, position = decoder.raw_decode(text, position)
        yield f"row {number}", row
        number += 1
        position = skip_space(position)
        if text[position : position + 1] == ",":
            position = skip_space(position + 1)
        elif text[position : position + 1] != "]":
            raise TaskDataError(f"expected a comma or the end of the list after row {number - 1}.")
    if text[position + 1 :].strip():
        raise TaskDataError("there is more text after the end of the list.")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return row
