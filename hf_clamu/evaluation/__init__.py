"""How well merged models serve.

report      a model's scores per task, per cluster and over all tasks
comparison  what other methods give on the same clusters
approaches  ways to serve and forget owners, measured alike
baselines   joint finetuning and SISA, and a model or adapter per owner, as approaches
merged      a saved merged model as an approach
attacks     what a model leaks of a task: membership inference and extraction
scores      the measures themselves: accuracy, macro F1, answer probability
metrics     the measures as metrics of `evaluate`, for those who have it
evaluators  `evaluate`'s evaluators, made to take pipelines of transformers 5
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_clamu.evaluation.approaches import (
    Approach,
    Measured,
    label_probabilities,
    labels_of_examples,
    measure_approach,
)
from hf_clamu.evaluation.attacks import Estimate, Extraction, Leakage, LeakageReport, Membership, attack_model
from hf_clamu.evaluation.baselines import OwnerModels, ShardedModels, finetune_together
from hf_clamu.evaluation.comparison import MethodScore, compare_methods
from hf_clamu.evaluation.merged import MergedModel
from hf_clamu.evaluation.report import EvaluationReport, Summary, evaluate_model

if TYPE_CHECKING:
    from hf_clamu.evaluation.evaluators import evaluator
    from hf_clamu.evaluation.metrics import METRICS, Accuracy, AnswerProbability, MacroF1

# What is made of classes of `evaluate`, which nothing else here needs.
_OF_EVALUATE = {
    **dict.fromkeys(("METRICS", "Accuracy", "AnswerProbability", "MacroF1"), "hf_clamu.evaluation.metrics"),
    "evaluator": "hf_clamu.evaluation.evaluators",
}

__all__ = [
    "METRICS",
    "Accuracy",
    "AnswerProbability",
    "Approach",
    "Estimate",
    "EvaluationReport",
    "Extraction",
    "Leakage",
    "LeakageReport",
    "MacroF1",
    "Measured",
    "Membership",
    "MergedModel",
    "MethodScore",
    "OwnerModels",
    "ShardedModels",
    "Summary",
    "attack_model",
    "compare_methods",
    "evaluate_model",
    "evaluator",
    "finetune_together",
    "label_probabilities",
    "labels_of_examples",
    "measure_approach",
]


def __getattr__(name: str) -> Any:
    if name not in _OF_EVALUATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_OF_EVALUATE[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "evaluate":
            raise
        raise ImportError(
            f"{name} is made of classes of the package evaluate, which is not installed: "
            "pip install evaluate. evaluate_model and `clamu evaluate` do without."
        ) from None
