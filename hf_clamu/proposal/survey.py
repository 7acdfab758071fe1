"""What files of rows hold: owners, what is read and learned, and what in them needs a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_clamu.errors import TaskDataError
from hf_clamu.proposal.columns import Columns, find_columns
from hf_clamu.proposal.findings import Finding, Table
from hf_clamu.proposal.images import image_shape
from hf_clamu.tasks import IdsSetting, IncompleteRows
from hf_clamu.tasks.reading.files import read_rows

__all__ = ["Survey", "survey_files"]


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
        ids, incomplete_rows (`str`): how rows are to be read, see `TaskSpec`.
        findings (*tuple* of `Finding`): what to look at, with lines.
    """

    columns: Columns
    num_rows: int
    owners: dict[str, int]
    labels: dict[str, int]
    longest: int
    image_shapes: tuple[tuple[int, int, int], ...]
    ids: IdsSetting
    incomplete_rows: IncompleteRows
    findings: tuple[Finding, ...]

    @property
    def trouble(self) -> tuple[str, ...]:
        """All findings as sentences."""
        return tuple(finding.text for finding in self.findings)

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that training refuses."""
        return tuple(finding for finding in self.findings if finding.remedy)


def survey_files(
    paths: Sequence[Path],
    *,
    max_length: int,
    chat_length: int,
    ids: IdsSetting | None = None,
    incomplete_rows: IncompleteRows = "error",
    **chosen: str | None,
) -> Survey:
    """Look at files of rows, which are taken as one table.

    Args:
        paths (*sequence* of `Path`): CSV, JSON, JSONL or Parquet files.
        max_length, chat_length (`int`): bytes of text that the proposed model reads, and of a conversation.
        ids (`str`, *optional*): how ids are to be read, see `TaskSpec`; by default white space is stripped where that
            unites ids.
        incomplete_rows (`str`): what is to be done with rows that have an empty cell, see `TaskSpec`.
        task_column, text_column, label_column, prompt_column, completion_column, image_column, messages_column
            (`str`, *optional*):
            where a guess would be wrong.

    Raises:
        TaskDataError: if one is no table, or it does not show which column is which.
    """
    where = ", ".join(path.name for path in paths)
    rows, files = read_rows(paths)
    if not rows:
        raise TaskDataError(f"{where} has no rows. Give a file whose rows have an owner, a text and a label.")
    columns = find_columns(where, rows, chosen)
    images = [row.get(columns.image_column) for row in rows] if columns.image_column else []
    shapes = [image_shape(image) for image in images]
    unread = [row for row, (image, shape) in enumerate(zip(images, shapes, strict=True)) if image and shape is None]
    table = Table(rows, files, columns, ids=ids, incomplete_rows=incomplete_rows)
    return Survey(
        columns=columns,
        num_rows=len(rows),
        owners=dict(Counter(filter(None, table.owners))),
        labels=dict(sorted(Counter(filter(None, table.answers)).items())) if columns.label_column else {},
        longest=max(map(len, table.texts)),
        image_shapes=tuple(sorted({shape for shape in shapes if shape is not None})),
        ids=table.ids,
        incomplete_rows=incomplete_rows,
        findings=tuple(table.findings(chat_length if columns.has_conversations else max_length, unread)),
    )
