"""Learning one binary mask per cluster, as an optimizer step on the live weights.

The live weights always hold `M0 + mask * alpha * tau_bar`, so the backward pass gives `dL/dM`. By the straight-through
estimator the gradient of the scores is `dL/dM * alpha * tau_bar`; one in-place update moves the scores and rewrites
the weights. No parametrised graph, no second copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import bits_dtype, entries_per_pass
from hf_clamu.tasks import Example
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import seeded
from hf_clamu.training.workspace import Workspace

__all__ = ["MaskStep", "MaskingArguments", "train_mask"]

# Weights per pass on the CPU.
_CHUNK = 1 << 19


@dataclass(frozen=True, kw_only=True)
class MaskingArguments:
    """How masks are learned.

    There is no learning rate: scores start at 0 and only their sign counts, so a constant factor changes nothing.
    """

    mask_steps: int = field(default=50, metadata={"help": "Steps of mask training per cluster."})
    mask_batch_size: int = field(default=64, metadata={"help": "Examples per step of mask training."})

    def __post_init__(self) -> None:
        for name in ("mask_steps", "mask_batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)!r}.")


def train_mask(
    workspace: Workspace,
    theta_1: Mapping[str, torch.Tensor],
    examples: Sequence[Example],
    arguments: MaskingArguments,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Learn the binary mask of one cluster.

    Args:
        workspace (`Workspace`): the live model; it holds the masked model afterwards.
        theta_1 (*mapping* of `str` to `torch.Tensor`): `M0 + alpha * tau_bar`.
        examples (*sequence* of `Example`): the cluster's training data, in canonical order.
        arguments (`MaskingArguments`): steps and batch size.
        seed (`int`): derived from the cluster's member ids.

    Returns:
        *dict* of `str` to `torch.Tensor` (bool): `1[s > 0]` per parameter.

    Source: ClAMU, Algorithm 1, lines 17-25. Scores start at 0, so the first mask is empty.
    """
    workspace.reset()
    scores = {name: torch.zeros_like(theta, dtype=torch.float32) for name, theta in workspace.theta_0.items()}
    step = MaskStep()
    with seeded(seed), workspace.training():
        batch: dict[str, torch.Tensor] | None = None
        for batch_examples in sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, seed):
            if batch is None or batch_examples is not examples:
                batch = workspace.batch(batch_examples)
            workspace.forward(batch).loss.backward()
            with torch.no_grad():
                for name, parameter in workspace.parameters.items():
                    if parameter.grad is not None:
                        weights, gradient = parameter.detach(), parameter.grad
                        step(weights, gradient, scores[name], workspace.theta_0[name], theta_1[name])
                        parameter.grad = None
    return {name: (score > 0).cpu() for name, score in scores.items()}


class MaskStep:
    """Moves scores against their gradient and rewrites the weights, in passes whose temporaries stay in the cache."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def __call__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        scores: torch.Tensor,
        theta_0: torch.Tensor,
        theta_1: torch.Tensor,
    ) -> None:
        buffer, zero = self._buffer(weights.dtype, weights.device), torch.zeros((), device=weights.device)
        integer, sign = bits_dtype(weights.dtype), 8 * weights.element_size() - 1
        whole = (weights, gradient.contiguous(), scores, theta_0, theta_1)
        for live, slope, score, low, high in zip(*(x.view(-1).split(buffer.numel()) for x in whole), strict=True):
            part = buffer[: live.numel()]
            score.sub_(torch.sub(high, low, out=part).mul_(slope))
            # theta_1 where the score is above 0, that is where 0 - score has a sign (also where it is rounded to -0),
            # otherwise theta_0: torch.where takes several times as long.
            moved = torch.sub(zero, score, out=part).view(integer).bitwise_right_shift_(sign)
            live_bits, low_bits = live.view(integer), low.view(integer)
            torch.bitwise_xor(high.view(integer), low_bits, out=live_bits)
            live_bits.bitwise_and_(moved).bitwise_xor_(low_bits)

    def _buffer(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if (dtype, device) not in self._buffers:
            self._buffers[dtype, device] = torch.empty(entries_per_pass(device, _CHUNK), dtype=dtype, device=device)
        return self._buffers[dtype, device]
