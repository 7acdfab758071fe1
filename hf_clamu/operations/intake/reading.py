"""Requests in a file: CSV from a spreadsheet, or JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from hf_clamu.errors import TaskDataError
from hf_clamu.operations.intake.book import Asked
from hf_clamu.operations.lifecycle.queue import parse_requests

__all__ = ["MOST_BYTES", "read_asked"]

MOST_BYTES = 1 << 22
_COLUMNS = ("task", "id", "received", "due")


def read_asked(name: str, data: bytes) -> list[Asked]:
    """Return what the rows of a file ask for.

    A CSV has a column `task`, and may have `id` (rows with the same one are one request), `received` and `due`
    (2026-01-31); commas or semicolons separate. Any other ending is read as JSON lines, see `read_requests`.

    Args:
        name (`str`): of the file, for messages.
        data (`bytes`): its content, at most 4 MiB.

    Raises:
        TaskDataError: if it cannot be used; the message names the line.
    """
    if len(data) > MOST_BYTES:
        raise TaskDataError(f"{name} has {len(data):,} bytes; at most {MOST_BYTES:,} are read. Cut it into parts.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{name} is no text in UTF-8 ({error}). Save it as CSV UTF-8.") from None
    if not name.lower().endswith(".csv"):
        found = [Asked(name=one.name, tasks=one.tasks) for one in parse_requests(text, name)]
    else:
        found = _read_csv(name, text)
    if not found:
        raise TaskDataError(f"{name} holds no request. A CSV has a line 'task', and an id in each line below it.")
    return found


def _read_csv(name: str, text: str) -> list[Asked]:
    head = text.lstrip().split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head and "," not in head else ",", strict=True)
    try:
        columns = {str(column).strip().lower(): column for column in reader.fieldnames or ()}
        if len(columns) < len(reader.fieldnames or ()):
            raise TaskDataError(f"{name}: two columns have the same name in the first line. Rename or remove one.")
        if "task" not in columns:
            raise TaskDataError(
                f"{name}: expected a column 'task' in the first line, found {', '.join(map(repr, columns)) or 'none'}."
            )
        unknown = [column for column in columns if column not in _COLUMNS]
        if unknown:
            known = ", ".join(_COLUMNS)
            raise TaskDataError(f"{name}: the columns are {known}; found {', '.join(map(repr, unknown))}, too.")
        rows = [(reader.line_num, _row(name, reader.line_num, row, columns)) for row in reader]
    except csv.Error as error:
        raise TaskDataError(f"{name}, line {reader.line_num}: {error}.") from None
    return _joined(name, [(line, row) for line, row in rows if any(row.values())])


def _row(name: str, line: int, row: Mapping[str | None, str | None], columns: Mapping[str, str]) -> dict[str, str]:
    if None in row:
        raise TaskDataError(f"{name}, line {line}: it has more cells than the first line.")
    return {key: (row[column] or "").strip() for key, column in columns.items()}


def _joined(name: str, rows: list[tuple[int, dict[str, str]]]) -> list[Asked]:
    """Make one request of the rows that have the same id."""
    requests: dict[str | int, Asked] = {}
    for line, row in rows:
        if not row["task"]:
            raise TaskDataError(f"{name}, line {line}: the cell of 'task' is empty.")
        days = {key: row.get(key) or None for key in ("received", "due")}
        request = row.get("id") or None
        before = requests.get(request or line)
        if before is not None and days != {"received": before.received, "due": before.due}:
            raise TaskDataError(f"{name}, line {line}: request {request!r} has other days than in a line above.")
        tasks = (*(() if before is None else before.tasks), row["task"])
        requests[request or line] = Asked(name=request, tasks=tuple(dict.fromkeys(tasks)), **days)
    return list(requests.values())
