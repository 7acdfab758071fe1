"""One sign per weight, drawn before any data, that the task vectors of all tasks keep to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_clamu.training.determinism import derive_seed

__all__ = ["FixedSigns"]


class FixedSigns:
    """A random sign per weight, and the projection that holds task vectors to it.

    The signs depend on the run seed and the parameters' names and shapes, and on nothing else: they are drawn on the
    CPU whatever device trains, and know no task.

    Args:
        theta_0 (*mapping* of `str` to `torch.Tensor`, floating point): the base model's parameters that take part.
        run_seed (`int`): the seed of the recipe.

    Source: SIFT-Masks (arXiv 2504.04626): a global sign vector v, and in every step `tau_t *= 1[tau_t * v > 0]`.
    """

    def __init__(self, theta_0: Mapping[str, torch.Tensor], run_seed: int) -> None:
        self._theta_0 = theta_0
        self._is_positive = {name: _drawn(name, theta, run_seed) for name, theta in theta_0.items()}

    def of(self, name: str) -> torch.Tensor:
        """Return the signs of a parameter as -1 and 1 (`torch.Tensor` of its shape, int8)."""
        return self._is_positive[name].to(torch.int8).mul_(2).sub_(1)

    @torch.no_grad()
    def project_(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Put every weight that moved against its sign back to the base model's value, in place.

        Args:
            parameters (*mapping* of `str` to `torch.Tensor`): the live parameters.
        """
        for name, theta in parameters.items():
            theta_0 = self._theta_0[name]
            # NaN is on neither side and stays, so that a training that diverged is noticed.
            is_against = torch.where(self._is_positive[name], theta < theta_0, theta > theta_0)
            theta.copy_(torch.where(is_against, theta_0, theta))


def _drawn(name: str, theta: torch.Tensor, run_seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed(run_seed, "sift-sign", name))
    bits = torch.randint(0, 2, theta.shape, generator=generator, dtype=torch.uint8, device="cpu")
    return bits.bool().to(theta.device)
