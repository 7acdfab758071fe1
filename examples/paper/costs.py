"""What forgetting costs in optimizer steps, and serving in stored weights: counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "mean_retained", "stored_models", "unlearning_cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Steps of a request.

    Args:
        gradient (`float`): all of them.
        parallel (`float`): those that come one after the other, if everything that can run at once does.
    """

    gradient: float
    parallel: float


def unlearning_cost(
    method: str, *, finetune_steps: int, mask_steps: int, num_tasks: int, retained: int, num_clusters: int
) -> Cost:
    """Count what it takes to forget tasks at once, at a fixed scaling coefficient.

    Args:
        method (`str`): one of `METHODS`.
        finetune_steps (`int`): per task.
        mask_steps (`int`): per cluster.
        num_tasks (`int`): merged before.
        retained (`int`): merged afterwards.
        num_clusters (`int`): K; shards, for SISA.

    Source: ClAMU, section 3.4 and Table 3. Task vectors are not kept (see `archive` for where they are), so methods
    that need those of the retained tasks (TIES, and TALL, EMR and merged models of new clusters) train them again.
    """
    forgotten = num_tasks - retained
    if not forgotten or method in ("zero_shot", "local"):
        return Cost(gradient=0, parallel=0)
    clusters = min(num_clusters, retained)
    if method == "central":
        return Cost(gradient=finetune_steps * retained, parallel=finetune_steps * retained)
    if method == "sisa":
        # A shard is trained again if it had any of them; of even size, it has retained / K tasks left.
        return Cost(
            gradient=finetune_steps * retained * min(clusters, forgotten) / clusters,
            parallel=finetune_steps * retained / clusters,
        )
    if method in ("ties", "cluster_merged", "emr", "tall"):
        return Cost(gradient=finetune_steps * retained, parallel=finetune_steps)
    if method.startswith("lora"):
        # Nothing of a task is kept but what its cluster's adapter has learned.
        return Cost(gradient=mask_steps * clusters, parallel=mask_steps)
    masks = mask_steps if method.startswith("clamu") else 0
    return Cost(gradient=finetune_steps * forgotten + masks * clusters, parallel=finetune_steps + masks)


def stored_models(num_masks: int, factors: float = 0.0) -> float:
    """Return the weights that one merged model and some masks keep, in fp32 models: a mask has one bit per weight.

    Args:
        num_masks (`int`): masks.
        factors (`float`): numbers of four bytes that all masks have beside their bits, as a share of the weights.

    Source: ClAMU, Table 3, whose gigabytes are this times a model of 6 GB.

    Example:

    ```python
    >>> stored_models(500), 6 * stored_models(20)
    (16.625, 9.75)

    ```
    """
    return 1 + num_masks / 32 + factors


def mean_retained(num_tasks: int, requests: int) -> float:
    """Return how many tasks are left on average after each of some requests for one task.

    It is how many times more finetuning it takes to train everything again at each request than to retrain the one
    task that leaves. The paper's 374.5 (section 4.4) is what comes out for 250 requests of 500 tasks.

    Example:

    ```python
    >>> mean_retained(500, 250)
    374.5

    ```
    """
    left = [num_tasks - done for done in range(1, requests + 1)]
    return sum(left) / len(left)
