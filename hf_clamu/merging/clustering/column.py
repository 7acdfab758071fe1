"""Clusters that the data name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod

__all__ = ["ColumnClustering"]


class ColumnClustering(ClusteringMethod):
    """By the cluster column of the data, however many clusters it names."""

    name = "column"
    summary = "given by the data"
    needs_data = True
    needs_keys = True
    names_clusters = True

    def num_clusters(self, limit: int, num_tasks: int, keys: Iterable[str | None]) -> int:
        """Count the clusters that the data name."""
        return len(set(keys))

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the data's own."""
        return inputs.keys
