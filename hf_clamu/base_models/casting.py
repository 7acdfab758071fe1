"""Casting a model as transformers casts one that it loads."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["cast_weights"]


@torch.no_grad()
def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast what a checkpoint of the model holds; other buffers stay, as they do when it is loaded in this type.

    `model.to(dtype)` would round them, too: the frequencies of rotary positions, say. The model would then train and
    answer otherwise than after it was saved and loaded.

    Args:
        model (`transformers.PreTrainedModel`): changed in place.
        dtype (`torch.dtype`): the type.
    """
    saved = model.state_dict(keep_vars=True).keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
    for weights in [*model.parameters(), *buffers]:
        if weights.is_floating_point():
            weights.data = weights.data.to(dtype)
