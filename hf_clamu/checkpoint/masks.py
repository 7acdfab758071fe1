"""A mask as one tensor, and back: the packed bits of each weight, sorted by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import packed_size

__all__ = ["EMBEDDED_BASE", "MASK_KEY", "REQUIRED_IMPORT", "TASK_MASK_KEY", "join_mask", "split_mask"]

# PEFT's layout of an adapter: the model inside PeftModel, the side module, the parameter that holds the mask. One
# tensor and not one per weight: PEFT walks over all tensors of all adapters at each load.
MASK_KEY = "base_model.model.clamu_adapters.clamu_mask"
TASK_MASK_KEY = "mask"

# In adapter_config.json. PEFT and transformers look for the base model by its name: this one is no name on the Hub, so
# that they ask nobody for it, and show it.
EMBEDDED_BASE = (
    "none: the base model is in base_model/ of the saved ClAMU model, load it from there and give it to "
    "PeftModel.from_pretrained"
)
REQUIRED_IMPORT = "hf_clamu"


def join_mask(mask: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a mask as one tensor: the packed bits of each weight, sorted by name; each starts a new byte.

    Args:
        mask (*mapping* of `str` to `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): packed bits per weight.

    Returns:
        `torch.Tensor` of shape `(bytes,)`, uint8.
    """
    return torch.cat([mask[name] for name in sorted(mask)])


def split_mask(joined: torch.Tensor, num_weights: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Undo `join_mask`; the results are views.

    Args:
        joined (`torch.Tensor` of shape `(bytes,)`, uint8): the mask as one tensor.
        num_weights (*mapping* of `str` to `int`): weights per name.

    Raises:
        CheckpointFormatError: if the size differs.
    """
    names = sorted(num_weights)
    sizes = [packed_size(num_weights[name]) for name in names]
    if joined.dtype != torch.uint8 or joined.shape != (sum(sizes),):
        raise CheckpointFormatError(
            f"The mask must be uint8 of shape ({sum(sizes)},) for this merged delta, found {joined.dtype} of shape "
            f"{tuple(joined.shape)}. It belongs to another model or is damaged."
        )
    return dict(zip(names, joined.split(sizes), strict=True))
