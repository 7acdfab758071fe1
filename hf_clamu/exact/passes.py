"""Passes over tensors: how long they are, and the integers that hold the bits of floating-point numbers."""

from __future__ import annotations

import torch

__all__ = ["bits_dtype", "entries_per_pass"]

_ON_DEVICE = 1 << 22
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def entries_per_pass(device: torch.device, on_cpu: int) -> int:
    """Return how many entries are worked on at a time.

    Args:
        device (`torch.device`): where they are. On an accelerator, starting a pass costs more than its temporaries.
        on_cpu (`int`): the number on a CPU: temporaries fit the cache, and it is large enough to amortise the start.
    """
    return on_cpu if device.type == "cpu" else _ON_DEVICE


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the integer type of the same width."""
    return _BITS[dtype.itemsize]
