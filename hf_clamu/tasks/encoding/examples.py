"""The encoded examples of a task: their canonical order, their digest and their validation split.

Nothing here depends on a row's position: examples are ordered by the digest of their tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hf_clamu.exact.digest import canonical_json, digest_tensors, sha256_hex
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["EncodedTask", "Example", "arrange", "split_by_content", "validation_count"]

T = TypeVar("T")
Example = dict[str, torch.Tensor]


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
        chat_template (`str`, *optional*): SHA-256 of the template that made texts of conversations; part of `digest`.
    """

    task_id: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    digest: str | None
    cluster_key: str | None = None
    chat_template: str | None = None

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
    chat_template: str | None = None,
) -> EncodedTask:
    """Order the examples of a task by content and split off its validation examples.

    Args:
        spec (`TaskSpec`): gives `validation_fraction` and `split_seed`.
        task_id (`str`): the task.
        train (*iterable* of *dict* of `str` to `torch.Tensor`): encoded examples in any order.
        validation (*iterable* of *dict* of `str` to `torch.Tensor`, *optional*):
            Validation examples given by the data set; None splits them off `train`.
        cluster_key (`str`, *optional*): handed on.
        chat_template (`str`, *optional*): SHA-256 of the template of conversations, for the digest.

    Returns:
        `EncodedTask`: a function of the multisets of examples. One row more or less moves at most one other example
        between training and validation.
    """
    held_out = None if validation is None else [(digest_tensors(example), example) for example in validation]
    train_pairs, validation_pairs = split_by_content(
        spec, task_id, [(digest_tensors(example), example) for example in train], held_out
    )
    digests: dict[str, Any] = {"train": [d for d, _ in train_pairs], "validation": [d for d, _ in validation_pairs]}
    if chat_template is not None:
        digests["chat_template"] = chat_template
    return EncodedTask(
        task_id=task_id,
        train=tuple(example for _, example in train_pairs),
        validation=tuple(example for _, example in validation_pairs),
        digest=sha256_hex(canonical_json(digests)),
        cluster_key=cluster_key,
        chat_template=chat_template,
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
