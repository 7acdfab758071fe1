"""Clusters of tasks whose examples look alike to the base model."""

from __future__ import annotations

import torch

from hf_clamu.merging.clustering.spectral import SpectralMethod
from hf_clamu.training import TaskTrainer

__all__ = ["FeatureClustering"]


class FeatureClustering(SpectralMethod):
    """By the mean feature of a task's training examples under the base model."""

    name = "features"
    summary = "of the base model"
    feature_source = "data"
    feature_dtype = torch.float32
    uses_base_features = True
    needs_data = True

    def data_feature(self, trainer: TaskTrainer, task_id: str) -> torch.Tensor:
        """Return the task's mean feature."""
        return trainer.feature(task_id)
