"""The measures themselves: numbers from predictions and what is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

__all__ = ["accuracy", "answer_probability", "macro_f1"]


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of labels that are right; for words, within each example first, then over the examples.

    Args:
        predictions (*sequence* of `int`, or of *sequence* of `int`): labels, one per example or one per word of each.
        references (*sequence* of `int`, or of *sequence* of `int`): the right ones, in the same order.
    """
    from sklearn.metrics import accuracy_score

    if not isinstance(references[0], list):
        return float(accuracy_score(references, predictions))
    shares = [accuracy_score(right, predicted) for right, predicted in zip(references, predictions, strict=True)]
    return math.fsum(shares) / len(shares)


def macro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the unweighted mean of the labels' F1 scores, over the labels that occur in references or predictions.

    A label that is never predicted, or predicted but never right, counts as 0. Words of all examples are taken
    together.

    Args:
        predictions, references: as `accuracy` takes them.
    """
    from sklearn.metrics import f1_score

    if isinstance(references[0], list):
        predictions, references = (list(itertools.chain(*labels)) for labels in (predictions, references))
    # scikit-learn's own choice of labels is the union of both.
    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


def answer_probability(log_probabilities: Sequence[float]) -> float:
    """Return the mean over examples of `P(a|q)^(1/|a|)`, the answer's probability for its length.

    Args:
        log_probabilities (*sequence* of `float`): per example log P(a|q) / |a|, the mean of the answer's tokens.

    Source: TOFU, section 2.2.
    """
    return math.fsum(map(math.exp, log_probabilities)) / len(log_probabilities)
