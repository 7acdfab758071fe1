"""Casting and moving a model as transformers does with one that it loads."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.training import move_model

__all__ = ["cast_others", "cast_weights", "kept_in_float32", "move_to_device_map", "weights_dtype"]


@torch.no_grad()
def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast what a checkpoint of the model holds; other buffers stay, as they do when it is loaded in this type.

    `model.to(dtype)` would round them, too, such as the frequencies of rotary positions. The model would then train
    and answer differently than after it was saved and loaded.

    Args:
        model (`transformers.PreTrainedModel`): changed in place.
        dtype (`torch.dtype`): the type.
    """
    saved = model.state_dict(keep_vars=True).keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
    for weights in [*model.parameters(), *buffers]:
        if weights.is_floating_point():
            weights.data = weights.data.to(dtype)


def kept_in_float32(model: Any, dtype: torch.dtype | None) -> frozenset[str]:
    """Return the parameters that transformers does not cast when it loads a model in a type of few digits.

    Args:
        model (`transformers.PreTrainedModel`): a model.
        dtype (`torch.dtype`, *optional*): the type.
    """
    patterns: set[str] = set()
    if dtype == torch.float16:
        patterns.update(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in (torch.float16, torch.bfloat16):
        patterns.update(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    found = [re.compile(pattern.replace("*", ".*")) for pattern in patterns]
    return frozenset(name for name, _ in model.named_parameters() if any(one.search(name) for one in found))


@torch.no_grad()
def cast_others(model: Any, dtype: torch.dtype, done: Collection[str]) -> None:
    """Cast the parameters that take no part in merging; buffers stay, as in transformers' own loading.

    Args:
        model (`transformers.PreTrainedModel`): the live model.
        dtype (`torch.dtype`): the type.
        done (*collection* of `str`): the parameters that the switch has cast already, and those that stay.
    """
    for name, parameter in model.named_parameters():
        if name not in done and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def move_to_device_map(model: Any, device_map: Any) -> None:
    """Move a model to where a `device_map` says.

    Args:
        model (`transformers.PreTrainedModel`): the live model.
        device_map (`str`, `torch.device`, `int` or *dict*, *optional*): `"auto"` and accelerate's other strategies are
            the first GPU if there is one; a dict is dispatched by accelerate.
    """
    if device_map is None:
        return
    if isinstance(device_map, dict) and set(device_map) != {""}:
        from accelerate import dispatch_model

        dispatch_model(model, device_map=device_map)
        return
    device = device_map[""] if isinstance(device_map, dict) else device_map
    if device in ("auto", "balanced", "balanced_low_0", "sequential"):
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    move_model(model, device)


def weights_dtype(dtype: str) -> torch.dtype:
    """Return the type that a recipe names.

    Raises:
        RecipeError: if weights cannot have it.
    """
    if dtype not in ("float32", "bfloat16"):
        raise RecipeError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
    named: torch.dtype = getattr(torch, dtype)
    return named
