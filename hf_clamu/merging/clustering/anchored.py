"""Clusters around fixed anchors, so that no task's cluster depends on another task."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch

from hf_clamu.exact import TaskVector, digest_json
from hf_clamu.merging.cluster_names import words
from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.merging.clustering.task_vectors import SKETCH_SIZE, sketch
from hf_clamu.training import derive_seed

__all__ = ["AnchoredClustering"]


class AnchoredClustering(ClusteringMethod):
    """By the nearest of K anchors: directions from the base model, drawn from the run seed, in the space of sketches.

    A task vector is a movement away from the base model, so its direction needs no centre that other tasks would have
    to give (features of a base model lie in a narrow cone, and all would be nearest to one anchor). Anchors without a
    task make no cluster, so there may be fewer than K. Everything is integers: no environment shows.

    Source of the partition: random directions and the largest inner product, a locality-sensitive hash for cosines
    (Charikar, 2002; Andoni et al., 2015).
    """

    name = "anchored"
    summary = "nearest of fixed anchors; requests move nobody else"
    feature_source = "task_vector"
    feature_dtype = torch.int64
    names_clusters = True

    def vector_feature(self, vector: TaskVector, run_seed: int) -> torch.Tensor:
        """Return the sketch."""
        return sketch(vector, run_seed)

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the name of each task's anchor; of two that are equally near, the first."""
        assert inputs.features is not None, "there is a sketch for every task"
        count = inputs.limit  # of anchors, however few tasks there are
        names = words(digest_json([inputs.run_seed, "anchor", number]) for number in range(count))
        near_KT = [inputs.features.mul(_anchor(inputs.run_seed, number)).sum(-1).tolist() for number in range(count)]
        nearest = [max(range(count), key=near_K.__getitem__) for near_K in zip(*near_KT, strict=True)]
        return {task_id: names[number] for task_id, number in zip(inputs.task_ids, nearest, strict=True)}


def _anchor(run_seed: int, number: int) -> torch.Tensor:
    """Return a direction: a sign for each place of a sketch; it is the same whatever the number of anchors."""
    generator = torch.Generator().manual_seed(derive_seed(run_seed, "anchor", str(number)))
    return torch.randint(0, 2, (SKETCH_SIZE,), generator=generator).mul_(2).sub_(1)
