"""What files of rows hold: owners, what is read and learned, and what in them will give trouble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.exact.digest import sha256_hex
from hf_clamu.proposal.columns import Columns, find_columns
from hf_clamu.proposal.images import image_shape
from hf_clamu.tasks.near_names import near_names
from hf_clamu.tasks.reading.files import DataFile, place_in, read_rows

__all__ = ["Survey", "survey_files"]

_SHOWN = 5  # of what gives trouble


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was seen in files of rows.

    Args:
        columns (`Columns`): which column is which.
        num_rows (`int`): their rows.
        owners (*dict* of `str` to `int`): rows of each owner.
        labels (*dict* of `str` to `int`): rows of each label; empty where completions are learned.
        longest (`int`): UTF-8 bytes of the longest text that is read, with its completion; 0 for images.
        image_shapes (*tuple* of *tuple* of `int`): the shapes of images, channels first.
        strips (`bool`): ids look alike, and white space at their ends is the only reason.
        trouble (*tuple* of `str`): sentences about what to look at, with lines.
    """

    columns: Columns
    num_rows: int
    owners: dict[str, int]
    labels: dict[str, int]
    longest: int
    image_shapes: tuple[tuple[int, int, int], ...]
    strips: bool
    trouble: tuple[str, ...]


def survey_files(paths: Sequence[Path], *, max_length: int, **chosen: str | None) -> Survey:
    """Look at files of rows, which are taken as one table.

    Args:
        paths (*sequence* of `Path`): CSV, JSON, JSONL or Parquet files.
        max_length (`int`): bytes of text that the proposed model reads.
        task_column, text_column, label_column, prompt_column, completion_column, image_column (`str`, *optional*):
            where a guess would be wrong.

    Raises:
        TaskDataError: if one is no table, or it does not show which column is which.
    """
    where = ", ".join(path.name for path in paths)
    rows, files = read_rows(paths)
    if not rows:
        raise TaskDataError(f"{where} has no rows. Give a file whose rows have an owner, a text and a label.")
    columns = find_columns(where, rows, chosen)
    shapes = [image_shape(row.get(columns.image_column)) for row in rows] if columns.image_column else []
    table = _Table(rows, files, columns)
    unread = table.places("images that cannot be read", [row for row, shape in enumerate(shapes) if shape is None])
    owners = Counter(filter(None, table.owners))
    return Survey(
        columns=columns,
        num_rows=len(rows),
        owners=dict(owners),
        labels=dict(sorted(Counter(filter(None, table.answers)).items())) if columns.label_column else {},
        longest=max(map(len, table.texts)),
        image_shapes=tuple(sorted({shape for shape in shapes if shape is not None})),
        strips=bool(near_names(owners)) and not near_names({owner.strip() for owner in owners}),
        trouble=tuple(line for line in (unread, *table.trouble(max_length)) if line),
    )


class _Table:
    """The columns that matter, as text, with the places of their rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], files: Sequence[DataFile], columns: Columns) -> None:
        self._files, self._columns = files, columns
        self.owners = [_text(row.get(columns.task_column)) for row in rows]
        self.contents = [_text(row.get(columns.content)) for row in rows]
        self.answers = [_text(row.get(columns.answer)) for row in rows]
        ends = self.answers if columns.completion_column else [""] * len(rows)
        reads = [""] * len(rows) if columns.image_column else self.contents
        # What a model of bytes reads of a row.
        self.texts = [(start + end).encode() for start, end in zip(reads, ends, strict=True)]

    def trouble(self, max_length: int) -> list[str]:
        """Return a sentence for each kind of trouble; "" for those that there are not."""
        columns = self._columns
        lines = [self._alike("ids", self.owners)]
        lines += [self._alike("labels", self.answers)] if columns.label_column else []
        cells = {columns.task_column: self.owners, columns.content: self.contents, columns.answer: self.answers}
        for name, values in cells.items():
            empty = [row for row, value in enumerate(values) if not value.strip()]
            lines.append(self.places(f"empty cells in column {name!r}", empty))
        seen: dict[tuple[str, str, str], int] = {}
        rows = list(zip(self.owners, self.contents, self.answers, strict=True))
        twice = [row for row, values in enumerate(rows) if seen.setdefault(values, row) != row]
        lines.append(self.places("rows that repeat an earlier one", twice))
        long = [row for row, text in enumerate(self.texts) if len(text) > max_length]
        lines.append(self.places(f"texts of more than {max_length} bytes, which are cut", long))
        single = [owner for owner, count in Counter(filter(None, self.owners)).items() if count == 1]
        if single:
            shown = ", ".join(map(repr, single[:_SHOWN])) + (", …" if len(single) > _SHOWN else "")
            lines.append(f"{len(single)} owners with one row, of which nothing can be held out: {shown}")
        return lines

    def _alike(self, what: str, values: Sequence[str]) -> str:
        groups = near_names(filter(None, values))
        if not groups:
            return ""
        # Each place reads the file again, so no more of them than are shown.
        some = groups[:_SHOWN]
        shown = [
            " and ".join(f"{name!r} ({place_in(self._files, values.index(name))})" for name in group) for group in some
        ]
        more = f"; {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
        return f"{what} that look alike: {'; '.join(shown)}{more}"

    def places(self, what: str, rows: Sequence[int]) -> str:
        """Say where rows of one kind are; "" if there are none."""
        if not rows:
            return ""
        places = [str(place_in(self._files, row)) for row in rows[:_SHOWN]]
        if len(self._files) == 1:
            places = [place.removesuffix(f" of {self._files[0].path.name}") for place in places]
        return f"{len(rows)} {what}: {', '.join(places)}{', …' if len(rows) > _SHOWN else ''}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    # An image is compared and not read.
    return sha256_hex(repr(value).encode()) if isinstance(value, (Mapping, list)) else str(value)
