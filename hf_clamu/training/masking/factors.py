"""A factor of alpha per parameter, learned beside the mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

__all__ = ["MaskFactors"]


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
