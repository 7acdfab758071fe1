"""What is reported of a model on examples that neither training nor tuning has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hf_clamu.tasks import Example
from hf_clamu.training import LiveModel, measure
from hf_clamu.training.batching import chunks

if TYPE_CHECKING:
    from examples.paper.study import Study

__all__ = ["Measure", "first_answers", "label_accuracy"]

_BATCH = 64


class Measure:
    """A metric: accuracy of a classifier, TOFU's answer probability, or the accuracy of a label that is generated.

    Args:
        metric (`str`): `"accuracy"`, `"answer_probability"` or `"label_accuracy"`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._answers: list[int] = []

    def __call__(self, live: LiveModel, examples: Sequence[Example], study: Study) -> float:
        """Return the mean over examples, in [0, 1]."""
        if self.metric != "label_accuracy":
            return measure(live, examples, study.tasks.spec.kind).score
        if not self._answers:
            everything = (study.tasks.encode(one, study.base.processor) for one in study.tasks)
            self._answers = first_answers([example for task in everything for example in task.train])
        return label_accuracy(live, examples, self._answers)


def first_answers(examples: Sequence[Example]) -> list[int]:
    """Return the first tokens of all answers.

    Args:
        examples (*sequence* of `Example`): of a language model, whose answers are names of labels.

    Raises:
        ValueError: if two labels begin with the same token, so that it would not tell them apart.
    """
    answers = {tuple(labels[labels != -100].tolist()) for labels in (example["labels"] for example in examples)}
    first = sorted({answer[0] for answer in answers})
    if len(first) < len(answers):
        raise ValueError(f"{len(answers)} labels begin with {len(first)} different tokens; name them otherwise")
    return first


@torch.no_grad()
def label_accuracy(live: LiveModel, examples: Sequence[Example], answers: Sequence[int]) -> float:
    """Return how often the most probable of all labels is the right one, by the first token of its name.

    Args:
        live (`LiveModel`): a language model.
        examples (*sequence* of `Example`): prompts with the name of their label.
        answers (*sequence* of `int`): the first tokens of all names.
    """
    live.model.eval()
    candidates = torch.tensor(list(answers), device=live.device)
    hits = []
    for part in chunks(examples, _BATCH):
        batch = live.batch(part)
        labels_BL = batch.pop("labels")
        logits_BLV = live.forward(batch).logits.float()
        place_B = (labels_BL != -100).int().argmax(-1)
        rows_B = torch.arange(len(part), device=live.device)
        guess_B = candidates[logits_BLV[rows_B, place_B - 1][:, candidates].argmax(-1)]
        hits += (guess_B == labels_BL[rows_B, place_B]).float().tolist()
    return math.fsum(hits) / len(hits)
