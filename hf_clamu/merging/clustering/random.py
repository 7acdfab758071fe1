"""Clusters of even size that nothing but the ids decides."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.training import derive_seed

__all__ = ["RandomClustering"]


class RandomClustering(ClusteringMethod):
    """By a hash of the run seed and the task's id."""

    name = "random"
    summary = "of even size"

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Deal the tasks out in the order of their hashes."""

        def rank(task_id: str) -> tuple[int, str]:
            return derive_seed(inputs.run_seed, "random-cluster", task_id), task_id

        return {task_id: index % count for index, task_id in enumerate(sorted(inputs.task_ids, key=rank))}
