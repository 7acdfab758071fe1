"""Checks of all rows, so that bad data show before the first task is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_clamu.tasks.conversations import MessagesError, check_conversation
from hf_clamu.tasks.kinds import traits_of
from hf_clamu.tasks.reading.labels import Label, label_index
from hf_clamu.tasks.reading.problems import BATCH_ROWS, Problems, is_empty
from hf_clamu.tasks.reading.splits import Split
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["check_examples", "check_ids", "cluster_keys", "require_words"]

# Tokenizers need hundreds of bytes for a character, and abort the process where memory ends.
_LONGEST_TEXT = 2**22


def check_examples(split: Split, spec: TaskSpec, problems: Problems) -> Sequence[Label] | None:
    """Check texts, words and labels of all rows, so that bad data show before the first task is trained.

    Args:
        split (`Split`): the rows.
        spec (`TaskSpec`): which column is which, with its label names.
        problems (`Problems`): gets each bad value, with task, column and row.

    Returns:
        *sequence* of `Label`, *optional*: the label of each row, or those of its words, if there are labels; anything
        where it is bad.
    """
    if spec.conversational:
        _check_conversations(split, spec, problems)
        return None
    for column in (spec.text_column, spec.prompt_column, spec.completion_column):
        if column is not None:
            _check_texts(split, column, problems, may_be_empty=not _must_hold_text(spec, column))
    if spec.tags_column is not None:
        return _tags(split, spec, problems)
    if spec.label_column is None:
        return None
    index = label_index(spec, split.class_names)
    labels = []
    for row, value in enumerate(split.column(spec.label_column)):
        try:
            labels.append(index(value))
        except ValueError as error:
            labels.append(-1)
            _note(problems, split, spec.label_column, row, str(error), value)
    return labels


def _note(problems: Problems, split: Split, column: str, row: int, problem: str, value: Any = "given") -> None:
    problems.add(lambda: f"{split.location(split.task_ids[row], column, row)}: {problem}.", value=value)


def _must_hold_text(spec: TaskSpec, column: str) -> bool:
    """Whether an empty cell makes no example: of a text that is classified, and of what is to be written."""
    return column == spec.completion_column or (
        column == spec.text_column and traits_of(spec.kind).labels == "example"
    )


def _check_texts(split: Split, column: str, problems: Problems, *, may_be_empty: bool) -> None:
    # Texts may be many times larger than memory, so they pass by in batches and are not kept.
    row = 0
    for batch in split.dataset.select_columns([column]).iter(batch_size=BATCH_ROWS):
        for text in batch[column]:
            problem = ""
            if not isinstance(text, str):
                problem = f"not a text but {_shown(text)}"
            elif not text and not may_be_empty:
                problem = "the cell is empty; each row needs a text"
            elif len(text) > _LONGEST_TEXT:
                problem = (
                    f"a text of {len(text):,} characters, and tokenizers take {_LONGEST_TEXT:,} at most. Cut it into "
                    "rows"
                )
            if problem:
                _note(problems, split, column, row, problem, text)
            row += 1


def _check_conversations(split: Split, spec: TaskSpec, problems: Problems) -> None:
    row = 0
    for batch in split.dataset.select_columns(sorted(set(spec.content_columns))).iter(batch_size=BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            cells = dict(zip(batch, values, strict=True))
            empty = next((column for column in cells if column != spec.tools_column and is_empty(cells[column])), None)
            try:
                check_conversation(spec, cells)
            except MessagesError as error:
                _note(problems, split, error.column, row, str(error), "given" if empty is None else None)
            if sum(len(str(cell)) for cell in values) > _LONGEST_TEXT:
                problem = f"a conversation of more than {_LONGEST_TEXT:,} characters, which tokenizers do not take"
                _note(problems, split, str(spec.messages_column or spec.prompt_column), row, problem)
            row += 1


def _tags(split: Split, spec: TaskSpec, problems: Problems) -> list[Label]:
    tokens_column, tags_column = str(spec.tokens_column), str(spec.tags_column)
    index = label_index(spec, split.class_names)
    labels: list[Label] = []
    # Batch by batch, as texts are.
    for batch in split.dataset.select_columns([tokens_column, tags_column]).iter(batch_size=BATCH_ROWS):
        for words, tags in zip(batch[tokens_column], batch[tags_column], strict=True):
            row, column, value = len(labels), tokens_column, words
            try:
                require_words(words)
                column, value = tags_column, tags
                if not isinstance(tags, list):
                    raise ValueError(f"expected a list of labels, found {_shown(tags)}")
                if len(tags) != len(words):
                    raise ValueError(f"{len(tags)} labels for {len(words)} words; give one label for each word")
                labels.append(tuple(index(tag) for tag in tags))
            except ValueError as error:
                labels.append(())
                _note(problems, split, column, row, str(error), value)
    return labels


def require_words(words: Any) -> None:
    """Raise a `ValueError` unless this is a list of words that is not empty."""
    if isinstance(words, str):
        raise ValueError(
            f"expected a list of words, found the text {words!r}; split it into words (CSV holds no lists: use JSON "
            "lines or Parquet)"
        )
    if not isinstance(words, list):
        raise ValueError(f"expected a list of words, found {_shown(words)}")
    if not words:
        raise ValueError("the list of words is empty")
    for number, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"word {number} is not a text but {_shown(word)}")


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def check_ids(splits: Sequence[Split], spec: TaskSpec, problems: Problems) -> None:
    """Check that example ids are texts or whole numbers and occur once in all splits.

    Args:
        splits (*sequence* of `Split`): all rows.
        spec (`TaskSpec`): which column is which.
        problems (`Problems`): gets each id that is not.
    """
    if spec.id_column is None:
        return
    seen: dict[Any, tuple[Split, int]] = {}
    for split in splits:
        for row, value in enumerate(split.column(spec.id_column)):
            if value is None:
                _note(problems, split, spec.id_column, row, "the example id is null")
            elif not isinstance(value, (str, int)):
                problem = f"an example id is a text or a whole number, found {type(value).__name__}"
                _note(problems, split, spec.id_column, row, problem)
            elif value in seen:
                other, first = seen[value]
                problem = f"the id {value!r} occurs already in {other.row(first)}"
                _note(problems, split, spec.id_column, row, problem)
            else:
                seen[value] = (split, row)


def cluster_keys(splits: Sequence[Split], spec: TaskSpec, problems: Problems) -> dict[str, str]:
    """Return the cluster key of each task, if there is a cluster column.

    Args:
        splits (*sequence* of `Split`): all rows.
        spec (`TaskSpec`): which column is which.
        problems (`Problems`): gets each key that is null, or the second of its task.
    """
    keys: dict[str, str] = {}
    if spec.cluster_column is None:
        return keys
    for split in splits:
        for row, (task_id, value) in enumerate(zip(split.task_ids, split.column(spec.cluster_column), strict=True)):
            if value is None:
                _note(problems, split, spec.cluster_column, row, "the cluster key is null")
            elif task_id and keys.setdefault(task_id, str(value)) != str(value):
                problem = f"cluster key {str(value)!r}, but an earlier row has {keys[task_id]!r}"
                _note(problems, split, spec.cluster_column, row, problem)
    return keys
