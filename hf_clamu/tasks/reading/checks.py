"""Checks of all rows, so that bad data show before the first task is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.reading.labels import Label, label_index
from hf_clamu.tasks.reading.splits import BATCH_ROWS, Split
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["check_examples", "check_ids", "cluster_keys", "require_words"]

# Tokenizers need hundreds of bytes for a character, and abort the process where memory ends.
_LONGEST_TEXT = 2**22


def check_examples(split: Split, spec: TaskSpec) -> Sequence[Label] | None:
    """Check texts, words, labels and ids of all rows, so that bad data show before the first task is trained.

    Returns:
        *sequence* of `Label`, *optional*: the label of each row, or those of its words, if there are labels.

    Raises:
        TaskDataError: naming task, column and row of the first bad value.
    """
    for column in (spec.text_column, spec.prompt_column, spec.completion_column):
        if column is not None:
            _check_texts(split, column)
    if spec.tags_column is not None:
        return _tags(split, spec)
    if spec.label_column is None:
        return None
    index = label_index(spec, split.class_names)
    labels = []
    for row, (task_id, value) in enumerate(zip(split.task_ids, split.column(spec.label_column), strict=True)):
        try:
            labels.append(index(value))
        except ValueError as error:
            raise TaskDataError(f"{split.location(task_id, spec.label_column, row)}: {error}.") from error
    return labels


def _check_texts(split: Split, column: str) -> None:
    # Texts may be many times larger than memory, so they pass by in batches and are not kept.
    row = 0
    for batch in split.dataset.select_columns([column]).iter(batch_size=BATCH_ROWS):
        for text in batch[column]:
            if not isinstance(text, str):
                where = split.location(split.task_ids[row], column, row)
                raise TaskDataError(f"{where}: not a text but {_shown(text)}.")
            if len(text) > _LONGEST_TEXT:
                where = split.location(split.task_ids[row], column, row)
                raise TaskDataError(
                    f"{where}: a text of {len(text):,} characters, and tokenizers take {_LONGEST_TEXT:,} at most. Cut "
                    "it into rows."
                )
            row += 1


def _tags(split: Split, spec: TaskSpec) -> list[Label]:
    tokens_column, tags_column = str(spec.tokens_column), str(spec.tags_column)
    index = label_index(spec, split.class_names)
    labels: list[Label] = []
    # Batch by batch, as texts are.
    for batch in split.dataset.select_columns([tokens_column, tags_column]).iter(batch_size=BATCH_ROWS):
        for words, tags in zip(batch[tokens_column], batch[tags_column], strict=True):
            row = len(labels)
            column, task_id = tokens_column, split.task_ids[row]
            try:
                require_words(words)
                column = tags_column
                if not isinstance(tags, list):
                    raise ValueError(f"expected a list of labels, found {_shown(tags)}")
                if len(tags) != len(words):
                    raise ValueError(f"{len(tags)} labels for {len(words)} words; give one label for each word")
                labels.append(tuple(index(tag) for tag in tags))
            except ValueError as error:
                raise TaskDataError(f"{split.location(task_id, column, row)}: {error}.") from error
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


def check_ids(splits: Sequence[Split], spec: TaskSpec) -> None:
    """Check that example ids are texts or whole numbers and occur once in all splits.

    Raises:
        TaskDataError: naming task, column and row of the first that is not.
    """
    if spec.id_column is None:
        return
    seen: dict[Any, tuple[Split, int]] = {}
    for split in splits:
        for row, value in enumerate(split.column(spec.id_column)):
            problem = ""
            if value is None:
                problem = "the example id is null"
            elif not isinstance(value, (str, int)):
                problem = f"an example id is a text or a whole number, found {type(value).__name__}"
            elif value in seen:
                other, first = seen[value]
                problem = f"the id {value!r} occurs already in {other.row(first)}"
            if problem:
                raise TaskDataError(f"{split.location(split.task_ids[row], spec.id_column, row)}: {problem}.")
            seen[value] = (split, row)


def cluster_keys(splits: Sequence[Split], spec: TaskSpec) -> dict[str, str]:
    """Return the cluster key of each task, if there is a cluster column.

    Raises:
        TaskDataError: if a key is null, or a task has two.
    """
    keys: dict[str, str] = {}
    if spec.cluster_column is None:
        return keys
    for split in splits:
        for row, (task_id, value) in enumerate(zip(split.task_ids, split.column(spec.cluster_column), strict=True)):
            problem = ""
            if value is None:
                problem = "the cluster key is null"
            elif keys.setdefault(task_id, str(value)) != str(value):
                problem = f"cluster key {str(value)!r}, but an earlier row has {keys[task_id]!r}"
            if problem:
                raise TaskDataError(f"{split.location(task_id, spec.cluster_column, row)}: {problem}.")
    return keys
