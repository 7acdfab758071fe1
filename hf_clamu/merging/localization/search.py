"""The scaling coefficient alpha: as it is set, or as the merged tasks' scores choose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from hf_clamu.exact import ALL_WEIGHTS, PackedMask
from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.merging.localization.base import Weights
from hf_clamu.merging.localization.registry import LOCALIZATIONS
from hf_clamu.merging.shared_work import map_shared
from hf_clamu.training import TaskTrainer

__all__ = ["ALPHA_GRID", "GLOBAL_GRID", "best_alpha", "candidate_alphas", "scaling_coefficient", "trial_arguments"]

# Multiples of 1/T that "auto" chooses from, for every method alike; "sum" (alpha = 1) comes last.
ALPHA_GRID: tuple[float | str, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, "sum")
# For the global model, which is the base model where nothing serves all tasks better.
GLOBAL_GRID = (0.0, *ALPHA_GRID)


def scaling_coefficient(scaling: float | str, num_tasks: int) -> float:
    """Return alpha for a multiple of 1/T, never above the plain sum.

    Args:
        scaling (`float` or `"sum"`): the multiple.
        num_tasks (`int`): T.

    Example:

    ```python
    >>> scaling_coefficient(4.0, 16), scaling_coefficient(4.0, 2), scaling_coefficient("sum", 16)
    (0.25, 1.0, 1.0)

    ```
    """
    return 1.0 if isinstance(scaling, str) else min(1.0, scaling / num_tasks)


def candidate_alphas(scaling: float | str, num_tasks: int, grid: Sequence[float | str] = ALPHA_GRID) -> list[float]:
    """Return the alphas to choose from: the one that is set, or those of the grid.

    Args:
        scaling (`float`, `"sum"` or `"auto"`): the setting.
        num_tasks (`int`): T.
        grid (*sequence* of `float` or `"sum"`): what `"auto"` chooses from.
    """
    values = grid if scaling == "auto" else (scaling,)
    return sorted({scaling_coefficient(value, num_tasks) for value in values})


def trial_arguments(arguments: LocalizationArguments, num_alphas: int) -> LocalizationArguments:
    """Return the settings that alphas are tried with, before masks are learned in full under the one that is chosen.

    Args:
        arguments (`LocalizationArguments`): the settings.
        num_alphas (`int`): how many are tried, so that all trials together take about the steps of one.

    Returns:
        `LocalizationArguments`: the same object where trials are in full.
    """
    method = LOCALIZATIONS[arguments.localization]
    short = replace(arguments, mask_steps=max(1, arguments.mask_steps // num_alphas))
    if num_alphas == 1 or arguments.scaling_search == "full":
        return arguments
    return short if method.num_training_steps(short) < method.num_training_steps(arguments) else arguments


def best_alpha(
    trainer: TaskTrainer,
    delta: Weights,
    clusters: Sequence[Sequence[str]],
    masks: Mapping[float, Sequence[PackedMask]],
) -> float:
    """Return the alpha with the highest mean score over the tasks.

    Of equal scores the lower loss wins, then the smaller alpha. The choice sees the given tasks alone.
    (Loss alone favours a large alpha, which is overconfident and less accurate.)

    Args:
        trainer (`TaskTrainer`): live model and data.
        delta (`Weights`): the merged delta.
        clusters (*sequence* of *sequence* of `str`): member ids.
        masks (*mapping* of `float` to *sequence* of `PackedMask`): masks of the clusters under each alpha, by
            rising alpha; none if the localization makes none.
    """
    if len(masks) == 1:
        return next(iter(masks))
    qualities = {alpha: _quality(trainer, delta, clusters, alpha, masks[alpha]) for alpha in masks}
    # Of equal ones, max takes the first.
    return max(qualities, key=lambda alpha: qualities[alpha])


def _quality(
    trainer: TaskTrainer, delta: Weights, clusters: Sequence[Sequence[str]], alpha: float, masks: Sequence[PackedMask]
) -> tuple[float, float]:
    """Return the mean score over all tasks under their cluster's masked model, and minus the mean loss."""

    def measured(number: str) -> list[list[float]]:
        trainer.load_masked(delta, alpha, masks[int(number)] if masks else ALL_WEIGHTS)
        measurements = [trainer.measure_held_out(task_id) for task_id in clusters[int(number)]]
        return [[measurement.score, measurement.loss] for measurement in measurements]

    numbers = [str(number) for number in range(len(clusters))]
    pairs = [pair for pairs in map_shared(trainer, "quality", numbers, measured).values() for pair in pairs]
    return fmean(score for score, _ in pairs), -fmean(loss for _, loss in pairs)
