"""Which tasks share a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import TaskVector
from hf_clamu.training.determinism import derive_seed

__all__ = ["CLUSTERINGS", "ClusteringArguments", "affinity_matrix", "canonical_clusters", "cluster_tasks", "sketch"]

Clustering = Literal["features", "task_vectors", "random", "column", "none"]
CLUSTERINGS: tuple[str, ...] = get_args(Clustering)
_SKETCH_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class ClusteringArguments:
    """How tasks are grouped."""

    num_clusters: int = field(default=20, metadata={"help": "Clusters K; never more than tasks."})
    clustering: Clustering = field(
        default="features",
        metadata={
            "help": "features (of the base model), task_vectors (integer sketches), random, column (given by the "
            "data) or none (a mask per task)."
        },
    )

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise RecipeError(f"num_clusters must be at least 1, got {self.num_clusters!r}.")
        if self.clustering not in CLUSTERINGS:
            raise RecipeError(f"clustering must be one of {', '.join(CLUSTERINGS)}, got {self.clustering!r}.")


def canonical_clusters(assignment: Mapping[str, object]) -> tuple[tuple[str, ...], ...]:
    """Turn any labels into clusters whose numbers follow their smallest member.

    Args:
        assignment (*mapping* of `str` to *hashable*): task id to any label.

    Example:

    ```python
    >>> canonical_clusters({"c": 0, "a": 7, "b": 0})
    (('a',), ('b', 'c'))

    ```
    """
    groups: dict[object, list[str]] = {}
    for task_id in sorted(assignment):
        groups.setdefault(assignment[task_id], []).append(task_id)
    return tuple(tuple(members) for members in groups.values())


def affinity_matrix(vectors: np.ndarray) -> np.ndarray:
    """Return `(1 + cosine) / 2` of every pair of rows.

    The paper's affinity is the cosine itself; spectral clustering needs non-negative affinities.

    Args:
        vectors (`numpy.ndarray` of shape `(tasks, size)`): one row per task.

    Returns:
        `numpy.ndarray` of shape `(tasks, tasks)`, float64 in [0, 1]. A row of zeros has affinity 1/2 to all.
    """
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms == 0, 1.0, norms)
    return np.asarray(np.clip((1.0 + rows @ rows.T) / 2.0, 0.0, 1.0))


def cluster_tasks(
    arguments: ClusteringArguments,
    task_ids: Sequence[str],
    run_seed: int,
    *,
    vectors: torch.Tensor | None = None,
    keys: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Group tasks; a function of the given tasks alone.

    Args:
        arguments (`ClusteringArguments`): method and number of clusters.
        task_ids (*sequence* of `str`): in order of the ids.
        run_seed (`int`): the seed of the recipe.
        vectors (`torch.Tensor` of shape `(tasks, size)`, *optional*): features or sketches, a row per task.
        keys (*mapping* of `str` to `str`, *optional*): the data's own cluster of each task.

    Returns:
        *tuple* of *tuple* of `str`: the members of each cluster; clusters follow their smallest member id.

    Source: ClAMU, Algorithm 1, lines 10-13 (spectral clustering of pairwise affinities).
    """
    count = min(arguments.num_clusters, len(task_ids))
    if arguments.clustering == "none" or (count == len(task_ids) and arguments.clustering != "column"):
        return tuple((task_id,) for task_id in task_ids)
    if arguments.clustering == "column":
        assert keys is not None, "the data layer gives a key per task"
        return canonical_clusters(keys)
    if count == 1:
        return (tuple(task_ids),)
    if arguments.clustering == "random":
        return _random_clusters(task_ids, count, run_seed)
    assert vectors is not None, "features and sketches are made for every task"
    labels = _spectral_labels(vectors.numpy(), count, derive_seed(run_seed, "cluster"))
    return canonical_clusters(dict(zip(task_ids, labels.tolist(), strict=True)))


def _random_clusters(task_ids: Sequence[str], count: int, run_seed: int) -> tuple[tuple[str, ...], ...]:
    # Tasks are dealt out in the order of a hash of their ids: clusters of even size, and no position counts.
    ranked = sorted(task_ids, key=lambda task_id: (derive_seed(run_seed, "random-cluster", task_id), task_id))
    return canonical_clusters({task_id: rank % count for rank, task_id in enumerate(ranked)})


def _spectral_labels(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import SpectralClustering
    from threadpoolctl import threadpool_limits

    # One thread: sums of a threaded BLAS depend on the number of cores.
    with threadpool_limits(limits=1):
        model = SpectralClustering(n_clusters=count, affinity="precomputed", random_state=seed % 2**32)
        return np.asarray(model.fit_predict(affinity_matrix(vectors)))


def sketch(vector: TaskVector, run_seed: int) -> torch.Tensor:
    """Compress a task vector to integers whose cosines approximate those of the vectors (a count sketch).

    Every weight goes, with a random sign, to one of 1,024 sums; places and signs come from the run seed and the
    parameter's name.

    Args:
        vector (`TaskVector`): the integer task vector.
        run_seed (`int`): the seed of the recipe.

    Returns:
        `torch.Tensor` of shape `(1024,)`, int64.
    """
    total = torch.zeros(_SKETCH_SIZE, dtype=torch.int64)
    for name, steps in vector.steps.items():
        generator = torch.Generator().manual_seed(derive_seed(run_seed, "sketch", name))
        draws = torch.randint(0, 2 * _SKETCH_SIZE, (steps.numel(),), generator=generator)
        signs = draws.bitwise_and(1).mul_(2).sub_(1)
        total.index_add_(0, draws.bitwise_right_shift_(1), steps.reshape(-1).to(torch.int64).mul(signs))
    return total
