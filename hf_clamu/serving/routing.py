"""Routes: whether a cluster, the global model or the base model serves an input, asked for by name, number or task.

The route `"auto"` is yet to be resolved: see `auto_routing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from hf_clamu.errors import TaskNotFoundError

__all__ = ["Fallback", "Route", "find_route", "group_by_route", "require_one_choice", "select_route"]

Fallback: TypeAlias = Literal["global", "base", "auto"]
Route: TypeAlias = int | Fallback


def require_one_choice(cluster: int | str | None, task: object) -> None:
    """Check that a caller names a cluster or a task.

    Raises:
        ValueError: if both are given.
    """
    if cluster is not None and task is not None:
        raise ValueError("Give cluster= or task=, not both.")


def find_route(model: Any, cluster: int | str | None, task: str | None, fallback: Fallback | None = None) -> Route:
    """Return the route as the model is now: a request moves tasks to other clusters, and forgets some.

    Args:
        model (`ClamuModel`): held by the caller.
        cluster (`str` or `int`, *optional*): a cluster's name or number, or `"auto"`.
        task (`str`, *optional*): instead, the cluster that serves this task; without either the global model.
        fallback (`str`, *optional*): the route of a task that is not merged; by default it raises.

    Raises:
        ClusterNotFoundError: if there is no such cluster.
        TaskNotFoundError: if the task is not merged and there is no fallback, or the ledger's key is missing.
    """
    require_one_choice(cluster, task)
    if cluster == "auto":
        return "auto"
    if task is None:
        return "global" if cluster is None else int(model.merged.state.find_cluster(cluster))
    model.ledger_id(task)  # without the ledger's key nothing is known of a task, and no fallback is right
    try:
        return int(model.cluster_of(task))
    except TaskNotFoundError:
        if fallback is None:
            raise
        return fallback


def group_by_route(routes: Iterable[Route]) -> dict[Route, list[int]]:
    """Return the numbers of the inputs that each route has, so that each is selected once."""
    groups: dict[Route, list[int]] = {}
    for index, route in enumerate(routes):
        groups.setdefault(route, []).append(index)
    return groups


def select_route(model: Any, route: Route) -> None:
    """Select the weights of a route, which is not `"auto"`.

    Raises:
        ClusterNotFoundError: if there is no such cluster.
        WeightsChangedError: if a weight was changed since the last switch.
    """
    if route == "base":
        model.set_base()
    else:
        model.set_cluster(None if route == "global" else route)
