"""Encoders of texts: to be classified, continued or answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks.encoding.batches import IGNORED_LABEL
from hf_clamu.tasks.encoding.encoders import RowEncoder, encoder_for
from hf_clamu.tasks.encoding.examples import Example
from hf_clamu.tasks.reading.labels import Label
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["continuation_encoder", "token_limit", "tokenizer_limit"]

# Tokenizers that know no limit report about 1e30.
_NO_LIMIT = 1_000_000  # Any text will do to see what a tokenizer puts around it.
_PROBE = "a"


@encoder_for("sequence-classification")
def _text_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    column, limit, special = str(spec.text_column), token_limit(spec, tokenizer), _special_ids(tokenizer)
    return lambda row, label: {
        **_tokenize(tokenizer, row[column], limit, special),
        "labels": torch.tensor(label, dtype=torch.int64),
    }


def continuation_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    """Return the encoder of completions that continue texts."""
    _require_open_prompts(tokenizer)
    # The label continues the line of the prompt.
    return _pair_encoder(spec, tokenizer, _tokenize_pair, " ")


@encoder_for("seq2seq-lm")
def _answer_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    return _pair_encoder(spec, tokenizer, _tokenize_seq2seq, "")


def _pair_encoder(
    spec: TaskSpec, tokenizer: Any, tokenize: Callable[[Any, str, str, int | None], Example], before_label: str
) -> RowEncoder:
    limit = token_limit(spec, tokenizer)

    def encode(row: Mapping[str, Any], label: Label | None) -> Example:
        if label is None:
            prompt, completion = row[str(spec.prompt_column)], row[str(spec.completion_column)]
        else:
            assert isinstance(label, int), "only words have many labels"
            prompt, completion = row[str(spec.text_column)], before_label + (spec.label_names or ())[label]
        # Not str.format: braces in the user's text must stay what they are.
        return tokenize(tokenizer, spec.template.replace("{prompt}", prompt), completion, limit)

    return encode


def token_limit(spec: TaskSpec, tokenizer: Any) -> int | None:
    """Return how many tokens an example may have, if there is a limit."""
    return spec.max_length or tokenizer_limit(tokenizer)


def tokenizer_limit(tokenizer: Any) -> int | None:
    """Return how many tokens the tokenizer says that the model holds, if it says so."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _NO_LIMIT else None


def _require_open_prompts(tokenizer: Any) -> None:
    """Check that the tokenizer puts nothing behind a prompt: the completion would come after the end of the text."""
    plain = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(_PROBE)["input_ids"])
    added = len(ids) - len(plain)
    if added > 0 and ids[-len(plain) :] != plain and ids[-1] in tokenizer.all_special_ids:
        raise RecipeError(
            f"The tokenizer puts {tokenizer.convert_ids_to_tokens(ids[-1])!r} behind every text, so a prompt would be "
            "ended before its completion. Load it with add_eos_token=False, or give one that leaves prompts open."
        )


def _special_ids(tokenizer: Any) -> set[int]:
    # What the tokenizer adds by itself; a word that it does not know is still a word.
    return set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "unk_token_id", None)}


def _tokenize(tokenizer: Any, text: str, limit: int | None, special: set[int]) -> Example:
    encoding = tokenizer(text, truncation=limit is not None, max_length=limit)
    ids = list(encoding["input_ids"])
    if special.issuperset(ids):
        raise TaskDataError(f"the text {text!r} tokenises to nothing")
    mask = encoding["attention_mask"] if "attention_mask" in encoding else [1] * len(ids)
    return {
        "input_ids": torch.tensor(ids, dtype=torch.int64),
        "attention_mask": torch.tensor(list(mask), dtype=torch.int64),
    }


def _tokenize_pair(tokenizer: Any, prompt: str, completion: str, limit: int | None) -> Example:
    prompt_ids = list(tokenizer(prompt, truncation=False)["input_ids"])
    completion_ids = list(tokenizer(completion, truncation=False, add_special_tokens=False)["input_ids"])
    if not completion_ids:
        raise TaskDataError(f"the completion {completion!r} tokenises to nothing")
    if not prompt_ids:
        raise TaskDataError(f"the prompt {prompt!r} tokenises to nothing, and the completion needs a token before it")
    if tokenizer.eos_token_id is not None:
        completion_ids.append(tokenizer.eos_token_id)
    if limit is not None:
        if limit < 2:
            raise TaskDataError(f"max_length {limit} leaves no completion token after the prompt")
        # The completion is what is learnt, so the prompt gives way, oldest tokens first; one token of it must stay,
        # because the first position of a causal model is never predicted.
        completion_ids = completion_ids[: limit - 1]
        prompt_ids = _cut_left(prompt_ids, limit - len(completion_ids), tokenizer.bos_token_id)
    ids = prompt_ids + completion_ids
    return {
        "input_ids": torch.tensor(ids, dtype=torch.int64),
        "attention_mask": torch.ones(len(ids), dtype=torch.int64),
        "labels": torch.tensor([IGNORED_LABEL] * len(prompt_ids) + completion_ids, dtype=torch.int64),
    }


def _tokenize_seq2seq(tokenizer: Any, prompt: str, completion: str, limit: int | None) -> Example:
    encoding = tokenizer(prompt, truncation=limit is not None, max_length=limit)
    ids = list(encoding["input_ids"])
    if not ids:
        raise TaskDataError(f"the prompt {prompt!r} tokenises to nothing")
    # As the tokenizer writes targets: T5 ends them, BART also begins them, translation models name the language.
    labels = list(tokenizer(text_target=completion, truncation=False)["input_ids"])
    if _special_ids(tokenizer).issuperset(labels):
        raise TaskDataError(f"the completion {completion!r} tokenises to nothing")
    if tokenizer.eos_token_id is not None and labels[-1] != tokenizer.eos_token_id:
        labels.append(tokenizer.eos_token_id)
    mask = encoding["attention_mask"] if "attention_mask" in encoding else [1] * len(ids)
    return {
        "input_ids": torch.tensor(ids, dtype=torch.int64),
        "attention_mask": torch.tensor(list(mask), dtype=torch.int64),
        "labels": torch.tensor(labels[:limit], dtype=torch.int64),
    }


def _cut_left(ids: list[int], num_tokens: int, bos_token_id: int | None) -> list[int]:
    if len(ids) <= num_tokens:
        return ids
    # Models that start with a BOS token expect it whatever follows.
    head = ids[:1] if ids[0] == bos_token_id else []
    return head + ids[len(ids) - (num_tokens - len(head)) :]
