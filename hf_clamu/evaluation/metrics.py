"""The measures as `evaluate.Metric`s that need neither the network nor a cache folder, for those who have `evaluate`.

`evaluate.load` fetches a metric's code from the Hub; these are classes, so they work offline and in every process at
once. Predictions and references stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate

from hf_clamu.evaluation.scores import accuracy, answer_probability, macro_f1

__all__ = ["METRICS", "Accuracy", "AnswerProbability", "MacroF1"]

_SKLEARN = """@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and Grisel, O. and others},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}"""
_TOFU = """@inproceedings{maini2024tofu,
  title={{TOFU}: A Task of Fictitious Unlearning for {LLM}s},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  booktitle={Conference on Language Modeling},
  year={2024}
}"""
_LABELS = """
Args:
    predictions (`list` of `int`, or `list` of `list` of `int`): labels, one per example or one per word of each.
    references (`list` of `int`, or `list` of `list` of `int`): the right ones, in the same order.
"""


class _InMemory(evaluate.Metric):  # type: ignore[misc]
    """A metric that writes no files unless it is told to (`keep_in_memory=False`)."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        self._is_in_memory = keep_in_memory
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _build_data_dir(self) -> str:
        # evaluate makes this folder under HF_HOME even where nothing will be written to it.
        return "" if self._is_in_memory else str(super()._build_data_dir())


def _label_features() -> list[datasets.Features]:
    number = datasets.Value("int64")
    return [
        datasets.Features({"predictions": kind, "references": kind}) for kind in (number, datasets.Sequence(number))
    ]


class Accuracy(_InMemory):
    """The share of labels that are right; for words, within each example first, then over the examples.

    Example:

    ```python
    >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
    {'accuracy': 0.75}
    >>> Accuracy().compute(predictions=[[0, 1], [2]], references=[[0, 0], [2]])
    {'accuracy': 0.75}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of right labels, in [0, 1]. Of words: the mean over examples of the share within each.",
            citation=_SKLEARN,
            inputs_description=_LABELS,
            features=_label_features(),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"accuracy": accuracy(predictions, references)}


class MacroF1(_InMemory):
    """The unweighted mean of the labels' F1 scores, over the labels that occur in references or predictions.

    A label that occurs in neither counts for nothing; one that is never predicted, or predicted but never right,
    counts as 0. Words of all examples are taken together.

    Example:

    ```python
    >>> MacroF1().compute(predictions=[0, 0, 1], references=[0, 1, 1])  # F1 of 0 and of 1: both 2/3
    {'macro_f1': 0.6666666666666666}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean of the F1 scores of the labels that occur in references or predictions, in [0, 1].",
            citation=_SKLEARN,
            inputs_description=_LABELS,
            features=_label_features(),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"macro_f1": macro_f1(predictions, references)}


class AnswerProbability(_InMemory):
    """The mean over examples of `P(a|q)^(1/|a|)`, the answer's probability for its length.

    Source: TOFU, section 2.2.

    Example:

    ```python
    >>> import math
    >>> AnswerProbability().compute(predictions=[math.log(0.5), math.log(0.25)])  # log P(a|q) / |a|
    {'answer_probability': 0.375}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean of P(a|q)^(1/|a|) over examples, in [0, 1]: how likely the right answers are.",
            citation=_TOFU,
            inputs_description="""
Args:
    predictions (`list` of `float`): per example log P(a|q) / |a|, the mean log-probability of the answer's tokens.
""",
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions: Sequence[float]) -> dict[str, float]:
        return {"answer_probability": answer_probability(predictions)}


METRICS: dict[str, Callable[[], evaluate.Metric]] = {
    "accuracy": Accuracy,
    "answer_probability": AnswerProbability,
    "macro_f1": MacroF1,
}
