"""A step of the scores of one parameter, and the weights that follow from them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_clamu.exact import entries_per_pass

__all__ = ["MaskStep"]

# The weights of a parameter without and with the merged delta.
Ends = tuple[torch.Tensor, torch.Tensor]
# Weights per pass on the CPU.
_CHUNK = 1 << 18


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

    With a weight of 0 or 1 `lerp` returns one of both ends as it is, a zero's sign aside.
    """
    torch.lerp(low, high, torch.gt(score, 0, out=part), out=live)
