"""What a live model does on data: losses, scores and features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import Example, traits_of
from hf_clamu.training.batching import chunks
from hf_clamu.training.workspace import LiveModel

__all__ = [
    "Measurement",
    "example_features",
    "label_predictions",
    "logits_and_labels",
    "losses_and_scores",
    "measure",
    "prompts_of",
    "task_feature",
]

EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Mean loss and mean score over examples.

    Args:
        loss (`float`): mean cross-entropy per example (over its tokens first, where there are many), in nats.
        score (`float`): accuracy for classifiers (of labelled words within an example first, then over the examples);
            for language models the answer probability `P(a|q)^(1/|a|) = exp(-mean token loss)`, averaged over the
            examples. Both in [0, 1].
    """

    loss: float
    score: float


def measure(live: LiveModel, examples: Sequence[Example], kind: str) -> Measurement:
    """Measure the live model on examples.

    Args:
        live (`LiveModel`): the model.
        examples (*sequence* of `Example`): at least one.
        kind (`str`): of the tasks.

    Source of the answer probability: TOFU, section 2.2 (end-of-sequence token included).
    """
    losses, scores = losses_and_scores(live, examples, kind)
    # fsum rounds once, so the mean does not depend on how the examples were split.
    count = len(losses)
    return Measurement(loss=math.fsum(losses) / count, score=math.fsum(scores) / count)


@torch.no_grad()
def losses_and_scores(live: LiveModel, examples: Sequence[Example], kind: str) -> tuple[list[float], list[float]]:
    """Return the loss and the score of each example, which `Measurement` describes.

    Args:
        live (`LiveModel`): the model.
        examples (*sequence* of `Example`): any number.
        kind (`str`): of the tasks; it tells what their labels mean.
    """
    traits = traits_of(kind)
    losses: list[float] = []
    scores: list[float] = []
    for logits, labels_B in logits_and_labels(live, examples, kind):
        if traits.labels == "example":
            losses += torch.nn.functional.cross_entropy(logits, labels_B, reduction="none").tolist()
            scores += (logits.argmax(-1) == labels_B).float().tolist()
            continue
        # Only a causal model predicts the next token at each position.
        is_shifted = traits.labels == "next_tokens"
        logits_BLV, labels_BL = (logits[:, :-1], labels_B[:, 1:]) if is_shifted else (logits, labels_B)
        counted_BL = labels_BL != -100
        loss_BL = torch.nn.functional.cross_entropy(logits_BLV.transpose(1, 2), labels_BL, reduction="none")
        loss_B = (loss_BL * counted_BL).sum(-1) / counted_BL.sum(-1)
        losses += loss_B.tolist()
        if traits.labels == "words":
            hits_BL = (logits_BLV.argmax(-1) == labels_BL) & counted_BL
            scores += (hits_BL.sum(-1) / counted_BL.sum(-1)).tolist()
        else:
            scores += torch.exp(-loss_B).tolist()
    return losses, scores


@torch.no_grad()
def label_predictions(live: LiveModel, examples: Sequence[Example], kind: str) -> tuple[list[Any], list[Any]]:
    """Return what a classifier answers, and what is right: a number for each example, or for each word of each.

    Args:
        live (`LiveModel`): the model.
        examples (*sequence* of `Example`): any number.
        kind (`str`): of the tasks, which have labels.
    """
    predictions: list[Any] = []
    references: list[Any] = []
    for logits, labels_B in logits_and_labels(live, examples, kind):
        found_B = logits.argmax(-1)
        if traits_of(kind).labels == "example":
            predictions += found_B.tolist()
            references += labels_B.tolist()
            continue
        for found_L, labels_L in zip(found_B, labels_B, strict=True):
            is_word_L = labels_L != -100
            predictions.append(found_L[is_word_L].tolist())
            references.append(labels_L[is_word_L].tolist())
    return predictions, references


def logits_and_labels(
    live: LiveModel, examples: Sequence[Example], kind: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and labels of one batch after the other.

    Args:
        live (`LiveModel`): the model.
        examples (*sequence* of `Example`): any number.
        kind (`str`): of the tasks.

    Returns:
        *iterator*: of pairs of `torch.Tensor`, the logits in float32, on the device of the model.
    """
    live.model.eval()
    for part in chunks(examples, EVALUATION_BATCH):
        batch = live.batch(part)
        # A decoder reads the labels, shifted by one; every other model only needs its inputs.
        labels_B = batch["labels"] if traits_of(kind).labels == "decoder" else batch.pop("labels")
        yield live.forward(batch).logits.float(), labels_B


def task_feature(live: LiveModel, examples: Sequence[Example]) -> torch.Tensor:
    """Return the mean feature of a task's examples under the base model, see `example_features`.

    Args:
        live (`LiveModel`): the model, which must hold `theta_0`.
        examples (*sequence* of `Example`): the task's training examples.

    Returns:
        `torch.Tensor` of shape `(hidden_size,)`, float32, on the CPU.

    Raises:
        RecipeError: if the architecture shows neither pooling nor hidden states.
    """
    total: torch.Tensor | None = None
    for pooled_BD in _pooled(live, examples):
        summed = pooled_BD.sum(0)
        total = summed if total is None else total + summed
    assert total is not None, "a task has at least one training example"
    return (total / len(examples)).float().cpu()


def example_features(live: LiveModel, examples: Sequence[Example]) -> torch.Tensor:
    """Return what the base model makes of each example.

    The feature of an example is the model's own pooling if there is one (of the vision tower, for CLIP), and otherwise
    the last token of the last layer (text) or its first token (image).

    Args:
        live (`LiveModel`): the model, which must hold `theta_0`.
        examples (*sequence* of `Example`): at least one.

    Returns:
        `torch.Tensor` of shape `(examples, hidden_size)`, float32, on the CPU.

    Raises:
        RecipeError: if the architecture shows neither pooling nor hidden states.
    """
    return torch.cat(list(_pooled(live, examples))).float().cpu()


def prompts_of(examples: Sequence[Example], kind: str) -> list[Example]:
    """Return what a model is given of each example: without the completion where it is to write that itself.

    Args:
        examples (*sequence* of `Example`): any number.
        kind (`str`): of the tasks.
    """
    if traits_of(kind).labels != "next_tokens":
        return list(examples)
    cut = [int((example["labels"] != -100).to(torch.uint8).argmax()) for example in examples]
    return [
        {name: tensor[:length] for name, tensor in example.items()} if length else example
        for example, length in zip(examples, cut, strict=True)
    ]


@torch.no_grad()
def _pooled(live: LiveModel, examples: Sequence[Example]) -> Iterator[torch.Tensor]:
    """Yield the features of a batch after the other, float64 of shape `(batch, hidden_size)`."""
    live.model.eval()
    backbone = _backbone(live.model)
    for part in chunks(examples, EVALUATION_BATCH):
        batch = live.batch(part)
        batch.pop("labels", None)
        output = backbone(**batch)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden_BLD = getattr(output, "last_hidden_state", None)
            if hidden_BLD is None:
                raise RecipeError(
                    f"Features need a base model with pooling or hidden states, but {type(live.model).__name__} has "
                    "neither. Choose a clustering other than 'features'."
                )
            if "attention_mask" in batch:
                last_B = batch["attention_mask"].sum(-1) - 1
                pooled = hidden_BLD[torch.arange(len(part), device=hidden_BLD.device), last_B]
            else:
                pooled = hidden_BLD[:, 0]
        yield pooled.reshape(len(part), -1).double()


def _backbone(model: Any) -> Any:
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if model.base_model is not model:
        return model.base_model
    # Image classifiers of the CLIP family have the tower alone, under another name than their base_model_prefix.
    return getattr(model, "vision_model", model)
