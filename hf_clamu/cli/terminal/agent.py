"""Results as plain lines and tables, for programs that read text: nothing cut off, nothing to guess.

A line is `path=value`. A list of objects is a table of tab-separated values under a line `[path]`. A value is JSON,
but a string that can be taken for nothing else stands without quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["agent_text"]

_PLAIN_KEY = re.compile(r"[\w-]+")
_NUMBER = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
# What JSON starts with, or is as a whole; and white space at an end.
_LIKE_JSON = re.compile(rf'["\[{{\s].*|.*\s|{_NUMBER}|null|true|false|NaN|-?Infinity|', flags=re.DOTALL)


def agent_text(payload: Mapping[str, Any]) -> str:
    """Return the result of a command, all of it.

    Args:
        payload (*mapping*): what `--format json` prints.
    """
    lines, tables = _parts(payload, "")
    return "\n".join([*lines, *tables])


def _parts(values: Mapping[str, Any], path: str) -> tuple[list[str], list[str]]:
    """Return the lines of a mapping, and its tables, which come after all lines."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in values.items():
        name = path + (key if _PLAIN_KEY.fullmatch(key) else _json(key))
        if isinstance(value, Mapping) and value:
            more = _parts(value, f"{name}.")
            lines += more[0]
            tables += more[1]
        elif _is_table(value):
            tables += [f"[{name}]", *_table(value)]
        else:
            lines.append(f"{name}={_text(value)}")
    return lines, tables


def _is_table(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and bool(value) and all(isinstance(row, Mapping) and row for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield "\t".join(map(_text, columns))
    for row in rows:
        # A row may lack what others have.
        yield "\t".join(_text(row[column]) if column in row else "" for column in columns)


def _text(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and not _LIKE_JSON.fullmatch(value):
        return value
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
