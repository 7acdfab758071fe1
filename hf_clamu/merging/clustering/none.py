"""No clusters: a mask per task."""

from __future__ import annotations

from collections.abc import Iterable

from hf_clamu.merging.clustering.base import ClusteringMethod

__all__ = ["NoClustering"]


class NoClustering(ClusteringMethod):
    """Each task is a cluster of its own."""

    name = "none"
    summary = "a mask per task"

    def num_clusters(self, limit: int, num_tasks: int, keys: Iterable[str | None]) -> int:
        """Return the number of tasks, whatever the limit."""
        return num_tasks
