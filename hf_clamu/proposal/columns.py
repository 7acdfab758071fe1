"""Which column of a file is which: as the user says, or by its name, or by what it holds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.proposal.conversations import is_conversation

__all__ = ["Columns", "find_columns", "is_image"]

_NAMES = {
    "task_column": ("task", "owner", "user", "customer", "client", "author", "shop", "account", "tenant", "speaker"),
    "messages_column": ("messages", "conversation", "conversations", "chat", "dialog", "dialogue"),
    "prompt_column": ("prompt", "question", "instruction", "input"),
    "completion_column": ("completion", "answer", "response", "output"),
    "image_column": ("image", "picture", "photo", "pixels"),
    "text_column": ("text", "message", "body", "review", "comment", "content", "sentence", "question", "prompt"),
    "label_column": (
        "label",
        "topic",
        "sentiment",
        "class",
        "category",
        "target",
        "mood",
        "intent",
        "rating",
        "stars",
    ),
}
_COLUMNS = (*_NAMES, "tools_column")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
# What a model reads, and what it learns to say of it; conversations have both.
_PAIRS = {
    "messages_column": "",
    "prompt_column": "completion_column",
    "image_column": "label_column",
    "text_column": "label_column",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns of a recipe: owners, and text or image with label, prompt with completion, or conversations.

    `has_conversations` says whether messages are read.
    """

    task_column: str
    text_column: str | None = None
    prompt_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    tools_column: str | None = None
    has_conversations: bool = False

    @property
    def content(self) -> str:
        """What the model reads."""
        return str(self.messages_column or self.image_column or self.prompt_column or self.text_column)

    @property
    def answer(self) -> str:
        """What it learns to say of it; "" of conversations, which have it inside."""
        return self.completion_column or self.label_column or ""

    @property
    def named(self) -> dict[str, str]:
        """The columns that there are, as a recipe names them."""
        return {option: name for option, name in asdict(self).items() if option in _COLUMNS and name is not None}


def find_columns(where: str, rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, str | None]) -> Columns:
    """Return which column is which.

    Args:
        where (`str`): the files, for messages.
        rows (*sequence* of *mapping*): with all their columns.
        chosen (*mapping* of `str` to `str`, *optional*): columns that the user names, by field of `Columns`.

    Raises:
        TaskDataError: if a named column is missing, or nothing shows which column is which.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = {option: name for option, name in chosen.items() if name is not None}
    for option, name in found.items():
        if name not in names:
            raise TaskDataError(f"{where} has no column {name!r} ({option}); it has {', '.join(names)}.")
    read = _content_column(names, rows, found)
    needed = tuple(filter(None, (read, _PAIRS[read], "task_column")))
    surplus = [option for option in found if option not in needed]
    if surplus:
        raise TaskDataError(
            f"{surplus[0]} and {read} do not go together: give text or image with label_column, prompt_column with "
            "completion_column, or messages_column."
        )
    for option in needed:
        found[option] = found.get(option) or _by_name(_rest(names, found), option) or ""
    _by_content(rows, names, read, found)
    _refuse_paths(where, rows, found[read])
    for option in ("task_column", *needed[:-1]):
        if not found[option]:
            raise TaskDataError(
                f"No column of {where} shows that it is the {option}; it has {', '.join(names)}. Name it with "
                f"--{option.replace('_', '-')}."
            )
    talks = is_conversation(_first(rows, found[read]))
    if talks and "tools" in _rest(names, found):
        found["tools_column"] = "tools"
    return Columns(**found, has_conversations=talks)


def _first(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return the first cell of a column that is not empty."""
    return next((row[name] for row in rows if row.get(name)), None)


def _content_column(names: Sequence[str], rows: Sequence[Mapping[str, Any]], found: dict[str, str]) -> str:
    """Return what kind of column the model reads; an image's is noted if it is found by what it holds."""
    for read, answer in _PAIRS.items():
        if read in found or (answer in found and answer != "label_column"):
            return read
    pair = [_by_name(names, option) for option in ("prompt_column", "completion_column")]
    talks = [name for name in _rest(names, found) if is_conversation(_first(rows, name))]
    if talks and "label_column" not in found:
        if set(talks) >= set(pair):
            return "prompt_column"
        found["messages_column"] = _by_name(talks, "messages_column") or talks[0]
        return "messages_column"
    images = [name for name in _rest(names, found) if is_image(next((row[name] for row in rows if name in row), None))]
    if images:
        found["image_column"] = images[0]
        return "image_column"
    if "label_column" not in found and all(pair):
        return "prompt_column"
    return "text_column"


def _by_content(rows: Sequence[Mapping[str, Any]], names: Sequence[str], read: str, found: dict[str, str]) -> None:
    """Guess the columns that no name shows: long texts are read, few values are labels, more are owners."""
    values = {name: [str(row.get(name) or "") for row in rows] for name in _rest(names, found)}
    options = [read, *(["completion_column"] if _PAIRS[read] == "completion_column" else [])]
    for option in options:
        if not found[option] and values:
            name = found[option] = max(values, key=lambda name: statistics.fmean(map(len, values[name])))
            del values[name]
    variety = {name: len(set(cells)) for name, cells in values.items()}
    repeated = [name for name in values if 1 < variety[name] <= len(rows) / 2]
    for option, pick in (("label_column", min), ("task_column", max)):
        if found.get(option) == "" and repeated:
            name = found[option] = pick(repeated, key=lambda name: variety[name])
            repeated.remove(name)


def _refuse_paths(where: str, rows: Sequence[Mapping[str, Any]], column: str) -> None:
    values = [row.get(column) for row in rows]
    if values and all(isinstance(value, str) and value.casefold().endswith(_IMAGE_SUFFIXES) for value in values):
        raise TaskDataError(
            f"Column {column!r} of {where} holds names of image files. Images are read from Parquet: load the folder "
            "with datasets (load_dataset('imagefolder', data_dir=...)), write it with to_parquet('rows.parquet'), and "
            "give that."
        )


def _rest(names: Iterable[str], found: Mapping[str, str]) -> list[str]:
    return [name for name in names if name not in found.values()]


def _by_name(names: Sequence[str], option: str) -> str | None:
    for word in _NAMES[option]:
        for name in names:
            if name.casefold().replace("-", "_").replace(" ", "_").removesuffix("_id").removesuffix("_name") == word:
                return name
    return None


def is_image(value: Any) -> bool:
    """Whether a value is an image, as data sets keep them (bytes or a path), or rows of numbers."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= set(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)
