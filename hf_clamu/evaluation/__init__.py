"""How well merged models serve.

report      a model's scores per task, per cluster and over all tasks
comparison  what other methods give on the same clusters
evaluators  `evaluate`'s evaluators, made to take pipelines of transformers 5
figures     drawings of the demo's results
metrics     `evaluate`'s metrics, as classes that need no network
"""

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
