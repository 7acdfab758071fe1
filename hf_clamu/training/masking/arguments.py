"""Settings of mask training, and the ramp of alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_clamu.errors import RecipeError

__all__ = ["MaskingArguments", "scaling_share"]

ScheduleName = Literal["constant", "linear"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
GradientNormName = Literal["raw", "unit"]
GRADIENT_NORMS: tuple[str, ...] = get_args(GradientNormName)
FactorsName = Literal["none", "tensor"]
FACTORS: tuple[str, ...] = get_args(FactorsName)


@dataclass(frozen=True, kw_only=True)
class MaskingArguments:
    """How masks are learned."""

    mask_steps: int = field(default=50, metadata={"help": "Steps of mask training per cluster."})
    mask_batch_size: int = field(default=64, metadata={"help": "Examples per step of mask training."})
    mask_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "The paper's learning rate of the scores, which slows them down the further they are from 0. By "
            "default the limit of a small one, where only the sum of the gradients counts and no rate."
        },
    )
    mask_gradient_norm: GradientNormName = field(
        default="raw",
        metadata={
            "help": "How much a step of mask training counts: 'raw' (by the length of its gradient, so a few steps of "
            "high loss may decide), or 'unit' (as much as any other: the gradient is divided by its length)."
        },
    )
    mask_scaling_schedule: ScheduleName = field(
        default="constant",
        metadata={
            "help": "How alpha grows while a mask is learned: 'constant' (it is there from the first step), or "
            "'linear' (it rises to its value)."
        },
    )
    mask_ramp_start: float = field(
        default=0.05, metadata={"help": "Of mask_scaling_schedule 'linear': the share of alpha at the first step."}
    )
    mask_ramp_length: float = field(
        default=0.7,
        metadata={"help": "Of mask_scaling_schedule 'linear': the share of the mask steps until alpha is reached."},
    )

    mask_factors: FactorsName = field(
        default="none",
        metadata={
            "help": "What is learned beside a mask: 'none', or 'tensor' for a factor of alpha per tensor and cluster, "
            "four bytes each."
        },
    )

    def __post_init__(self) -> None:
        if self.mask_learning_rate is not None and not 0 < self.mask_learning_rate < math.inf:
            raise RecipeError(
                f"mask_learning_rate must be a number above 0, or null, got {self.mask_learning_rate!r}."
            )
        choices = {
            "mask_gradient_norm": GRADIENT_NORMS,
            "mask_scaling_schedule": SCHEDULES,
            "mask_factors": FACTORS,
        }
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise RecipeError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}.")
        for name in ("mask_ramp_start", "mask_ramp_length"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"{name} must be a number above 0 and at most 1, got {getattr(self, name)!r}.")
        for name in ("mask_steps", "mask_batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)!r}.")


def scaling_share(arguments: MaskingArguments, step: int) -> float:
    """Return by which part of alpha the merged delta is applied in a step of mask training.

    Args:
        arguments (`MaskingArguments`): steps and schedule.
        step (`int`): steps that were taken before; it is 1.0 after the last one.

    Example:

    ```python
    >>> ramp = {"mask_scaling_schedule": "linear", "mask_ramp_start": 0.5, "mask_ramp_length": 0.5}
    >>> arguments = MaskingArguments(mask_steps=4, **ramp)
    >>> [scaling_share(arguments, step) for step in range(5)]
    [0.5, 0.75, 1.0, 1.0, 1.0]

    ```
    """
    if arguments.mask_scaling_schedule == "constant":
        return 1.0
    done = min(1.0, step / (arguments.mask_ramp_length * arguments.mask_steps))
    return 1.0 if done == 1.0 else arguments.mask_ramp_start + (1 - arguments.mask_ramp_start) * done
