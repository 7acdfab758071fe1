"""The encoder of language models: of conversations, with token ids and loss masks as TRL has them, and of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.conversations import ChatTemplate, MessagesError, split_row
from hf_clamu.tasks.encoding.batches import IGNORED_LABEL
from hf_clamu.tasks.encoding.encoders import RowEncoder, encoder_for
from hf_clamu.tasks.encoding.examples import Example
from hf_clamu.tasks.encoding.texts import continuation_encoder, token_limit
from hf_clamu.tasks.reading.labels import Label
from hf_clamu.tasks.spec import TaskSpec


@encoder_for("causal-lm")
def _language_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    if not spec.conversational:
        return continuation_encoder(spec, tokenizer)
    template, limit = ChatTemplate(spec, tokenizer), token_limit(spec, tokenizer)

    def encode(row: Mapping[str, Any], label: Label | None) -> Example:
        ids, learned = _masked(spec, template, row)
        return _example(ids, learned, limit)

    return encode


def _masked(spec: TaskSpec, template: ChatTemplate, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the token ids of a row, and 1 for those that are learned.

    Source: `SFTTrainer._prepare_dataset` of TRL, whose masks of assistant and completion hold together.
    """
    try:
        prompt, completion, tools = split_row(spec, row)
    except MessagesError as error:
        raise TaskDataError(str(error)) from error
    messages = [*(prompt or ()), *completion]
    ids, learned = template.tokens(messages, tools, finds_assistant=spec.assistant_only_loss)
    if spec.assistant_only_loss and not any(learned):
        raise TaskDataError("the chat template puts no turn of this conversation between its generation markers")
    if prompt is not None and spec.completion_only_loss is not False:
        start = template.completion_start(prompt, tools, ids)
        learned = [0] * start + learned[start:]
    return ids, learned


def _example(ids: list[int], learned: list[int], limit: int | None) -> Example:
    # The start is kept, as TRL does; the first token of a text is never predicted.
    if not any(learned[1:limit]):
        first = next((number for number, one in enumerate(learned) if one and number), None)
        if first is None:
            raise TaskDataError("no token of the conversation is learned: the completion adds none to the prompt")
        raise TaskDataError(
            f"the conversation has {len(ids)} tokens, of which the first {limit} are kept, and nothing before token "
            f"{first + 1} is learned. Set max_length to {first + 1} or more if the model takes that, shorten the row, "
            "or leave it out"
        )
    input_ids = torch.tensor(ids[:limit], dtype=torch.int64)
    mask = torch.tensor(learned[:limit], dtype=torch.bool)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~mask, IGNORED_LABEL),
    }
