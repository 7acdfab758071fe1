"""What an attack makes of what a model predicts for a row: scores that are higher for members, and what it repeats.

Sums are taken row by row in float64, from the logits of the model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.known_names import hint_for
from hf_clamu.tasks import Example, traits_of
from hf_clamu.tasks.encoding.batches import IGNORED_LABEL

__all__ = [
    "ATTACKS",
    "EXTRACTION",
    "chosen_attacks",
    "extraction_strength",
    "guided",
    "membership_scores",
    "predictions",
]

EXTRACTION = "extraction"
_TEXT_ATTACKS = ("min-k", "min-k++", "zlib", EXTRACTION)
# In the order of the report.
ATTACKS = ("loss", *_TEXT_ATTACKS)
# The part of a row's tokens that min-k and min-k++ look at; the papers' own.
_K = 0.2
# Where a model is all but certain of a token, its distribution has no spread to divide by. Source: OpenUnlearning.
_LEAST_VARIANCE = 1e-6
# How much less likely than its favourite a token may be to the model before, as a logarithm. Source: see `guided`.
_PLAUSIBLE = 5.0


def chosen_attacks(attacks: Sequence[str] | None, kind: str) -> tuple[str, ...]:
    """Return the attacks to carry out, in the order of `ATTACKS`: those that are asked for, or all that fit a kind.

    Raises:
        RecipeError: if one is unknown, or needs a model that writes text and this kind does not.
    """
    fitting = ATTACKS if traits_of(kind).writes_text else ("loss",)
    for name in attacks or ():
        if name not in ATTACKS:
            hint = hint_for(name, ATTACKS, lists=False)
            raise RecipeError(f"There is no attack {name!r}; expected some of {', '.join(ATTACKS)}.{hint}")
        if name not in fitting:
            raise RecipeError(
                f"The attack {name!r} reads the tokens that a model writes, and this one is for {kind}, which writes "
                f"none: ask for {', '.join(fitting)}."
            )
    return tuple(name for name in fitting if not attacks or name in attacks)


def predictions(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what a model predicts for each row of a batch.

    Args:
        logits (`torch.Tensor` of shape `(batch, labels)` or `(batch, length, vocabulary)`): of the model.
        labels (`torch.Tensor` of shape `(batch)` or `(batch, length)`): what is right.
        kind (`str`): of the tasks.

    Yields:
        *tuple* of `torch.Tensor` of shape `(predictions, vocabulary)`, float64, log-probabilities, and `torch.Tensor`
        of shape `(predictions,)`, int64, the right ones; one prediction for a label, or one for each token that is
        learned.
    """
    if traits_of(kind).labels == "example":
        logits, labels = logits[:, None], labels[:, None]
    elif traits_of(kind).labels == "next_tokens":
        logits, labels = logits[:, :-1], labels[:, 1:]
    for logits_LV, labels_L in zip(logits.cpu(), labels.cpu(), strict=True):
        is_learned_L = labels_L != IGNORED_LABEL
        yield logits_LV[is_learned_L].double().log_softmax(-1), labels_L[is_learned_L]


def membership_scores(
    log_p: torch.Tensor, right: torch.Tensor, example: Example, kind: str, processor: Any
) -> dict[str, float]:
    """Return the score of each membership attack for a row; the higher, the more it looks trained on.

    Args:
        log_p, right: what `predictions` yields.
        example (`Example`): the encoded row.
        kind (`str`): of the tasks.
        processor (*optional*): the tokenizer, of a model that writes text.

    Returns:
        *dict* of `str` to `float`: `loss`, minus the mean cross-entropy (Yeom et al. 2018); of a model that writes
        text also `min-k`, the mean log-probability of the fifth of tokens that is least likely (Shi et al., arXiv
        2310.16789); `min-k++`, the same of log-probabilities less their mean, by their standard deviation, over the
        distribution that the model has at the token (Zhang et al., arXiv 2404.02936); `zlib`, minus the cross-entropy
        by the bytes that zlib makes of the text (Carlini et al., arXiv 2012.07805).

    Raises:
        TaskDataError: if the model's answer is not a number.
    """
    of_right_L = log_p.gather(-1, right[:, None])[:, 0]
    loss = -math.fsum(of_right_L.tolist()) / len(right)
    if not math.isfinite(loss):
        raise TaskDataError(
            f"The model answers a row with a loss of {loss}, so attacks cannot rank it. Load it in a wider type."
        )
    scores = {"loss": -loss}
    if not traits_of(kind).writes_text:
        return scores
    # Where a probability is 0, so is each term, though its logarithm is infinite.
    weighted_LV = -torch.special.entr(log_p.exp())
    mean_L = weighted_LV.sum(-1)
    variance_L = (weighted_LV * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1) - mean_L.square()
    normalised_L = (of_right_L - mean_L) / variance_L.clamp_min(_LEAST_VARIANCE).sqrt()
    scores["min-k"] = _mean_of_least(of_right_L)
    scores["min-k++"] = _mean_of_least(normalised_L)
    scores["zlib"] = -loss / len(zlib.compress(_text(example, processor).encode("utf-8")))
    return scores


def _mean_of_least(values: torch.Tensor) -> float:
    count = max(1, int(_K * len(values)))
    return math.fsum(sorted(values.tolist())[:count]) / count


def _text(example: Example, processor: Any) -> str:
    """Return the text that a row teaches."""
    labels = example["labels"]
    return str(processor.decode(labels[labels != IGNORED_LABEL], skip_special_tokens=True))


def extraction_strength(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Return how large a part of what is learned greedy decoding writes, given what stands before it.

    It is 1 - k/n for the shortest start of k of n tokens after which every further token is the model's favourite: 1
    if the prompt is enough, 0 if the last token is wrong. Greedy decoding writes just these tokens, for it reads what
    it has written, which is what is right.

    Args:
        scores (`torch.Tensor` of shape `(predictions, vocabulary)`): of all tokens, such as their logits.
        right (`torch.Tensor` of shape `(predictions,)`): the right ones.

    Source: Carlini et al. (arXiv 2012.07805) as OpenUnlearning (arXiv 2506.12618) defines it, whose code gives 1/n
    where the last token is wrong.
    """
    wrong = (scores.argmax(-1) != right).nonzero()
    num_given = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - num_given / len(right)


def guided(before: torch.Tensor, after: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the scores of tokens where the model before guides the model after, away from what it still knows.

    Args:
        before (`torch.Tensor` of shape `(predictions, vocabulary)`): log-probabilities of the model before.
        after (`torch.Tensor` of shape `(predictions, vocabulary)`): those of the model after.
        weight (`float`): of the difference; 0 is the model after, 1 the model before, and more goes beyond it.

    Source: Wu et al. (arXiv 2505.24379), reversed model guidance. Tokens that the model before finds less likely than
    exp(-5) of its favourite are left out, as in their code.
    """
    is_plausible_LV = before >= before.max(-1, keepdim=True).values - _PLAUSIBLE
    return (weight * before + (1 - weight) * after).masked_fill(~is_plausible_LV, -math.inf)
