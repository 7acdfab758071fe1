"""What leaks: membership inference and extraction, on the rows of a task and rows that were held out.

attacking  `attack_model`: every attack on a model, on what it was before, and on a build without the task
rows       members and held-out rows
weights    the weights that are attacked: a cluster's, the global model's, the base's, those that two copies give
scores     what an attack makes of what a model predicts for a row
intervals  figures with intervals
report     all figures of a run
"""

from hf_clamu.evaluation.attacks.attacking import attack_model
from hf_clamu.evaluation.attacks.intervals import Estimate
from hf_clamu.evaluation.attacks.report import Extraction, Leakage, LeakageReport, Membership
from hf_clamu.evaluation.attacks.scores import ATTACKS

__all__ = ["ATTACKS", "Estimate", "Extraction", "Leakage", "LeakageReport", "Membership", "attack_model"]
