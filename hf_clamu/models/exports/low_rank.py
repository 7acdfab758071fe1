"""A LoRA adapter that comes as near as its rank allows to weights that were changed as a whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_clamu.errors import RecipeError
from hf_clamu.training import seeded

__all__ = ["LowRank", "low_rank", "matrices_of"]

# Of a randomised decomposition (Halko, Martinsson and Tropp, 2011): directions beyond the rank, and power iterations.
_SPARE, _POWERS = 16, 4


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """An approximation of a change of weights, and what it loses.

    Args:
        factors (*dict* of `str` to *tuple*): by module, `A` of shape *(rank, inputs)* and `B` of shape *(outputs,
            rank)* in float32, so that `B @ A` is what is added.
        kept (`float`): share of the change's squared norm that it has, over all weights that changed; 1 is all.
        reachable (`float`): the share that no rank exceeds: what changed in other weights is lost.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    kept: float
    reachable: float


def matrices_of(model: Any, taking_part: Collection[str]) -> dict[str, bool]:
    """Return the modules that LoRA can stand for, and whether each has its weight transposed.

    They are the linear layers whose weight takes part and has one name: an adapter of a tied one would change both.

    Args:
        model (`transformers.PreTrainedModel`): the model, without an adapter inside.
        taking_part (*collection* of `str`): the parameters that were merged.

    Raises:
        RecipeError: if there is none.
    """
    from transformers.pytorch_utils import Conv1D

    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    found = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and f"{name}.weight" in taking_part
        and names[id(module.weight)] == 1
    }
    if not found:
        raise RecipeError(
            f"A {type(model).__name__} has no linear layer among the merged weights, so no LoRA adapter can stand for "
            "its clusters. Export plain checkpoints (clamu export DIR --cluster K)."
        )
    return found


@torch.no_grad()
def low_rank(
    base: Mapping[str, torch.Tensor],
    live: Mapping[str, torch.Tensor],
    matrices: Mapping[str, bool],
    whole: set[str],
    rank: int,
) -> LowRank:
    """Approximate what changed between two states of a model by products of a rank.

    Args:
        base (*mapping* of `str` to `torch.Tensor`): weights by name.
        live (*mapping* of `str` to `torch.Tensor`): the same, changed.
        matrices (*mapping* of `str` to `bool`): see `matrices_of`.
        whole (*set* of `str`): weights that are kept as they are, such as a head's.
        rank (`int`): of the products.
    """
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    changed = lost = lost_at_any_rank = 0.0
    for name, weights in live.items():
        if not weights.is_floating_point():
            continue
        change = weights.detach().to("cpu", torch.float64) - base[name].to("cpu", torch.float64)
        energy = float(change.square().sum())
        changed += energy
        module = name.removesuffix(".weight")
        if module in matrices and name not in whole:
            matrix = change.T if matrices[module] else change
            a, b = factors[module] = _factors(matrix.float(), rank)
            lost += float((matrix - b.double() @ a.double()).square().sum())
        elif name not in whole:
            lost_at_any_rank += energy
    if not changed:
        return LowRank(factors=factors, kept=1.0, reachable=1.0)
    reachable = 1 - lost_at_any_rank / changed
    return LowRank(factors=factors, kept=max(0.0, reachable - lost / changed), reachable=reachable)


def _factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `A` and `B` of the best product of a rank; rows and columns of zeros where the matrix has less."""
    few = min(rank, *matrix.shape)
    if min(matrix.shape) <= 2 * (few + _SPARE):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with seeded(0):
            u, s, v = torch.svd_lowrank(matrix, q=few + _SPARE, niter=_POWERS)
        vh = v.T
    root = s[:few].sqrt()
    a, b = torch.zeros(rank, matrix.shape[1]), torch.zeros(matrix.shape[0], rank)
    a[:few], b[:, :few] = root[:, None] * vh[:few], u[:, :few] * root
    return a, b
