"""Clusters of tasks by the method that the settings name, numbered by their smallest member, and their names."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from hf_clamu.merging.cluster_names import member_hash, own_name, words
from hf_clamu.merging.clustering.arguments import ClusteringArguments
from hf_clamu.merging.clustering.base import ClusteringInputs
from hf_clamu.merging.clustering.registry import CLUSTERINGS

__all__ = ["canonical_clusters", "cluster_tasks", "name_clusters"]


def canonical_clusters(assignment: Mapping[str, Hashable]) -> tuple[tuple[str, ...], ...]:
    """Turn any labels into clusters whose numbers follow their smallest member.

    Args:
        assignment (*mapping* of `str` to *hashable*): task id to any label.

    Example:

    ```python
    >>> canonical_clusters({"c": 0, "a": 7, "b": 0})
    (('a',), ('b', 'c'))

    ```
    """
    groups: dict[Hashable, list[str]] = {}
    for task_id in sorted(assignment):
        groups.setdefault(assignment[task_id], []).append(task_id)
    return tuple(tuple(members) for members in groups.values())


def cluster_tasks(
    arguments: ClusteringArguments,
    task_ids: Sequence[str],
    run_seed: int,
    *,
    task_features: torch.Tensor | None = None,
    keys: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Group tasks; a function of the given tasks alone.

    Args:
        arguments (`ClusteringArguments`): method and number of clusters.
        task_ids (*sequence* of `str`): in the order of the ids.
        run_seed (`int`): the seed of the recipe.
        task_features (`torch.Tensor` of shape `(tasks, size)`, *optional*): what each task is clustered by.
        keys (*mapping* of `str` to `str`, *optional*): the data's own cluster of each task.

    Returns:
        *tuple* of *tuple* of `str`: the members of each cluster; clusters follow their smallest member id.

    Raises:
        RecipeError: if the settings name no registered method.
    """
    method = CLUSTERINGS[arguments.clustering]
    keys = keys or {}
    assert not method.needs_keys or len(keys) == len(task_ids), "the data layer gives a key per task"
    count = method.num_clusters(arguments.num_clusters, len(task_ids), keys.values())
    if not method.names_clusters:
        if count == len(task_ids):
            return canonical_clusters({task_id: task_id for task_id in task_ids})
        if count == 1:
            return canonical_clusters(dict.fromkeys(task_ids, 0))
    inputs = ClusteringInputs(
        task_ids=tuple(task_ids),
        run_seed=run_seed,
        features=task_features,
        keys=keys,
        limit=arguments.num_clusters,
    )
    return canonical_clusters(method.labels(inputs, count))


def name_clusters(
    arguments: ClusteringArguments,
    clusters: Sequence[Sequence[str]],
    run_seed: int,
    *,
    task_features: torch.Tensor | None = None,
    keys: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the name of each cluster, no two alike; a function of the clusters alone.

    Args:
        arguments (`ClusteringArguments`): the method, which may have names of its own.
        clusters (*sequence* of *sequence* of `str`): the members, as `cluster_tasks` returns them.
        run_seed, task_features, keys: as in `cluster_tasks`.
    """
    method, keys = CLUSTERINGS[arguments.clustering], keys or {}
    if not method.names_clusters:
        return words(min(member_hash(run_seed, task_id) for task_id in members) for members in clusters)
    task_ids = tuple(sorted(task_id for members in clusters for task_id in members))
    limit = arguments.num_clusters
    inputs = ClusteringInputs(task_ids=task_ids, run_seed=run_seed, features=task_features, keys=keys, limit=limit)
    labels = method.labels(inputs, method.num_clusters(limit, len(task_ids), keys.values()))
    return tuple(own_name(str(labels[members[0]])) for members in clusters)
