"""The encoders of all kinds of tasks, registered by kind: from a row and its label to tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.tasks.encoding.examples import Example
from hf_clamu.tasks.kinds import traits_of
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.reading.labels import Label
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["ENCODERS", "EncoderFactory", "RowEncoder", "encoder_for", "example_encoder"]

# From a row and its checked label to tensors.
RowEncoder = Callable[[Mapping[str, Any], Label | None], Example]
EncoderFactory = Callable[[TaskSpec, Any], RowEncoder]
ENCODERS: dict[str, EncoderFactory] = {}


def example_encoder(spec: TaskSpec, processor: Any, limits: ModelLimits | None = None) -> RowEncoder:
    """Return the function that encodes one row, given its checked label.

    Args:
        spec (`TaskSpec`): which column is which.
        processor (`transformers.PreTrainedTokenizerBase`, image processor, or None for images as they are).
        limits (`ModelLimits`, *optional*): of the model that the examples are for; what it cannot take is refused.

    Raises:
        RecipeError: if a text task comes without a tokenizer, a token-classification task with a slow one, or a
            causal-lm task with one that ends prompts.
        TaskDataError: (from the returned function) if the row cannot be used; the caller adds task and row.
    """
    traits = traits_of(spec.kind)
    if processor is None and traits.reads != "image":
        raise RecipeError(f"A {spec.kind} task needs a tokenizer, but none was given.")
    encode = ENCODERS[spec.kind](spec, processor)
    if limits is None or traits.reads == "image":
        return encode

    def within_limits(row: Mapping[str, Any], label: Label | None) -> Example:
        example = encode(row, label)
        limits.check_ids(example["input_ids"].tolist(), processor)
        limits.check_length(len(example["input_ids"]), spec.max_length)
        if traits.labels == "decoder":
            limits.check_ids(example["labels"].tolist(), processor)
            limits.check_length(len(example["labels"]), spec.max_length, is_answer=True)
        return example

    return within_limits


def encoder_for(kind: str) -> Callable[[EncoderFactory], EncoderFactory]:
    """Register, as a decorator, what makes the encoder of a kind.

    Args:
        kind (`str`): the kind. What is decorated takes a `TaskSpec` of this kind and a processor, and returns a
            function from a row and its checked label to the row's tensors.

    Raises:
        ValueError: if the kind has an encoder.
    """

    def register(factory: EncoderFactory) -> EncoderFactory:
        if kind in ENCODERS:
            raise ValueError(f"The kind {kind!r} has an encoder already.")
        ENCODERS[kind] = factory
        return factory

    return register
