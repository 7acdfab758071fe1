"""Held-out scores of a merged state, for its model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from hf_clamu.exact import PackedMask
from hf_clamu.merging.shared_work import map_shared
from hf_clamu.merging.state import MergedState, require_merged
from hf_clamu.training import TaskTrainer, Workers

__all__ = ["at_least_base", "recorded_scores", "remark_on", "score_clusters", "score_tasks", "warn_of_scores"]

_logger = logging.getLogger(__name__)

# A global model that is so close serves about as well as the masks.
_CLOSE = 0.01


def score_clusters(
    trainer: TaskTrainer,
    delta: Mapping[str, torch.Tensor],
    alphas: tuple[float, float],
    clusters: Sequence[Sequence[str]],
    masks: Sequence[PackedMask],
) -> dict[str, Any] | None:
    """Measure the validation examples of the tasks under their own cluster, the global model and the base.

    Args:
        trainer (`TaskTrainer`): live model and data.
        delta (*mapping* of `str` to `torch.Tensor`, integer): the merged delta.
        alphas (*tuple* of `float`): the scaling coefficients under the masks and of the global model.
        clusters (*sequence* of *sequence* of `str`): member ids.
        masks (*sequence* of `PackedMask`): one per cluster; none if the localization makes none.

    Returns:
        *dict*, or `None` where no task has validation examples: `num_tasks` and `num_examples` measured, `mean` over
        the tasks of each of `"base"`, `"global"` and, with masks, `"own"`, and the same per cluster in `clusters`
        (`None` for a cluster without validation examples). Scores are those of `Measurement`, in [0, 1].
    """
    held_out = [[task_id for task_id in members if trainer.encoded(task_id).validation] for members in clusters]
    if not any(held_out):
        return None

    def measured(number: str) -> dict[str, list[float]]:
        members = held_out[int(number)]
        scores = {}
        trainer.workspace.reset()
        scores["base"] = [trainer.measure_held_out(task_id).score for task_id in members]
        trainer.load_masked(delta, alphas[1])
        scores["global"] = [trainer.measure_held_out(task_id).score for task_id in members]
        if masks:
            trainer.load_masked(delta, alphas[0], masks[int(number)])
            scores["own"] = [trainer.measure_held_out(task_id).score for task_id in members]
        return scores

    by_cluster = map_shared(trainer, "scores", [str(number) for number in range(len(clusters))], measured)
    names = ("base", "global", "own") if masks else ("base", "global")
    by_name = {name: [scores[name] for scores in by_cluster.values()] for name in names}
    return {
        "num_tasks": sum(map(len, held_out)),
        "num_examples": sum(len(trainer.encoded(task_id).validation) for members in held_out for task_id in members),
        "mean": {name: fmean([score for part in parts for score in part]) for name, parts in by_name.items()},
        "clusters": [
            {name: fmean(parts[number]) for name, parts in by_name.items()} if members else None
            for number, members in enumerate(held_out)
        ],
    }


def at_least_base(global_alpha: float, scores: dict[str, Any] | None) -> tuple[float, dict[str, Any] | None]:
    """Take the base model for the global model if it scores higher.

    Args:
        global_alpha (`float`): the scaling coefficient of the global model.
        scores (*dict*, *optional*): see `score_clusters`; without, nothing is changed.

    Returns:
        *tuple*: the scaling coefficient, which is 0 for the base model, and the scores under it.
    """
    if scores is None or scores["mean"]["global"] >= scores["mean"]["base"]:
        return global_alpha, scores

    def under_base(means: dict[str, float] | None) -> dict[str, float] | None:
        return None if means is None else {**means, "global": means["base"]}

    return 0.0, {
        **scores,
        "mean": under_base(scores["mean"]),
        "clusters": [under_base(means) for means in scores["clusters"]],
    }


def recorded_scores(state: MergedState) -> dict[str, float]:
    """Return the scores that a state has of single tasks: of those that are a cluster of their own.

    Args:
        state (`MergedState`): with the scores of `score_clusters`, or none.
    """
    if state.scores is None:
        return {}
    served = "own" if state.masks else "global"
    pairs = zip(state.clusters, state.scores["clusters"], strict=True)
    return {members[0]: scores[served] for members, scores in pairs if len(members) == 1 and scores is not None}


def score_tasks(trainer: TaskTrainer, state: MergedState, task_ids: Sequence[str]) -> dict[str, float]:
    """Measure the validation examples of some tasks as they are served.

    Args:
        trainer (`TaskTrainer`): live model, and data with validation examples of these tasks.
        state (`MergedState`): has these tasks.
        task_ids (*sequence* of `str`): the tasks.

    Returns:
        *dict* of `str` to `float`: score of each by its id, that of `Measurement`, in [0, 1].
    """
    require_merged(task_ids, state.records)
    groups: dict[str, list[str]] = {}
    numbers = state.cluster_numbers()
    for task_id in task_ids:
        groups.setdefault(str(numbers[task_id]), []).append(task_id)

    def measured(number: str) -> dict[str, float]:
        trainer.load_masked(state.delta, state.served_alpha, state.mask(int(number)))
        return {task_id: trainer.measure_held_out(task_id).score for task_id in groups[number]}

    by_cluster = map_shared(trainer, "effect", list(groups), measured, description="compare")
    return {task_id: score for scores in by_cluster.values() for task_id, score in scores.items()}


def remark_on(mean: Mapping[str, float]) -> str | None:
    """Return one sentence if a build learned nothing, or if its masks gain nothing.

    Args:
        mean (*mapping* of `str` to `float`): scores of `"base"`, `"global"` and, with masks, `"own"`, in [0, 1].

    Example:

    ```python
    >>> remark_on({"base": 0.4, "global": 0.6, "own": 0.9}) is None
    True

    ```
    """
    served = "own" if "own" in mean else "global"
    shown = ", ".join(f"{name} {100 * score:.1f} %" for name, score in mean.items())
    if mean[served] <= mean["base"]:
        return (
            f"Nothing was learned that shows on the validation rows ({shown}): raise finetune_steps or learning_rate, "
            "or choose another preset."
        )
    if served == "own" and mean["global"] >= mean["own"] - _CLOSE:
        return (
            f"One model for all serves about as well as the masks ({shown}): preset 'one-model' stores less and needs "
            "no ids to answer."
        )
    return None


def warn_of_scores(scores: Mapping[str, Any] | None) -> None:
    """Log the sentence of `remark_on`, once for all processes.

    Args:
        scores (*mapping*, *optional*): see `score_clusters`.
    """
    remark = None if scores is None else remark_on(scores["mean"])
    if remark is not None and Workers.current().is_main:
        _logger.warning(remark)
