"""Differences of two records, or of two ledgers of definitions."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

__all__ = ["compare_definitions", "differences"]

# What a change of words may change; `compare --texts` counts them, too.
SOFT = ("texts", "annotations")
_NEVER = ("seconds", "about")
_LONGEST = 160


def differences(first: Any, second: Any, *, texts: bool = False, leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for each difference of two records.

    Args:
        first, second (*JSON-able*): records.
        texts (`bool`): whether messages and annotations count.
        leave_out (*tuple* of `str`): patterns of `section/cell/step/file` that do not count.
    """
    for section in sorted({*first, *second}):
        if section in _NEVER or (section in SOFT and not texts):
            continue
        for path, one, other in _walk(first.get(section), second.get(section), section):
            if not any(fnmatch.fnmatch(path, pattern) for pattern in leave_out):
                yield f"{path}: {_short(one)} -> {_short(other)}"


def _walk(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _walk(one.get(key), other.get(key), f"{path}/{key}")
    else:
        yield path, one, other


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{len(value)} entries"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and len(value) >= 64 and " " not in value[:64]:
        return value[:12] + value[64:]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + " …"


def compare_definitions(first: list[dict[str, str]], second: list[dict[str, str]]) -> tuple[dict[str, int], list[str]]:
    """Return counts of what moved and changed, and a line for each definition that changed, came or went."""
    old, new = Counter(map(_key, first)), Counter(map(_key, second))
    same = old & new
    counts = {"same": 0, "moved": 0, "renamed": 0, "changed": 0, "added": 0, "removed": 0}
    places = Counter((*_key(entry), entry["module"]) for entry in first)
    there = places & Counter((*_key(entry), entry["module"]) for entry in second)
    counts["same"] = sum(there.values())
    counts["moved"] = sum(same.values()) - counts["same"]
    gone, came = _left(first, same), _left(second, same)
    lines = []
    for entry in list(gone):
        twin = next((other for other in came if other["name"] == entry["name"] and _near(entry, other, came)), None)
        if twin is not None:
            gone.remove(entry)
            came.remove(twin)
            counts["changed"] += 1
            where = "" if twin["module"] == entry["module"] else f" -> {twin['module']}"
            lines.append(f"changed  {entry['module']}:{entry['name']}{where}")
    for entry in list(gone):
        twin = next((other for other in came if other["body"] == entry["body"]), None)
        if twin is not None:
            gone.remove(entry)
            came.remove(twin)
            counts["renamed"] += 1
            lines.append(f"renamed  {entry['module']}:{entry['name']} -> {twin['module']}:{twin['name']}")
    for word, entries in (("removed", gone), ("added", came)):
        counts[word] = len(entries)
        lines += [f"{word:8} {entry['module']}:{entry['name']}" for entry in entries]
    return counts, sorted(lines)


def _near(entry: dict[str, str], other: dict[str, str], others: list[dict[str, str]]) -> bool:
    """Whether a definition of the same name is the one meant: in the same module if that has one."""
    home = [one for one in others if one["name"] == entry["name"] and one["module"] == entry["module"]]
    return other in home if home else True


def _left(entries: list[dict[str, str]], same: Counter[tuple[str, str]]) -> list[dict[str, str]]:
    left, found = Counter(same), []
    for entry in entries:
        if left[_key(entry)] > 0:
            left[_key(entry)] -= 1
        else:
            found.append(entry)
    return found


def _key(entry: dict[str, str]) -> tuple[str, str]:
    return entry["name"], entry["hash"]
