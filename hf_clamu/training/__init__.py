"""Deterministic training on one device: finetuning of tasks, training of masks, measuring."""

from hf_clamu.training.archive import ARCHIVE_SUFFIX, Archive, is_archive_name, scratch_of
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import Environment, derive_seed, deterministic, seeded, undisturbed
from hf_clamu.training.durable import destroy_folder, is_plain_file, parse_json, write_private
from hf_clamu.training.finetuning import FinetuningArguments, finetune
from hf_clamu.training.journal import Journal, Part
from hf_clamu.training.masking import MaskingArguments, train_mask
from hf_clamu.training.measuring import Measurement, losses_and_scores, measure, task_feature
from hf_clamu.training.signs import FixedSigns
from hf_clamu.training.task_trainer import LocalVectors, Progress, TaskTrainer, silent_progress
from hf_clamu.training.workers import Workers
from hf_clamu.training.workspace import LiveModel, Workspace, trainable_names

__all__ = [
    "ARCHIVE_SUFFIX",
    "Archive",
    "Environment",
    "FinetuningArguments",
    "FixedSigns",
    "Journal",
    "MaskingArguments",
    "LiveModel",
    "LocalVectors",
    "Measurement",
    "Part",
    "Progress",
    "TaskTrainer",
    "Workers",
    "Workspace",
    "derive_seed",
    "destroy_folder",
    "deterministic",
    "finetune",
    "is_archive_name",
    "is_plain_file",
    "losses_and_scores",
    "measure",
    "parse_json",
    "sample_batches",
    "scratch_of",
    "seeded",
    "silent_progress",
    "task_feature",
    "train_mask",
    "trainable_names",
    "undisturbed",
    "write_private",
]
