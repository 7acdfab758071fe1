"""Learning one binary mask per cluster, as an optimizer step on the live weights.

The live weights always hold `M0 + mask * alpha * tau_bar`, so the backward pass gives `dL/dM`. By the straight-through
estimator the gradient of the mask is `dL/dM * alpha * tau_bar`; one in-place update moves the scores and rewrites
the weights. No parametrised graph, no second copy of the model.

The paper's step of a score is `s -= rate * dL/dM * alpha * tau_bar * sigmoid(s) * (1 - sigmoid(s))`. Scores start at
0, where the last two factors make 1/4, and a mask is the sign of its scores. If the rate is so small that scores stay
near 0, the masks are therefore those of `s -= dL/dM * alpha * tau_bar`, which has no rate. A larger rate makes the
steps of a score shorter the further it is from 0.

With a factor `c` per tensor (not in the paper) the weights are `M0 + c * mask * alpha * tau_bar`; see `MaskFactors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import bits_dtype, entries_per_pass
from hf_clamu.tasks import Example
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import seeded
from hf_clamu.training.workspace import Workspace

__all__ = ["LearnedMask", "MaskStep", "MaskingArguments", "scaling_share", "train_mask"]

ScheduleName = Literal["constant", "linear"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
FactorsName = Literal["none", "tensor"]
FACTORS: tuple[str, ...] = get_args(FactorsName)

# The weights of a parameter without and with the merged delta.
Ends = tuple[torch.Tensor, torch.Tensor]
# Weights per pass on the CPU.
_CHUNK = 1 << 19


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
        for name, words in (("mask_scaling_schedule", SCHEDULES), ("mask_factors", FACTORS)):
            if getattr(self, name) not in words:
                raise RecipeError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}.")
        for name in ("mask_ramp_start", "mask_ramp_length"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"{name} must be a number above 0 and at most 1, got {getattr(self, name)!r}.")
        for name in ("mask_steps", "mask_batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)!r}.")


@dataclass(frozen=True, slots=True)
class LearnedMask:
    """The mask of a cluster, and with it perhaps a factor per parameter.

    Args:
        bits (*dict* of `str` to `torch.Tensor`, bool): per parameter, on the CPU.
        factors (*dict* of `str` to `float`, *optional*): what alpha is multiplied by, each a float32 value.
    """

    bits: dict[str, torch.Tensor]
    factors: dict[str, float] | None = None


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


def train_mask(
    workspace: Workspace,
    theta_1: Mapping[str, torch.Tensor],
    examples: Sequence[Example],
    arguments: MaskingArguments,
    seed: int,
) -> LearnedMask:
    """Learn the binary mask of one cluster.

    Args:
        workspace (`Workspace`): the live model; it holds the masked model afterwards.
        theta_1 (*mapping* of `str` to `torch.Tensor`): `M0 + alpha * tau_bar`.
        examples (*sequence* of `Example`): the cluster's training data, in canonical order.
        arguments (`MaskingArguments`): steps, batch size, learning rate, schedule and factors.
        seed (`int`): derived from the cluster's member ids.

    Returns:
        `LearnedMask`: `1[s > 0]` per parameter.

    Source: ClAMU, Algorithm 1, lines 17-25. Scores start at 0, so the first mask is empty.
    """
    workspace.reset()
    scores = {name: torch.zeros_like(theta, dtype=torch.float32) for name, theta in workspace.theta_0.items()}
    ends = {name: (theta, theta_1[name]) for name, theta in workspace.theta_0.items()}
    step = MaskStep(arguments.mask_learning_rate)
    factors = None if arguments.mask_factors == "none" else MaskFactors(workspace.theta_0)
    with seeded(seed), workspace.training():
        batch: dict[str, torch.Tensor] | None = None
        batches = sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, seed)
        for number, batch_examples in enumerate(batches):
            shares = scaling_share(arguments, number), scaling_share(arguments, number + 1)
            if batch is None or batch_examples is not examples:
                batch = workspace.batch(batch_examples)
            workspace.forward(batch).loss.backward()
            with torch.no_grad():
                if factors is None:
                    for name, gradient in _gradients(workspace):
                        step(workspace.parameters[name].detach(), gradient, scores[name], ends[name], shares)
                else:
                    factors.move(
                        {
                            name: shares[0]
                            * step.move(gradient, scores[name], ends[name], shares[0] * factors.values[name])
                            for name, gradient in _gradients(workspace)
                        }
                    )
                    for name, parameter in workspace.parameters.items():
                        share = shares[1] * factors.values[name]
                        step.write(parameter.detach(), scores[name], ends[name], share)
    bits = {name: (score > 0).cpu() for name, score in scores.items()}
    return LearnedMask(bits, None if factors is None else factors.values)


def _gradients(workspace: Workspace) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the gradients that there are, and free each afterwards."""
    for name, parameter in workspace.parameters.items():
        if parameter.grad is not None:
            yield name, parameter.grad
            parameter.grad = None


class MaskFactors:
    """A factor of alpha per parameter: how far its masked weights go along the merged delta.

    The weights are `M0 + c * mask * alpha * tau_bar` with `c` 1 at first. The gradient of `c` is the sum of
    `dL/dM * mask * alpha * tau_bar`; Adam's step moves it, and it stays in [0, 8]. Not in the paper.

    Args:
        names (*iterable* of `str`): the parameters.
    """

    _RATE, _BETAS, _EPSILON, _LARGEST = 0.05, (0.9, 0.95), 1e-8, 8.0

    def __init__(self, names: Iterable[str]) -> None:
        self.values = dict.fromkeys(names, 1.0)
        """*dict* of `str` to `float`: float32 values."""
        self._mean, self._square = torch.zeros(2, len(self.values), dtype=torch.float64)
        self._steps = 0

    def move(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Take a step.

        Args:
            gradients (*mapping* of `str` to `torch.Tensor` of shape `()`, float64): of the parameters that have one.
        """
        self._steps += 1
        found = dict(zip(gradients, torch.stack(list(gradients.values())).tolist(), strict=True)) if gradients else {}
        gradient = torch.tensor([found.get(name, 0.0) for name in self.values], dtype=torch.float64)
        gradient.nan_to_num_(0.0, 0.0, 0.0)  # as a score that is no number leaves its weight out
        first, second = self._BETAS
        self._mean.mul_(first).add_(gradient, alpha=1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (self._square / (1 - second**self._steps)).sqrt_().add_(self._EPSILON)
        moved = torch.tensor(list(self.values.values()), dtype=torch.float64)
        moved.addcdiv_(self._mean, spread, value=-self._RATE / (1 - first**self._steps)).clamp_(0.0, self._LARGEST)
        self.values = dict(zip(self.values, moved.float().tolist(), strict=True))


class MaskStep:
    """Moves scores against their gradient and rewrites the weights, in passes whose temporaries stay in the cache.

    Args:
        learning_rate (`float`, *optional*): of the paper's step; without one, the limit of a small rate.
    """

    def __init__(self, learning_rate: float | None = None) -> None:
        self._learning_rate = learning_rate
        self._buffers: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def __call__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        scores: torch.Tensor,
        ends: Ends,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Take a step of one parameter.

        Args:
            weights (`torch.Tensor`): live weights; they are rewritten.
            gradient (`torch.Tensor`): of the loss, with respect to them.
            scores (`torch.Tensor`, float32): they are moved.
            ends (*tuple* of two `torch.Tensor`): the weights without and with the merged delta.
            shares (*tuple* of two `float`): the part of the delta that was applied, and the part for the next step.
        """
        for live, slope, score, low, high, part in self._passes(weights, gradient.contiguous(), scores, *ends):
            self._move(score, torch.sub(high, low, out=part).mul_(slope), shares[0])
            _write(live, score, low, high, part, shares[1])

    def move(self, gradient: torch.Tensor, scores: torch.Tensor, ends: Ends, share: float) -> torch.Tensor:
        """Move the scores of one parameter, and return the gradient of the part of the delta that was applied.

        Args:
            gradient, scores, ends: as for a whole step.
            share (`float`): the part that was applied.

        Returns:
            `torch.Tensor` of shape `()`, float64.
        """
        total = torch.zeros((), dtype=torch.float64, device=scores.device)
        for slope, score, low, high, part in self._passes(gradient.contiguous(), scores, *ends):
            downhill = torch.sub(high, low, out=part).mul_(slope)
            total += (downhill * (score > 0)).sum(dtype=torch.float64)
            self._move(score, downhill, share)
        return total

    def write(self, weights: torch.Tensor, scores: torch.Tensor, ends: Ends, share: float) -> None:
        """Rewrite the weights of one parameter by its scores.

        Args:
            weights, scores, ends: as for a whole step.
            share (`float`): the part of the delta to apply.
        """
        for live, score, low, high, part in self._passes(weights, scores, *ends):
            _write(live, score, low, high, part, share)

    def _passes(self, first: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the parts of tensors, and a buffer of the weights' type."""
        buffer = self._buffer(others[-1].dtype, first.device)
        for parts in zip(*(x.view(-1).split(buffer.numel()) for x in (first, *others)), strict=True):
            yield *parts, buffer[: parts[0].numel()]

    def _move(self, score: torch.Tensor, downhill: torch.Tensor, share: float) -> None:
        if share != 1.0:
            downhill.mul_(share)
        if self._learning_rate is None:
            score.sub_(downhill)
        else:
            chance = torch.sigmoid(score)
            score.sub_(chance.mul_(1 - chance).mul_(downhill).mul_(self._learning_rate))

    def _buffer(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if (dtype, device) not in self._buffers:
            self._buffers[dtype, device] = torch.empty(entries_per_pass(device, _CHUNK), dtype=dtype, device=device)
        return self._buffers[dtype, device]


def _write(
    live: torch.Tensor, score: torch.Tensor, low: torch.Tensor, high: torch.Tensor, part: torch.Tensor, share: float
) -> None:
    """Write a part of the way from `low` to `high` where the score is above 0, and `low` elsewhere."""
    if share == 1.0:
        _select(live, score, low, high, part)
    else:
        torch.sub(high, low, out=part).mul_(score > 0)
        torch.add(low, part, alpha=share, out=live)


def _select(
    live: torch.Tensor, score: torch.Tensor, low: torch.Tensor, high: torch.Tensor, part: torch.Tensor
) -> None:
    """Write `high` where the score is above 0 and `low` elsewhere; torch.where takes several times as long.

    A score is above 0 where 0 - score has a sign, also where the difference is rounded to -0.
    """
    integer, sign = bits_dtype(live.dtype), 8 * live.element_size() - 1
    moved = torch.sub(torch.zeros((), device=live.device), score, out=part).view(integer).bitwise_right_shift_(sign)
    live_bits, low_bits = live.view(integer), low.view(integer)
    torch.bitwise_xor(high.view(integer), low_bits, out=live_bits)
    live_bits.bitwise_and_(moved).bitwise_xor_(low_bits)
