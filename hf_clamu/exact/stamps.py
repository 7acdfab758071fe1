"""Stamps of parameters: a write or a move shows in them, also a step of a fused optimizer."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["stamp_of"]

# Stamped parameters, by their id.
_WATCHED: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


def _count_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    # Fused optimizers, the default of transformers' Trainer among them, write without counting a version.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            watched = _WATCHED.get(id(parameter))
            if watched is not None and watched is parameter:
                increment_version(watched)


register_optimizer_step_post_hook(_count_step)


def stamp_of(parameter: torch.Tensor) -> tuple[Any, ...]:
    """Return what tells whether a parameter was moved or written to: its storage, layout and version counter."""
    _WATCHED[id(parameter)] = parameter  # from now on its version must count optimizer steps
    # The storage and not its address: assigning to `.data` keeps the version, and allocators reuse freed addresses.
    storage = weakref.ref(parameter.untyped_storage())
    layout = (parameter.dtype, parameter.shape, parameter.stride(), parameter.data_ptr())
    return (storage, *layout, parameter._version)
