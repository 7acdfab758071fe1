"""How well merged models serve: metrics and evaluators for `evaluate`, reports per task and cluster, other methods."""

from hf_clamu.evaluation.comparison import MethodScore, compare_methods
from hf_clamu.evaluation.evaluators import evaluator
from hf_clamu.evaluation.metrics import METRICS, Accuracy, AnswerProbability, MacroF1
from hf_clamu.evaluation.report import EvaluationReport, Summary, evaluate_model

__all__ = [
    "METRICS",
    "Accuracy",
    "AnswerProbability",
    "EvaluationReport",
    "MacroF1",
    "MethodScore",
    "Summary",
    "compare_methods",
    "evaluate_model",
    "evaluator",
]
