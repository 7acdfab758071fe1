"""How well merged models serve.

report      a model's scores per task, per cluster and over all tasks
comparison  what other methods give on the same clusters
approaches  ways to serve and forget owners, measured alike
baselines   joint finetuning and SISA, and a model or adapter per owner, as approaches
merged      a saved merged model as an approach
attacks     what a model leaks of a task: membership inference and extraction
evaluators  `evaluate`'s evaluators, made to take pipelines of transformers 5
metrics     `evaluate`'s metrics, as classes that need no network
"""

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
from hf_clamu.evaluation.evaluators import evaluator
from hf_clamu.evaluation.merged import MergedModel
from hf_clamu.evaluation.metrics import METRICS, Accuracy, AnswerProbability, MacroF1
from hf_clamu.evaluation.report import EvaluationReport, Summary, evaluate_model

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
