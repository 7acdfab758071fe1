"""No clusters: a mask per task."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod

__all__ = ["NoClustering"]


class NoClustering(ClusteringMethod):
    """Each task is a cluster of its own."""

    name = "none"
    summary = "a mask per task"
    names_clusters = True

    def num_clusters(self, limit: int, num_tasks: int, keys: Iterable[str | None]) -> int:
        """Return the number of tasks, whatever the limit."""
        return num_tasks

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the tasks' own ids."""
        return {task_id: task_id for task_id in inputs.task_ids}
