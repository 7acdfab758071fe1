"""Rows to tensors: tokenisation, pixel values, the canonical order and the validation split of one task.

Nothing here depends on a row's position: examples are ordered by the digest of their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import canonical_json, digest_tensors, sha256_hex
from hf_clamu.tasks.columns import Label
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.spec import TaskSpec

__all__ = [
    "EncodedTask",
    "Example",
    "arrange",
    "collate",
    "encoder_for",
    "example_encoder",
    "split_by_content",
    "tokenizer_limit",
]

T = TypeVar("T")
Example = dict[str, torch.Tensor]
# Encodes one row, given its checked label.
RowEncoder = Callable[[Mapping[str, Any], Label | None], Example]
EncoderFactory = Callable[[TaskSpec, Any], RowEncoder]

ENCODERS: dict[str, EncoderFactory] = {}

IGNORED_LABEL = -100
# Tokenizers that know no limit report about 1e30.
_NO_LIMIT = 1_000_000
_CHANNEL_COUNTS = (1, 3, 4)
# Any text will do to see what a tokenizer puts around it.
_PROBE = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTask:
    """The tokenised examples of one task, in canonical order.

    Args:
        task_id (`str`): the task.
        train (*tuple* of *dict* of `str` to `torch.Tensor`):
            Text: `input_ids` and `attention_mask` (int64 of shape `(length,)`) and `labels` (int64, a scalar, or of
            shape `(length,)` with -100 on the prompt for causal-lm; for seq2seq-lm the completion's tokens, of a
            length of their own; for token-classification -100 on all but the first token of each word). Images:
            `pixel_values` (float32 of shape `(channels, height, width)`) and `labels` (int64 scalar).
        validation (*tuple* of *dict* of `str` to `torch.Tensor`): the same for the examples kept out of training.
        digest (`str`, *optional*): SHA-256 of both, a function of the multisets of examples; None if the task came
            without rows.
        cluster_key (`str`, *optional*): the task's value in the cluster column.
    """

    task_id: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    digest: str | None
    cluster_key: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.nbytes for example in (*self.train, *self.validation) for t in example.values())


def arrange(
    spec: TaskSpec,
    task_id: str,
    train: Iterable[Example],
    validation: Iterable[Example] | None = None,
    cluster_key: str | None = None,
) -> EncodedTask:
    """Order the examples of a task by content and split off its validation examples.

    Args:
        spec (`TaskSpec`): gives `validation_fraction` and `split_seed`.
        task_id (`str`): the task.
        train (*iterable* of *dict* of `str` to `torch.Tensor`): encoded examples in any order.
        validation (*iterable* of *dict* of `str` to `torch.Tensor`, *optional*):
            Validation examples given by the data set; None splits them off `train`.
        cluster_key (`str`, *optional*): handed on.

    Returns:
        `EncodedTask`: a function of the multisets of examples. One row more or less moves at most one other example
        between training and validation.
    """
    held_out = None if validation is None else [(digest_tensors(example), example) for example in validation]
    train_pairs, validation_pairs = split_by_content(
        spec, task_id, [(digest_tensors(example), example) for example in train], held_out
    )
    digests = {"train": [d for d, _ in train_pairs], "validation": [d for d, _ in validation_pairs]}
    return EncodedTask(
        task_id=task_id,
        train=tuple(example for _, example in train_pairs),
        validation=tuple(example for _, example in validation_pairs),
        digest=sha256_hex(canonical_json(digests)),
        cluster_key=cluster_key,
    )


def split_by_content(
    spec: TaskSpec, task_id: str, train: Iterable[tuple[str, T]], validation: Iterable[tuple[str, T]] | None
) -> tuple[list[tuple[str, T]], list[tuple[str, T]]]:
    """Order digests of examples, with what belongs to them, and split off the validation part, as `arrange` says.

    Args:
        spec (`TaskSpec`): gives `validation_fraction` and `split_seed`.
        task_id (`str`): the task.
        train (*iterable* of pairs of `str` and anything): digests of encoded examples.
        validation (*iterable* of such pairs, *optional*): those that the data set itself keeps out of training.
    """
    train_pairs = sorted(train, key=_digest_of)
    if validation is not None:
        return train_pairs, sorted(validation, key=_digest_of)
    # Equal examples have equal ranks, and which of them goes where makes no difference.
    ranked = sorted(train_pairs, key=lambda pair: _split_rank(spec.split_seed, task_id, pair[0]))
    count = validation_count(len(ranked), spec.validation_fraction)
    return sorted(ranked[count:], key=_digest_of), sorted(ranked[:count], key=_digest_of)


def _digest_of(pair: tuple[str, Any]) -> str:
    return pair[0]


def _split_rank(seed: int, task_id: str, digest: str) -> str:
    return sha256_hex(canonical_json([seed, task_id, digest]))


def validation_count(num_examples: int, fraction: float) -> int:
    """Return how many of a task's examples are kept out of training."""
    if fraction == 0 or num_examples < 2:
        return 0
    return min(max(round(fraction * num_examples), 1), num_examples - 1)


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
    traits = spec.traits
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


@encoder_for("image-classification")
def _image_encoder(spec: TaskSpec, processor: Any) -> RowEncoder:
    column = str(spec.image_column)
    return lambda row, label: {
        "pixel_values": _pixel_values(row[column], processor),
        "labels": torch.tensor(label, dtype=torch.int64),
    }


@encoder_for("sequence-classification")
def _text_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    column, limit, special = str(spec.text_column), _token_limit(spec, tokenizer), _special_ids(tokenizer)
    return lambda row, label: {
        **_tokenize(tokenizer, row[column], limit, special),
        "labels": torch.tensor(label, dtype=torch.int64),
    }


@encoder_for("token-classification")
def _words_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    if not getattr(tokenizer, "is_fast", False):
        raise RecipeError(
            f"A {spec.kind} task needs a fast tokenizer, which says which word a token belongs to; found the slow "
            f"{type(tokenizer).__name__}. Load it with use_fast=True, or choose a base that has one."
        )
    column, limit = str(spec.tokens_column), _token_limit(spec, tokenizer)
    return lambda row, label: _tokenize_words(tokenizer, row[column], label, limit)


@encoder_for("causal-lm")
def _continuation_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    _require_open_prompts(tokenizer)
    # The label continues the line of the prompt.
    return _pair_encoder(spec, tokenizer, _tokenize_pair, " ")


@encoder_for("seq2seq-lm")
def _answer_encoder(spec: TaskSpec, tokenizer: Any) -> RowEncoder:
    return _pair_encoder(spec, tokenizer, _tokenize_seq2seq, "")


def _pair_encoder(
    spec: TaskSpec, tokenizer: Any, tokenize: Callable[[Any, str, str, int | None], Example], before_label: str
) -> RowEncoder:
    limit = _token_limit(spec, tokenizer)

    def encode(row: Mapping[str, Any], label: Label | None) -> Example:
        if label is None:
            prompt, completion = row[str(spec.prompt_column)], row[str(spec.completion_column)]
        else:
            assert isinstance(label, int), "only words have many labels"
            prompt, completion = row[str(spec.text_column)], before_label + (spec.label_names or ())[label]
        # Not str.format: braces in the user's text must stay what they are.
        return tokenize(tokenizer, spec.template.replace("{prompt}", prompt), completion, limit)

    return encode


def _token_limit(spec: TaskSpec, tokenizer: Any) -> int | None:
    return spec.max_length or tokenizer_limit(tokenizer)


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


def tokenizer_limit(tokenizer: Any) -> int | None:
    """Return how many tokens the tokenizer says that the model holds, if it says so."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _NO_LIMIT else None


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


def _tokenize_words(tokenizer: Any, words: Sequence[str], label: Label | None, limit: int | None) -> Example:
    encoding = tokenizer(list(words), is_split_into_words=True, truncation=limit is not None, max_length=limit)
    tags = label if isinstance(label, tuple) else (0,) * len(words)  # prediction has none
    labels, before = [], None
    for word in encoding.word_ids():
        # The first token of a word stands for it; the rest, and what the tokenizer adds, is not learnt.
        labels.append(IGNORED_LABEL if word is None or word == before else tags[word])
        before = word
    if all(found == IGNORED_LABEL for found in labels):
        raise TaskDataError(f"the words {list(words)!r} tokenise to nothing")
    mask = encoding["attention_mask"] if "attention_mask" in encoding else [1] * len(labels)
    return {
        "input_ids": torch.tensor(list(encoding["input_ids"]), dtype=torch.int64),
        "attention_mask": torch.tensor(list(mask), dtype=torch.int64),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def _cut_left(ids: list[int], room: int, bos_token_id: int | None) -> list[int]:
    if len(ids) <= room:
        return ids
    # Models that start with a BOS token expect it whatever follows.
    head = ids[:1] if ids[0] == bos_token_id else []
    return head + ids[len(ids) - (room - len(head)) :]


def _pixel_values(image: Any, processor: Any) -> torch.Tensor:
    if image is None:
        raise TaskDataError("the image is null")
    if processor is not None:
        rgb = image.convert("RGB") if hasattr(image, "convert") else _rgb_array(_array(image))
        pixels = torch.as_tensor(processor(images=rgb, return_tensors="pt")["pixel_values"][0], dtype=torch.float32)
    else:
        array = _array(image)
        if array.ndim == 2:
            array = array[None]
        elif hasattr(image, "convert") or array.shape[-1] in _CHANNEL_COUNTS:
            # Channels last, as PIL has it, wins where both readings are possible.
            array = array.transpose(2, 0, 1)
        pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not bool(torch.isfinite(pixels).all()):
        raise TaskDataError("the image holds NaN or infinite pixels")
    return pixels


def _array(image: Any) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise TaskDataError("the image has rows of different lengths") from error
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or array.size == 0:
        raise TaskDataError(
            "expected a PIL image or numbers of shape (height, width), (height, width, channels) or (channels, "
            f"height, width), found {type(image).__name__} of shape {array.shape}; encoded image files need "
            "cast_column(..., datasets.Image())"
        )
    return array


def _rgb_array(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    # Nested lists of integers come as int64, which image processors do not take for 8-bit pixels.
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def collate(
    examples: Sequence[Example], pad_token_id: int | None, *, padding_side: Literal["left", "right"] = "right"
) -> dict[str, torch.Tensor]:
    """Put examples into one batch: pad 1-D tensors to the longest, stack everything else.

    Args:
        examples (*sequence* of *dict* of `str` to `torch.Tensor`): at least one; all of one kind.
        pad_token_id (`int`, *optional*): fills `input_ids`; not needed where nothing is padded.
        padding_side (`str`, defaults to `"right"`): "left" or "right".

    Returns:
        *dict* of `str` to `torch.Tensor`: `input_ids`, `attention_mask` (0 on padding) and token `labels` (-100 on
        padding) of shape `(batch, longest)`; `pixel_values` and class `labels` stacked.

    Raises:
        RecipeError: if texts of different lengths meet without a padding token.

    Example:

    ```python
    >>> batch = collate([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}], 0)
    >>> batch["input_ids"].tolist()
    [[5, 6], [7, 0]]

    ```
    """
    if padding_side not in ("left", "right"):
        raise RecipeError(f"padding_side must be 'left' or 'right', found {padding_side!r}.")
    fill = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
    batch: dict[str, torch.Tensor] = {}
    for name in examples[0]:
        tensors = [example[name] for example in examples]
        if tensors[0].dim() == 1:
            value = fill.get(name, 0)
            longest = max(len(tensor) for tensor in tensors)
            if value is None and any(len(tensor) < longest for tensor in tensors):
                raise RecipeError("Texts of different lengths need padding, but the tokenizer has no pad_token_id.")
            tensors = [_pad(tensor, longest, value or 0, padding_side) for tensor in tensors]
        batch[name] = torch.stack(tensors)
    return batch


def _pad(tensor: torch.Tensor, length: int, value: int, side: Literal["left", "right"]) -> torch.Tensor:
    missing = length - len(tensor)
    return torch.nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=value)
