"""The bytes that quantised weights take, before there are any."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from hf_clamu.base_models.quantization.settings import Quantization

__all__ = ["quantized_bytes"]

# Weights with one scale, and scales with one of their own under double quantisation; the code books of each layer, of
# 16 and 256 values in float32 (https://huggingface.co/papers/2305.14314, section 3).
_BLOCK, _BLOCK_OF_SCALES = 64, 256
_CODE_BOOK, _CODE_BOOK_OF_SCALES = 16, 256
_FLOAT = 4


def quantized_bytes(model: Any, quantization: Quantization | None) -> dict[str, int]:
    """Return the bytes of each weight that transformers would quantise at a load, with its scales.

    Args:
        model (`transformers.PreTrainedModel`): without an adapter; it may be on the meta device.
        quantization (`Quantization`, *optional*): the settings.
    """
    if quantization is None:
        return {}
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(
        model, quantization.options["llm_int8_skip_modules"], model._keep_in_fp32_modules
    )
    return {
        f"{name}.weight": _bytes(quantization, module.weight.numel(), module.weight.shape[isinstance(module, Conv1D)])
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    }


def _bytes(quantization: Quantization, size: int, num_outputs: int) -> int:
    if quantization.bits == 8:
        return size + _FLOAT * num_outputs
    scales = math.ceil(size / _BLOCK)
    packed = math.ceil(size / 2) + _FLOAT * _CODE_BOOK
    if not quantization.options["bnb_4bit_use_double_quant"]:
        return packed + _FLOAT * scales
    return packed + scales + _FLOAT * (math.ceil(scales / _BLOCK_OF_SCALES) + _CODE_BOOK_OF_SCALES + 1)
