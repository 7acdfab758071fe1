"""Settings of the clustering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_clamu.errors import RecipeError

__all__ = ["ClusteringArguments", "ClusteringName"]

# For editors: the built-in ones. The registry decides what is accepted.
ClusteringName = (
    Literal["features", "task_vectors", "stable_kmeans", "anchored", "public_rows", "random", "column", "none"] | str
)


@dataclass(frozen=True, kw_only=True)
class ClusteringArguments:
    """How tasks are grouped."""

    num_clusters: int = field(default=20, metadata={"help": "Clusters K; never more than tasks."})
    clustering: ClusteringName = field(default="features", metadata={"help": "Which tasks share a mask"})
    keep_features: bool = field(
        default=True,
        metadata={
            "help": "Keep the mean feature of each task's training examples under the base model, where tasks have "
            "data, whatever the clustering: cluster='auto' finds the cluster of an input by it."
        },
    )

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise RecipeError(f"num_clusters must be at least 1, got {self.num_clusters!r}.")
