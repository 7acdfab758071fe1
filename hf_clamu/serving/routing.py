"""Who serves an input: a cluster, the global model or the base, asked for by number or by task."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from hf_clamu.errors import TaskNotFoundError

__all__ = ["Fallback", "Served", "bring", "who_serves"]

Fallback: TypeAlias = Literal["global", "base"]
Served: TypeAlias = int | Fallback


def who_serves(model: Any, cluster: int | None, task: str | None, fallback: Fallback | None = None) -> Served:
    """Return who serves, as the model is now: a request moves tasks to other clusters, and forgets some.

    Args:
        model (`ClamuModel`): held by the caller.
        cluster (`int`, *optional*): a cluster's number.
        task (`str`, *optional*): instead, the cluster that serves this task; without either the global model.
        fallback (`str`, *optional*): who serves a task that is not merged; by default it raises.

    Raises:
        TaskNotFoundError: if the task is not merged and there is no fallback, or the ledger's key is missing.
    """
    if task is None:
        return "global" if cluster is None else cluster
    if cluster is not None:
        raise ValueError("Give cluster= or task=, not both.")
    model.ledger_id(task)  # without the ledger's key nothing is known of a task, and no fallback is right
    try:
        return int(model.cluster_of(task))
    except TaskNotFoundError:
        if fallback is None:
            raise
        return fallback


def bring(model: Any, served: Served) -> None:
    """Select who serves.

    Raises:
        ClusterNotFoundError: if there is no such cluster.
        WeightsChangedError: if a weight was changed since the last switch.
    """
    if served == "base":
        model.set_base()
    else:
        model.set_cluster(None if served == "global" else served)
