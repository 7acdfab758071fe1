"""Putting an adapter into a base model: for a build with new values, at a load with the recorded ones."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, RecipeError
from hf_clamu.training import derive_seed, seeded

__all__ = [
    "ADAPTER_NAME",
    "add_adapter",
    "forget_config",
    "insert_adapter",
    "is_frozen_part",
    "plain_name",
    "require_mergeable",
    "require_own_targets",
    "restore_adapter",
    "unload_adapter",
]

ADAPTER_NAME = "default"
# The factors that start at random. Of an embedding that is B: PEFT starts its A at zero, so A has to learn.
_FROZEN_PARTS = ("lora_A", "lora_embedding_B")


def plain_name(name: str) -> str:
    """Return what a parameter is called without the adapter around its module."""
    return name.replace(".base_layer.", ".")


def insert_adapter(space: PeftSpace, model: Any, run_seed: int) -> Any:
    """Put an adapter into a model and return PEFT's tuner.

    Args:
        space (`PeftSpace`): its shape.
        model (`transformers.PreTrainedModel`): changed in place.
        run_seed (`int`): its first values are drawn from it.

    Raises:
        RecipeError: if it does not fit the model.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    config = space.peft_config()
    with seeded(derive_seed(run_seed, "adapter_init")), warnings.catch_warnings():
        # PEFT sets the option right by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # Such targets are refused.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
        try:
            return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, ADAPTER_NAME)
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, re.error) as error:
            raise RecipeError(
                f"PEFT cannot put a {space.peft_type} adapter into a {type(model).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else repr(error)} Give a peft_config whose target_modules "
                "the model has."
            ) from error


def add_adapter(space: PeftSpace, model: Any, run_seed: int) -> tuple[PeftSpace, dict[str, torch.Tensor]]:
    """Put the adapter into a base model and mark what is trained.

    Besides the adapter, that is `modules_to_save`, or the head of a classifier if it is not given. With `"product"`
    the model stays as it is, and the weights that the adapter would change are marked.

    Args:
        space (`PeftSpace`): its shape.
        model (`transformers.PreTrainedModel`): the base model; changed in place. It may be without data (on the
            meta device), to see what would be trained.
        run_seed (`int`): the adapter's first values are drawn from it.

    Returns:
        `PeftSpace`, *dict* of `str` to `torch.Tensor`: with the modules that PEFT chose spelled out, and those that it
        was told to leave out; and the adapter's first values.

    Raises:
        RecipeError: if the adapter does not fit the model, or changes its weights before any training.
    """
    heads = space.heads(model)
    _require_floating(model, heads)
    space = space.sparing(heads)
    base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tuner = insert_adapter(space, model, run_seed)
    require_own_targets(model)
    is_whole = all(value.is_floating_point() for name, value in model.named_parameters() if ".base_layer." in name)
    if space.options.get("lora_bias") and is_whole:
        require_mergeable(model)  # a live adapter, too: export(merge=True) merges it
    trained = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    if space.is_live:
        _widen(model, base.keys())
    adapter = _adapter_state(model, base.keys())
    for name, tensor in model.state_dict().items():
        if name not in adapter and not tensor.is_meta and not torch.equal(tensor, base[plain_name(name)]):
            raise RecipeError(
                f"peft_config changes the base weight {plain_name(name)!r} before any training (its way to draw "
                "the first values does that). Choose one that leaves the base model as it is."
            )
    chosen = tuner.peft_config[ADAPTER_NAME].target_modules
    options = dict(space.options)
    if chosen is not None:
        options["target_modules"] = sorted(chosen) if not isinstance(chosen, str) else chosen
    if not space.is_live:
        wrapped = {plain_name(name) for name, _ in model.named_parameters() if ".base_layer." in name}
        unload_adapter(tuner, model)
        trained, adapter = (trained & base.keys()) | wrapped, {}
    for name, parameter in model.named_parameters():
        taken = plain_name(name) in trained and not (space.merging == "frozen_a" and is_frozen_part(name))
        parameter.requires_grad_(parameter.is_floating_point() and (taken or plain_name(name) in heads))
    values = {name: tensor.detach().clone() for name, tensor in adapter.items()}
    return dataclasses.replace(space, options=options), values


def _require_floating(model: Any, heads: Collection[str]) -> None:
    """Check that what is trained besides the adapter is not quantised."""
    odd = sorted(name for name, value in model.named_parameters() if name in heads and not value.is_floating_point())
    if odd:
        module = odd[0].rpartition(".")[0]
        raise RecipeError(
            f"{odd[0]!r} would be trained as a whole (modules_to_save, or a classifier's head), and is quantised. "
            f"Name {module!r} in llm_int8_skip_modules of quantization_config, which keeps it as it is."
        )


def restore_adapter(space: PeftSpace, model: Any, values: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Put the adapter into a base model with its recorded first values.

    Args:
        space (`PeftSpace`): its shape.
        model (`transformers.PreTrainedModel`): the base model; changed in place.
        values (*mapping* of `str` to `torch.Tensor`): with the adapter's first values; others are left alone.

    Returns:
        *frozenset* of `str`: the adapter's names in the model's state dict.

    Raises:
        CheckpointFormatError: if a value is missing or has another shape.
        IncompatibleBaseError: if the adapter does not fit the model.
    """
    if not space.is_live:
        return frozenset()
    base = set(model.state_dict())
    try:
        insert_adapter(space, model, 0)  # the values drawn here are replaced at once
    except RecipeError as error:
        raise IncompatibleBaseError(f"The recorded adapter does not fit the base model: {error}") from error
    adapter = _own_tensors(model, base)
    with torch.no_grad():
        for name, tensor in adapter.items():
            if name not in values or values[name].shape != tensor.shape:
                raise CheckpointFormatError(
                    f"The first value of the adapter's {name!r}, of shape {tuple(tensor.shape)}, is not in the "
                    "saved model. Take an undamaged copy, or the release of PEFT that it was built with."
                )
            # Older models have adapters in the type of the base model.
            tensor.data = values[name].to(tensor.device, copy=True)
    return frozenset(adapter)


def _adapter_state(model: Any, base: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the state of the adapter alone; `base` are the names in the state dict of the model without it."""
    return {name: value for name, value in model.state_dict().items() if plain_name(name) not in base}


def _own_tensors(model: Any, base: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the adapter's live parameters and buffers by their names in the state dict."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if plain_name(name) not in base}


def _widen(model: Any, base: Collection[str]) -> None:
    """Cast an adapter to float32, as PEFT does: steps of training are too small for the types of large base models."""
    for tensor in _own_tensors(model, base).values():
        if tensor.is_floating_point() and tensor.element_size() < torch.float32.itemsize:
            tensor.data = tensor.data.float()


def unload_adapter(tuner: Any, model: Any) -> None:
    """Take an adapter out of a model again."""
    tuner.unload()
    forget_config(model)


def forget_config(model: Any) -> None:
    """Delete the configuration that a tuner leaves on a model: the next tuner would take itself for the second."""
    model.__dict__.pop("peft_config", None)


def require_own_targets(model: nn.Module) -> None:
    """Refuse targets whose weights the model uses under another name as well."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        target = next((name for name in same if ".base_layer." in name), None)
        other = next((name for name in same if name != target), None)
        if target is not None and other is not None:
            raise RecipeError(
                f"peft_config: the target {plain_name(target)!r} shares its weight with {plain_name(other)!r} (tied "
                "embeddings, say), so an adapter of one would have to change both. Leave it out of target_modules, or "
                "take a base model that does not tie them."
            )


def require_mergeable(model: nn.Module) -> list[str]:
    """Check that the adapter can be merged, and return the weights that this writes to, as they are called without it.

    It is tried on copies, with other values than the first ones, which change nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    written: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = copy.deepcopy(module)
            before = {key: value.detach().clone() for key, value in layer.get_base_layer().named_parameters()}
            with torch.no_grad():
                for key, value in layer.named_parameters():
                    if not key.startswith("base_layer.") and value.is_floating_point():
                        value.add_(torch.linspace(0.1, 0.4, value.numel(), device=value.device).view_as(value))
            try:
                layer.merge()
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
                raise RecipeError(
                    f"PEFT cannot merge the adapter into {name!r}, which an export or peft_merging='product' needs: "
                    f"{' '.join(str(error).split())[:200]}"
                ) from error
            own = layer.get_base_layer().named_parameters()
            written += [f"{name}.{key}" for key, value in own if value.is_meta or not torch.equal(value, before[key])]
    return written


def is_frozen_part(name: str) -> bool:
    """Whether a parameter is one of LoRA's factors that start at random, which `"frozen_a"` shares."""
    return any(f".{part}." in name for part in _FROZEN_PARTS)
