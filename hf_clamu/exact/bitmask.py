"""Binary masks with one bit per weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from hf_clamu.errors import CheckpointFormatError

__all__ = [
    "ALL_WEIGHTS",
    "GLOBAL_MODEL",
    "NO_WEIGHTS",
    "MaskBits",
    "PackedMask",
    "check_padding",
    "pack_mask",
    "packed_size",
    "unpack_mask",
]

# The bits of one parameter: packed, or 0 or 255 where all are equal.
MaskBits: TypeAlias = torch.Tensor | int


def packed_size(num_weights: int) -> int:
    """Return the bytes that a mask over `num_weights` weights takes."""
    return (num_weights + 7) // 8


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Pack a boolean mask, eight weights to a byte, the first weight in the lowest bit.

    Args:
        mask (`torch.Tensor` of shape `(*)`, bool): weights in row-major order.

    Returns:
        `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, on the CPU. Bits behind the last weight are 0.

    Example:

    ```python
    >>> pack_mask(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)

    ```
    """
    bits = mask.detach().reshape(-1).cpu().numpy()
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack_mask(packed: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Undo `pack_mask`.

    Args:
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): the packed mask.
        shape (`tuple[int, ...]`): the shape of the weights.

    Returns:
        `torch.Tensor` of shape `shape`, bool, on the CPU.
    """
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool).reshape(shape)


def check_padding(name: str, packed: torch.Tensor, num_weights: int) -> None:
    """Check that a packed mask fits a parameter and that its unused bits are 0.

    Raises:
        CheckpointFormatError: if dtype, size or unused bits are wrong; a mask with other bits there would be another
            file for the same mask.
    """
    expected = packed_size(num_weights)
    if packed.dtype != torch.uint8 or packed.shape != (expected,):
        raise CheckpointFormatError(
            f"The mask of {name!r} must be uint8 of shape ({expected},) for {num_weights} weights, found "
            f"{packed.dtype} of shape {tuple(packed.shape)}. The file belongs to another model or is damaged."
        )
    spare = expected * 8 - num_weights
    if spare and int(packed[-1]) >> (8 - spare):
        raise CheckpointFormatError(
            f"The mask of {name!r} has bits behind its last weight, expected zeros there. The file is damaged."
        )


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A mask over all parameters that take part.

    Args:
        bits (*mapping* of `str` to `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, *optional*):
            Packed bits per parameter.
        fill (`int`, *optional*): instead of bits, 255 for the mask of ones or 0 for the mask of zeros.
        cluster (`int`, *optional*): the cluster that it is of.
        is_global (`bool`): with a fill of 255, the weights are under the scaling coefficient of the global model.
        factors (*mapping* of `str` to `float`, *optional*): what the scaling coefficient is multiplied by, per
            parameter; by default 1.
    """

    bits: Mapping[str, torch.Tensor] | None = None
    fill: int = 0
    cluster: int | None = None
    is_global: bool = False
    factors: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.fill not in (0, 255):
            raise ValueError(f"fill must be 0 (no weights) or 255 (all weights), got {self.fill!r}.")

    def of(self, name: str) -> MaskBits:
        """Return the bits of one parameter."""
        return self.fill if self.bits is None else self.bits[name]

    def factor(self, name: str) -> float:
        """Return what the scaling coefficient of one parameter is multiplied by."""
        return 1.0 if self.factors is None else self.factors[name]


ALL_WEIGHTS = PackedMask(fill=255)
GLOBAL_MODEL = PackedMask(fill=255, is_global=True)
NO_WEIGHTS = PackedMask(fill=0)
