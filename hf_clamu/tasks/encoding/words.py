"""The encoder of lists of words, with a label for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks.encoding.batches import IGNORED_LABEL
from hf_clamu.tasks.encoding.encoders import RowEncoder, encoder_for
from hf_clamu.tasks.encoding.examples import Example
from hf_clamu.tasks.encoding.texts import token_limit
from hf_clamu.tasks.reading.labels import Label
from hf_clamu.tasks.spec import TaskSpec


@encoder_for("token-classification")
def _words_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    if not getattr(tokenizer, "is_fast", False):
        raise RecipeError(
            f"A {spec.kind} task needs a fast tokenizer, which says which word a token belongs to; found the slow "
            f"{type(tokenizer).__name__}. Load it with use_fast=True, or choose a base that has one."
        )
    column, limit = str(spec.tokens_column), token_limit(spec, tokenizer)
    return lambda row, label: _tokenize_words(tokenizer, row[column], label, limit)


def _tokenize_words(tokenizer: Any, words: Sequence[str], tags: Label | None, limit: int | None) -> Example:
    encoding = tokenizer(list(words), is_split_into_words=True, truncation=limit is not None, max_length=limit)
    numbers = tags if isinstance(tags, tuple) else (0,) * len(words)  # prediction has none
    labels, before = [], None
    for word in encoding.word_ids():
        # The first token of a word stands for it; the rest, and what the tokenizer adds, is not learnt.
        labels.append(IGNORED_LABEL if word is None or word == before else numbers[word])
        before = word
    if all(label == IGNORED_LABEL for label in labels):
        raise TaskDataError(f"the words {list(words)!r} tokenise to nothing")
    mask = encoding["attention_mask"] if "attention_mask" in encoding else [1] * len(labels)
    return {
        "input_ids": torch.tensor(list(encoding["input_ids"]), dtype=torch.int64),
        "attention_mask": torch.tensor(list(mask), dtype=torch.int64),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
