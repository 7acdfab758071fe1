"""SIFT-Masks: the mask of a task is the support of its own vector, so it is found once and kept.

All task vectors keep to one sign per weight (see `FixedSigns`), so `1[n_t * v > 0]` is `1[n_t != 0]`. Such a mask
depends on its task alone: a request drops or adds masks of tasks, and learns none.
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_clamu.exact import TaskVector, pack_mask
from hf_clamu.merging.localization.base import LocalizationMethod, Weights

__all__ = ["Sift", "support", "union"]


class Sift(LocalizationMethod):
    """Keeps the weights that finetuning under fixed signs moved.

    Source: SIFT-Masks (arXiv 2504.04626), which has a mask per task; for several tasks it is their union here.
    """

    name = "sift"
    label = "SIFT"
    summary = "finetuning under fixed random signs; an unmerge learns no mask"
    keeps_task_masks = True
    has_fixed_signs = True

    def task_mask(self, vector: TaskVector) -> Weights:
        """Return the weights that the vector moves."""
        return support(vector)

    def join(self, masks: Sequence[Weights]) -> Weights:
        """Return the weights that any member moves."""
        return union(masks)


def support(vector: TaskVector) -> Weights:
    """Return the packed mask of a task: the weights that its vector moves.

    Args:
        vector (`TaskVector`): of a task that was finetuned under fixed signs.

    Source: SIFT-Masks (arXiv 2504.04626), `m_t = 1[tau_t * v > 0]`.
    """
    return {name: pack_mask(steps != 0) for name, steps in vector.steps.items()}


def union(masks: Sequence[Weights]) -> Weights:
    """Return the mask of a cluster: the weights that any of its members moves.

    Args:
        masks (*sequence* of *dict* of `str` to `torch.Tensor`, uint8): packed masks of the members; a single one is
            returned as it is.
    """
    first, *others = masks
    if not others:
        return first
    whole = {name: bits.clone() for name, bits in first.items()}
    for mask in others:
        for name, bits in mask.items():
            whole[name].bitwise_or_(bits)
    return whole
