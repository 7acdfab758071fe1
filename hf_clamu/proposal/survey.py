"""What a file of rows holds: owners, texts and labels, and what in them will give trouble."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.near_names import near_names
from hf_clamu.tasks.reading.csv_file import cells_of_any_length
from hf_clamu.tasks.reading.files import SUFFIXES, DataFile

__all__ = ["Columns", "Survey", "survey_file"]

_TASK = ("task", "owner", "user", "customer", "client", "author", "shop", "account", "tenant", "speaker", "patient")
_TEXT = ("text", "message", "body", "review", "comment", "content", "sentence", "question", "prompt")
_LABEL = ("label", "topic", "sentiment", "class", "category", "target", "mood", "intent", "rating", "stars")
_SHOWN = 5  # of what gives trouble


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns of a recipe for texts with labels."""

    task_column: str
    text_column: str
    label_column: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was seen in a file.

    Args:
        path (`Path`): the file.
        columns (`Columns`): which column is which.
        num_rows (`int`): its rows.
        owners (*dict* of `str` to `int`): rows of each owner.
        labels (*dict* of `str` to `int`): rows of each label.
        longest (`int`): UTF-8 bytes of the longest text.
        strips (`bool`): ids look alike, and white space at their ends is the only reason.
        trouble (*tuple* of `str`): sentences about what to look at, with lines.
    """

    path: Path
    columns: Columns
    num_rows: int
    owners: dict[str, int]
    labels: dict[str, int]
    longest: int
    strips: bool
    trouble: tuple[str, ...]


def survey_file(path: Path, *, max_length: int, **chosen: str | None) -> Survey:
    """Look at a file of rows.

    Args:
        path (`Path`): a CSV, JSON, JSONL or Parquet file.
        max_length (`int`): bytes of text that the proposed model reads.
        task_column, text_column, label_column (`str`, *optional*): where a guess would be wrong.

    Raises:
        TaskDataError: if it is no table, or it does not show which column is which.
    """
    rows = _rows(path)
    if not rows:
        raise TaskDataError(f"{path} has no rows. Give a file whose rows have an owner, a text and a label.")
    names = dict.fromkeys(name for row in rows for name in row)
    cells = {name: [_text(row.get(name)) for row in rows] for name in names}
    columns = _columns(path, cells, chosen)
    tasks, texts, labels = (cells[name] for name in (columns.task_column, columns.text_column, columns.label_column))
    owners = Counter(filter(None, tasks))
    groups = near_names(owners)
    return Survey(
        path=path,
        columns=columns,
        num_rows=len(rows),
        owners=dict(owners),
        labels=dict(sorted(Counter(filter(None, labels)).items())),
        longest=max(len(text.encode()) for text in texts),
        strips=bool(groups) and not near_names({owner.strip() for owner in owners}),
        trouble=tuple(_trouble(DataFile(path=path, num_rows=len(rows)), columns, cells, max_length)),
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix.lower() not in SUFFIXES:
        raise TaskDataError(f"Cannot read {path.name!r}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskDataError(f"There is no data file {path}.")
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            rows: list[Any] = parquet.read_table(path).to_pylist()
        elif path.suffix.lower() == ".csv":
            with cells_of_any_length(), path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            text = path.read_text(encoding="utf-8-sig")
            listed = text.lstrip().startswith("[")
            rows = json.loads(text) if listed else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise TaskDataError(f"Cannot read {path.name!r}: {' '.join(str(error).split())}") from error
    if not all(isinstance(row, Mapping) and None not in row for row in rows):
        raise TaskDataError(f"{path.name} is no table: each row needs the same columns (in JSON, be an object).")
    return rows


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _columns(path: Path, cells: Mapping[str, Sequence[str]], chosen: Mapping[str, str | None]) -> Columns:
    """Return the columns: as chosen, or by name, or by what they hold."""
    for option, name in chosen.items():
        if name is not None and name not in cells:
            raise TaskDataError(f"{path.name} has no column {name!r} ({option}); it has {', '.join(cells)}.")
    found = dict(chosen)

    def rest() -> list[str]:
        return [name for name in cells if name not in found.values()]

    for option, words in (("text_column", _TEXT), ("label_column", _LABEL), ("task_column", _TASK)):
        found[option] = found.get(option) or _named(rest(), words)
    if found["text_column"] is None and rest():
        found["text_column"] = max(rest(), key=lambda name: statistics.fmean(map(len, cells[name])))
    variety = {name: len(set(cells[name])) for name in cells}
    repeated = [name for name in rest() if 1 < variety[name] <= len(cells[name]) / 2]
    for option, pick in (("label_column", min), ("task_column", max)):
        if found[option] is None and repeated:
            name = found[option] = pick(repeated, key=lambda name: variety[name])
            repeated.remove(name)
    for option, name in found.items():
        if name is None:
            raise TaskDataError(
                f"No column of {path.name} shows that it is the {option}; it has {', '.join(cells)}. Name it with "
                f"--{option.replace('_', '-')}."
            )
    return Columns(**{option: str(name) for option, name in found.items()})


def _named(names: Sequence[str], words: Sequence[str]) -> str | None:
    for word in words:
        for name in names:
            if name.casefold().replace("-", "_").replace(" ", "_").removesuffix("_id").removesuffix("_name") == word:
                return name
    return None


def _trouble(file: DataFile, columns: Columns, cells: Mapping[str, list[str]], max_length: int) -> list[str]:
    tasks, texts, labels = (cells[name] for name in (columns.task_column, columns.text_column, columns.label_column))
    lines = [_alike("ids", tasks, file), _alike("labels", labels, file)]
    for name in (columns.task_column, columns.text_column, columns.label_column):
        empty = [row for row, value in enumerate(cells[name]) if not value.strip()]
        lines.append(_places(f"empty cells in column {name!r}", empty, file))
    seen: dict[tuple[str, str, str], int] = {}
    rows = list(zip(tasks, texts, labels, strict=True))
    twice = [row for row, values in enumerate(rows) if seen.setdefault(values, row) != row]
    lines.append(_places("rows that repeat an earlier one", twice, file))
    long = [row for row, text in enumerate(texts) if len(text.encode()) > max_length]
    lines.append(_places(f"texts of more than {max_length} bytes, which are cut", long, file))
    single = [owner for owner, count in Counter(filter(None, tasks)).items() if count == 1]
    if single:
        shown = ", ".join(map(repr, single[:_SHOWN])) + (", …" if len(single) > _SHOWN else "")
        lines.append(f"{len(single)} owners with one row, of which nothing can be held out: {shown}")
    return [line for line in lines if line]


def _alike(what: str, values: Sequence[str], file: DataFile) -> str:
    groups = near_names(filter(None, values))
    if not groups:
        return ""
    # Each place reads the file again, so no more of them than are shown.
    some = groups[:_SHOWN]
    shown = [" and ".join(f"{name!r} ({file.place(values.index(name))})" for name in group) for group in some]
    more = f"; {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return f"{what} that look alike: {'; '.join(shown)}{more}"


def _places(what: str, rows: Sequence[int], file: DataFile) -> str:
    if not rows:
        return ""
    shown = ", ".join(file.place(row).removesuffix(f" of {file.path.name}") for row in rows[:_SHOWN])
    return f"{len(rows)} {what}: {shown}{', …' if len(rows) > _SHOWN else ''}"
