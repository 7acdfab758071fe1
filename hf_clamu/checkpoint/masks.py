"""A mask as one tensor, and back: the packed bits of each weight, sorted by name; and the factors beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import check_padding, digest_tensors, packed_size

__all__ = [
    "EMBEDDED_BASE",
    "FACTORS_KEY",
    "MASK_KEY",
    "REQUIRED_IMPORT",
    "TASK_MASK_KEY",
    "checked_factors",
    "checked_mask",
    "digest_mask",
    "join_mask",
    "split_mask",
]

# PEFT's layout of an adapter: the model inside PeftModel, the side module, the parameter that holds the mask. One
# tensor and not one per weight: PEFT walks over all tensors of all adapters at each load.
MASK_KEY = "base_model.model.clamu_adapters.clamu_mask"
TASK_MASK_KEY = "mask"
# In the adapter's configuration, beside alpha and the delta: together they say what the bits select.
FACTORS_KEY = "factors"

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


def digest_mask(joined: torch.Tensor, factors: Mapping[str, float] | None) -> str:
    """Return the SHA-256 of a mask as one tensor, together with its factors if it has any.

    Args:
        joined (`torch.Tensor` of shape `(bytes,)`, uint8): see `join_mask`.
        factors (*mapping* of `str` to `float`, *optional*): float32 values.
    """
    content = {MASK_KEY: joined.cpu()}
    if factors is not None:
        content[FACTORS_KEY] = torch.tensor([factors[name] for name in sorted(factors)], dtype=torch.float32)
    return digest_tensors(content)


def checked_mask(
    where: object, found: Mapping[str, torch.Tensor], key: str, num_weights: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Return the mask that a file holds, see `split_mask`.

    Args:
        where (`Path`): the file, for the message.
        found (*mapping* of `str` to `torch.Tensor`): its tensors.
        key (`str`): the name of the one that is expected.
        num_weights (*mapping* of `str` to `int`): weights per parameter.

    Raises:
        CheckpointFormatError: if it holds something else.
    """
    if sorted(found) != [key]:
        raise CheckpointFormatError(
            f"The mask in {where} must be one tensor {key!r}, found {sorted(found)[:3]}. Take an undamaged copy."
        )
    mask = split_mask(found[key], num_weights)
    for name, bits in mask.items():
        check_padding(name, bits, num_weights[name])
    return mask


def checked_factors(where: object, factors: Any, names: Iterable[str]) -> dict[str, float]:
    """Return the factors that a mask's configuration holds.

    Args:
        where (`object`): the file or adapter, for the message.
        factors (*mapping* of `str` to `float`): the entry.
        names (*iterable* of `str`): the parameters of the merged delta.

    Raises:
        CheckpointFormatError: if one is missing, of another parameter, or no finite float32 value from 0 on.
    """
    expected = sorted(names)
    if not isinstance(factors, Mapping) or sorted(factors) != expected or not all(map(_is_factor, factors.values())):
        raise CheckpointFormatError(
            f"The factors in {where} must be a float32 value from 0 on for each of the {len(expected)} parameters of "
            "the merged delta. They belong to another model or are damaged: take an undamaged copy."
        )
    return {name: float(factors[name]) for name in expected}


def _is_factor(value: Any) -> bool:
    if not isinstance(value, float) or not math.isfinite(value) or value < 0:
        return False
    return float(torch.tensor(value, dtype=torch.float32)) == value
