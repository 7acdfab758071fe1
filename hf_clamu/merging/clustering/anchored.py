"""Clusters around fixed anchors, so that no task's cluster depends on another task."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.exact import digest_json
from hf_clamu.merging.cluster_names import words
from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.merging.clustering.task_vectors import SKETCH_SIZE, SketchMethod
from hf_clamu.training import TaskTrainer, derive_seed

__all__ = ["AnchoredClustering", "PublicRowsClustering", "place_anchors"]

_CENTRE, _DIRECTIONS = "centre", "directions"


class AnchoredClustering(SketchMethod):
    """By the nearest of K anchors: directions from the base model, drawn from the run seed, in the space of sketches.

    A task vector is a movement away from the base model, so its direction needs no centre that other tasks would have
    to give (features of a base model lie in a narrow cone, and all would be nearest to one anchor). Anchors without a
    task make no cluster, so there may be fewer than K. Everything is integers: no environment shows.

    Source of the partition: random directions and the largest inner product, a locality-sensitive hash for cosines
    (Charikar, 2002; Andoni et al., 2015).
    """

    name = "anchored"
    summary = "nearest of fixed anchors; requests move nobody else"
    names_clusters = True

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the name of each task's anchor; of two that are equally near, the first."""
        assert inputs.features is not None, "there is a sketch for every task"
        anchors = range(inputs.limit)  # however few tasks there are
        near_KT = [torch.mv(inputs.features, _anchor(inputs.run_seed, number)) for number in anchors]
        return _nearest(inputs, torch.stack(near_KT, dim=-1))


class PublicRowsClustering(ClusteringMethod):
    """By the nearest of K anchors: centres of rows that belong to nobody, in the space of the base model's features.

    A task's feature is its closeness to each anchor: the cosine of the base model's mean feature of its rows with the
    anchor, both taken from the mean of the public rows (features of a base model lie in a narrow cone). Anchors are
    placed once, at the build, and saved. Those without a task make no cluster.
    """

    name = "public_rows"
    summary = "nearest of anchors in public rows; requests move nobody else"
    feature_source = "data"
    feature_dtype = torch.float32
    needs_data = True
    needs_public_rows = True
    names_clusters = True
    depends_on_environment = True

    def data_feature(self, trainer: TaskTrainer, task_id: str) -> torch.Tensor:
        """Return the cosine with each anchor."""
        feature_D = trainer.prompt_feature(task_id).double() - trainer.anchors[_CENTRE].double()
        return torch.cosine_similarity(trainer.anchors[_DIRECTIONS].double(), feature_D, dim=-1).float()

    def labels(self, inputs: ClusteringInputs, count: int) -> Mapping[str, Hashable]:
        """Return the name of each task's anchor; of two that are equally near, the first."""
        assert inputs.features is not None, "there is a closeness to each anchor for every task"
        return _nearest(inputs, inputs.features)

    def fits_anchors(self, anchors: Mapping[str, torch.Tensor], count: int | None) -> bool:
        """Whether tensors are what `place_anchors` returns."""
        if sorted(anchors) != [_CENTRE, _DIRECTIONS]:
            return False
        centre, directions = anchors[_CENTRE], anchors[_DIRECTIONS]
        if centre.ndim != 1 or directions.ndim != 2 or len(directions) != (count or len(directions)):
            return False
        are_plain = (one.dtype == torch.float32 and bool(one.isfinite().all()) for one in (centre, directions))
        return len(directions) > 0 and directions.shape[1] == len(centre) and all(are_plain)


def place_anchors(features: torch.Tensor, count: int, run_seed: int) -> dict[str, torch.Tensor]:
    """Return the centres of public rows: k-means on the directions of their features from the mean.

    Args:
        features (`torch.Tensor` of shape `(rows, hidden_size)`): the base model's feature of each row.
        count (`int`): anchors.
        run_seed (`int`): the seed of the recipe.

    Returns:
        *dict* of `str` to `torch.Tensor`: `"centre"`, the mean, of shape `(hidden_size,)`, and `"directions"` of shape
        `(count, hidden_size)`, float32.

    Raises:
        TaskDataError: if there are fewer different rows than anchors.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    different = len(features.unique(dim=0))
    if different < count:
        raise TaskDataError(
            f"{count} anchors (num_clusters) need as many public rows, and the base model tells {different} apart. "
            "Give more rows, or fewer clusters."
        )
    centre_D = features.double().mean(0)
    directions_ND = torch.nn.functional.normalize(features.double() - centre_D, dim=-1)
    # One thread: sums of several depend on their number.
    with threadpool_limits(limits=1):
        placed = KMeans(count, n_init=10, random_state=derive_seed(run_seed, "anchors") % 2**32)
        placed.fit(directions_ND.numpy())
    centres_KD = torch.from_numpy(placed.cluster_centers_)
    return {_CENTRE: centre_D.float(), _DIRECTIONS: torch.nn.functional.normalize(centres_KD, dim=-1).float()}


def _nearest(inputs: ClusteringInputs, near: torch.Tensor) -> dict[str, str]:
    """Return the name of the anchor that each task is nearest to, by its row of `near`; of equals the first."""
    anchors = range(near.shape[-1])
    names = words(digest_json([inputs.run_seed, "anchor", number]) for number in anchors)
    nearest_T = near.numpy().argmax(-1).tolist()
    return {task_id: names[number] for task_id, number in zip(inputs.task_ids, nearest_T, strict=True)}


def _anchor(run_seed: int, number: int) -> torch.Tensor:
    """Return a direction: a sign for each place of a sketch; it is the same whatever the number of anchors."""
    generator = torch.Generator().manual_seed(derive_seed(run_seed, "anchor", str(number)))
    return torch.randint(0, 2, (SKETCH_SIZE,), generator=generator).mul_(2).sub_(1)
