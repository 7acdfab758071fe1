"""Scales of 4-bit weights that are quantised themselves (double quantisation).

bitsandbytes first takes off the mean of the scales, as torch computes it. Its last bits follow the number of threads,
and with them every stored scale: a base model that is quantised at each load would become another one. So the mean is
exact here (https://huggingface.co/papers/2305.14314, section 3, describes the rest).
"""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["quantize_scales"]

_BLOCK = 256  # scales with one scale of their own


def quantize_scales(weight: Any) -> None:
    """Quantise the scales of a weight of bitsandbytes, unless they are.

    Args:
        weight (`bitsandbytes.nn.Params4bit`): quantised; changed in place.
    """
    from bitsandbytes.functional import quantize_blockwise

    state = weight.quant_state
    if state.nested:
        return
    offset = torch.tensor(math.fsum(state.absmax.tolist()) / state.absmax.numel(), dtype=torch.float32)
    state.absmax, state.state2 = quantize_blockwise(state.absmax - offset, blocksize=_BLOCK)
    state.offset, state.nested = offset, True
    weight.compress_statistics = True
