"""Deterministic training: finetuning of tasks, training of masks, measuring; each task on one device.

- `determinism`: seeds, threads and deterministic switches
- `environment`: what the bits of a run depend on besides data and recipe
- `workspace`: the live copy of the base model
- `batching`: which examples a step sees
- `finetuning`: from a task to its vector
- `signs`: one sign per weight that all task vectors keep to
- `masking`: training of masks
- `measuring`: losses, scores and features
- `outside`: what finetuning must not change
- `reporting`: losses, scores and seconds for trackers
- `task_trainer`: all of this for the tasks of one run
- `workers`: the processes that share a run
"""

from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import derive_seed, derive_seeds, deterministic, seeded, undisturbed
from hf_clamu.training.environment import Environment
from hf_clamu.training.finetuning import FinetuningArguments, finetune
from hf_clamu.training.masking import LearnedMask, MaskingArguments, train_mask
from hf_clamu.training.measuring import (
    Measurement,
    example_features,
    label_predictions,
    logits_and_labels,
    losses_and_scores,
    measure,
    prompts_of,
    task_feature,
)
from hf_clamu.training.reporting import BuildReport, LossReport, TrackerNames, Trackers
from hf_clamu.training.signs import FixedSigns
from hf_clamu.training.task_trainer import LocalVectors, Progress, TaskTrainer, silent_progress
from hf_clamu.training.workers import Workers
from hf_clamu.training.workspace import LiveModel, Workspace, move_model, trainable_names

__all__ = [
    "BuildReport",
    "Environment",
    "FinetuningArguments",
    "FixedSigns",
    "MaskingArguments",
    "LiveModel",
    "LearnedMask",
    "LocalVectors",
    "LossReport",
    "Measurement",
    "Progress",
    "TaskTrainer",
    "TrackerNames",
    "Trackers",
    "Workers",
    "Workspace",
    "derive_seed",
    "derive_seeds",
    "example_features",
    "deterministic",
    "finetune",
    "label_predictions",
    "logits_and_labels",
    "losses_and_scores",
    "measure",
    "move_model",
    "prompts_of",
    "sample_batches",
    "seeded",
    "silent_progress",
    "task_feature",
    "train_mask",
    "trainable_names",
    "undisturbed",
]
