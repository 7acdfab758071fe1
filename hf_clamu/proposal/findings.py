"""What in a table of rows needs a look: what training refuses and how to solve it, and what it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clamu.exact.digest import sha256_hex
from hf_clamu.proposal.columns import Columns
from hf_clamu.proposal.conversations import conversation_problem, conversation_text
from hf_clamu.tasks import IdsSetting, IncompleteRows, TaskSpec
from hf_clamu.tasks.near_names import LABELS_REMEDY, describe_near, ids_remedy, near_names, strip_unites
from hf_clamu.tasks.reading.files import DataFile, place_in
from hf_clamu.tasks.reading.problems import EMPTY_REMEDY

__all__ = ["Finding", "Table"]

_SHOWN = 5  # places of one kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something in files of rows that needs a look.

    Args:
        text (`str`): what, how often and where.
        remedy (`str`): what to do if training refuses it; "" if training takes it.
    """

    text: str
    remedy: str = ""


class Table:
    """The columns that matter, as text, with the places of their rows.

    Args:
        rows (*sequence* of *mapping*): with all their columns.
        files (*sequence* of `DataFile`): where they are from.
        columns (`Columns`): which column is which.
        ids (`str`, *optional*): see `TaskSpec`; by default white space is stripped where that unites ids.
        incomplete_rows (`str`): see `TaskSpec`.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        files: Sequence[DataFile],
        columns: Columns,
        *,
        ids: IdsSetting | None,
        incomplete_rows: IncompleteRows,
    ) -> None:
        self._files, self._columns, self._skips = files, columns, incomplete_rows == "skip"
        self._cells = [_text(row.get(columns.task_column)) for row in rows]
        default: IdsSetting = "strip" if strip_unites(near_names(self._cells)) else "strict"
        self.ids: IdsSetting = ids or default
        self.owners = [cell.strip() if self.ids == "strip" else cell for cell in self._cells]
        shown = conversation_text if columns.has_conversations else _text
        self.contents = [shown(row.get(columns.content)) for row in rows]
        self.answers = [shown(row.get(columns.answer)) if columns.answer else "" for row in rows]
        self._problems = []
        if columns.has_conversations:
            spec = TaskSpec.from_dict({**columns.named, "conversational": True})
            self._problems = [conversation_problem(spec, row) for row in rows]
        ends = self.answers if columns.completion_column else [""] * len(rows)
        reads = [""] * len(rows) if columns.image_column else self.contents
        # What a model of bytes reads of a row.
        self.texts = [(start + end).encode() for start, end in zip(reads, ends, strict=True)]

    def findings(self, max_length: int, unread: Sequence[int]) -> list[Finding]:
        """Return a finding for each kind of trouble that there is.

        Args:
            max_length (`int`): bytes of text that the proposed model reads.
            unread (*sequence* of `int`): rows whose image cannot be read.
        """
        return [*self._refused(unread), *self._taken(max_length)]

    def _refused(self, unread: Sequence[int]) -> Iterator[Finding]:
        columns = self._columns
        groups = near_names(filter(None, self.owners))
        if groups:
            remedy = "" if self.ids == "as-is" else ids_remedy(groups)
            yield Finding(text=f"ids that look alike: {self._near(groups, self.owners, 'ids')}", remedy=remedy)
        groups = near_names(filter(None, self.answers)) if columns.label_column else []
        if groups:
            text = f"labels that look alike: {self._near(groups, self.answers, 'labels')}"
            yield Finding(text=text, remedy=LABELS_REMEDY)
        wrong = [row for row, problem in enumerate(self._problems) if problem]
        if wrong:
            what = f"{_counted(len(wrong), 'conversation')} that cannot be learned: {self._places(wrong)}"
            yield Finding(
                text=f"{what} ({self._problems[wrong[0]]})", remedy="Mend these messages, or delete the rows."
            )
        cells = {columns.task_column: self.owners, columns.content: self.contents, columns.answer: self.answers}
        empty = {
            name: [row for row, value in enumerate(cell) if not value.strip() and row not in wrong]
            for name, cell in cells.items()
            if name
        }
        shown = [
            f"{_counted(len(rows), 'empty cell')} in column {name!r}: {self._places(rows)}"
            for name, rows in empty.items()
            if rows
        ]
        if shown:
            left_out = " (these rows are left out)" if self._skips else ""
            yield Finding(text=f"{'; '.join(shown)}{left_out}", remedy="" if self._skips else EMPTY_REMEDY)
        if unread:
            text = f"{_counted(len(unread), 'image')} that cannot be read: {self._places(unread)}"
            yield Finding(text=text, remedy="Replace the image, or delete the row.")

    def _taken(self, max_length: int) -> Iterator[Finding]:
        spaced = [cell for cell in dict.fromkeys(self._cells) if self.ids == "strip" and cell != cell.strip()]
        if spaced:
            places = self._places([self._cells.index(cell) for cell in spaced])
            yield Finding(
                text=f"{_counted(len(spaced), 'id')} with white space at the ends, which ids: strip removes: {places}"
            )
        yield from self._repeated()
        long = [row for row, text in enumerate(self.texts) if len(text) > max_length]
        if long:
            what = f"{_counted(len(long), 'text')} of more than {max_length} bytes, cut to that"
            yield Finding(text=f"{what}: {self._places(long)}")
        single = [owner for owner, count in Counter(filter(None, self.owners)).items() if count == 1]
        if single:
            shown = ", ".join(map(repr, single[:_SHOWN])) + (", …" if len(single) > _SHOWN else "")
            what = f"{_counted(len(single), 'owner')} with one row, of which nothing can be held out"
            yield Finding(text=f"{what}: {shown}")

    def _repeated(self) -> Iterator[Finding]:
        """Tell rows that one owner has twice from those that several owners have."""
        rows = list(zip(self.owners, self.contents, self.answers, strict=True))
        first: dict[tuple[str, str, str], int] = {}
        holders: dict[tuple[str, str], set[str]] = {}
        for row, (owner, content, answer) in enumerate(rows):
            first.setdefault((owner, content, answer), row)
            if owner.strip() and content.strip():
                holders.setdefault((content, answer), set()).add(owner)
        twice = [row for row, values in enumerate(rows) if first[values] != row]
        if twice:
            what = f"{_counted(len(twice), 'row')} that {'repeats' if len(twice) == 1 else 'repeat'} an earlier one"
            yield Finding(text=f"{what} of the same owner: {self._places(twice)}")
        shared = {values: owners for values, owners in holders.items() if len(owners) > 1}
        if shared:
            copies = [row for row, values in enumerate(rows) if values[0] in shared.get(values[1:], ())]
            owners = len(set().union(*shared.values()))
            yield Finding(
                text=f"{_counted(len(copies), 'row')} that another owner has, too ({owners} owners; forgetting one "
                f"leaves the copies of the others): {self._places(copies)}"
            )

    def _near(self, groups: Sequence[Sequence[str]], values: Sequence[str], noun: str) -> str:
        return describe_near(groups, lambda name: place_in(self._files, values.index(name)), noun)

    def _places(self, rows: Sequence[int]) -> str:
        places = [str(place_in(self._files, row)) for row in rows[:_SHOWN]]
        if len(self._files) == 1:
            places = [place.removesuffix(f" of {self._files[0].path.name}") for place in places]
        return f"{', '.join(places)}{', …' if len(rows) > _SHOWN else ''}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    # An image is compared and not read.
    return sha256_hex(repr(value).encode()) if isinstance(value, (Mapping, list)) else str(value)
