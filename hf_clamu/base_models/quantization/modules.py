"""The quantised layers of a live model.

bitsandbytes keeps what belongs to a quantised weight in attributes, which `load_state_dict`, `_from_config` and
`Module.parameters` know nothing of. Everything that has to know is here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import plain_name
from hf_clamu.base_models.quantization.scales import quantize_scales
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.errors import IncompatibleBaseError

__all__ = [
    "QUANTIZERS",
    "adopt_layers",
    "loading_options",
    "make_ready",
    "quantization_of",
    "quantized_layers",
    "stored_parts",
]

# Libraries that decide the bits of a model with quantised layers.
QUANTIZERS = ("bitsandbytes",)
# In what a digest covers: no parameter has such a name.
_SETTINGS = "quantization_config"
# Ours, and what transformers sets on a model beside its layers.
_MARK = "_clamu_quantization"
_MARKS = (_MARK, "hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
_CASTS = "MatMul8bitLt: inputs will be cast"


def quantization_of(model: Any) -> Quantization | None:
    """Return how a live model is quantised, if `make_ready` has seen it; otherwise `None`."""
    found: Quantization | None = getattr(model, _MARK, None)
    return found


def loading_options(quantization: Quantization | None, *, is_stored: bool) -> dict[str, Any]:
    """Return what `from_pretrained` is given for a quantised model.

    It is quantised on the CPU, wherever it runs later: so its bytes are the same on every machine.

    Args:
        quantization (`Quantization`, *optional*): the settings.
        is_stored (`bool`): the files hold quantised weights, and their configuration says so.

    Raises:
        RecipeError: if its library is not installed.
    """
    if quantization is None:
        return {}
    quantization.require_installed()
    options: dict[str, Any] = {"device_map": {"": "cpu"}}
    if not is_stored:
        options["quantization_config"] = config = quantization.transformers_config()
        config.bnb_4bit_use_double_quant = False  # `make_ready` does it
    return options


def quantized_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Return the layers of a model that hold quantised weights, by name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def make_ready(model: Any, quantization: Quantization) -> None:
    """Make a model that was just loaded compute the same whatever it computed before.

    Args:
        model (`transformers.PreTrainedModel`): changed in place.
        quantization (`Quantization`): its settings.

    Raises:
        IncompatibleBaseError: if a layer is not quantised, because the files lack its weight, or none is.
    """
    layers = quantized_layers(model)
    if not layers:
        raise IncompatibleBaseError(
            f"The base model, a {type(model).__name__}, has no linear layer that bitsandbytes takes. Leave "
            "quantization_config out."
        )
    for name, layer in layers.items():
        weight = layer.weight
        if weight.dtype not in (torch.uint8, torch.int8) or weight.is_meta:
            raise IncompatibleBaseError(
                f"The base model's {name!r} could not be quantised: its files lack the weight, or it is new. Name it "
                "in llm_int8_skip_modules."
            )
        if quantization.bits == 4:
            if layer.in_features % 2:
                raise IncompatibleBaseError(
                    f"The base model's {name!r} has {layer.in_features} inputs, and 4 bits need an even number. Name "
                    "it in llm_int8_skip_modules."
                )
            if quantization.options["bnb_4bit_use_double_quant"]:
                quantize_scales(weight)
            # On some processors, an evaluation would rewrite the stored weights, with scales rounded to bfloat16, and
            # a later training step would have no gradient.
            layer.support_avx512bf16_for_cpu = False
            # The first product would do it.
            if layer.bias is not None:
                layer.bias.data = layer.bias.data.to(getattr(torch, quantization.options["bnb_4bit_compute_dtype"]))
    setattr(model, _MARK, quantization)
    model.hf_quantizer.quantization_config = model.config.quantization_config = quantization.transformers_config()
    # Saving takes a model with this map for one that is partly on a disk.
    model.__dict__.pop("hf_device_map", None)
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if quantization.bits == 8 and _says_nothing_new not in logger.filters:
        logger.addFilter(_says_nothing_new)


def _says_nothing_new(record: logging.LogRecord) -> bool:
    """Let pass what is not said of each product in 8 bits again."""
    return not str(record.msg).startswith(_CASTS)


def stored_parts(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what belongs to quantised weights and is neither a parameter nor a buffer, and the settings.

    Scales and code books of 4 and 8 bits are in a model's state dict alone.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        state (*mapping* of `str` to `torch.Tensor`): its state dict.
    """
    quantization = quantization_of(model)
    if quantization is None:
        return {}
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    settings = torch.frombuffer(bytearray(quantization.bytes), dtype=torch.uint8)
    return {**{name: value for name, value in state.items() if name not in named}, _SETTINGS: settings}


def adopt_layers(plain: Any, live: Any, *, copies: bool) -> None:
    """Give a model without data the weights of a quantised one: its layers as they are, and everything else.

    Args:
        plain (`transformers.PreTrainedModel`): of the same architecture, without an adapter, on the meta device;
            changed in place.
        live (`transformers.PreTrainedModel`): the quantised one, perhaps with an adapter inside.
        copies (`bool`): give it memory of its own; otherwise both share it.
    """
    layers = quantized_layers(live)
    for name, layer in layers.items():
        plain.set_submodule(_plain(name), _copied(layer) if copies else layer)
    inside = tuple(f"{_plain(name)}." for name in layers)
    own = plain.state_dict().keys()
    state = {plain_name(name): value for name, value in live.state_dict().items()}
    others = {name: value for name, value in state.items() if name in own and not name.startswith(inside)}
    plain.load_state_dict({name: _memory(value, copies) for name, value in others.items()}, strict=False, assign=True)
    _fill_rest(plain, live, copies)
    plain.tie_weights()
    for mark in _MARKS:
        if hasattr(live, mark):
            setattr(plain, mark, getattr(live, mark))
    plain.config.quantization_config = live.hf_quantizer.quantization_config


def _plain(name: str) -> str:
    """Return what a module is called without the adapter around it."""
    return plain_name(f"{name}.")[:-1]


def _fill_rest(plain: Any, live: Any, copies: bool) -> None:
    """Take over what no state dict has: buffers such as the frequencies of rotary positions."""
    modules = dict(plain.named_modules())
    for name, module in live.named_modules():
        twin = modules.get(name)
        if twin is None or twin is module:
            continue
        for empty, full in ((twin._buffers, module._buffers), (twin.__dict__, module.__dict__)):
            for key, value in list(empty.items()):
                if isinstance(value, torch.Tensor) and value.is_meta and key in full:
                    empty[key] = _memory(full[key], copies)


def _memory(value: torch.Tensor, copies: bool) -> torch.Tensor:
    return value.detach().clone() if copies else value


def _copied(layer: Any) -> Any:
    """Return a copy of a quantised layer, without what others have hooked to it."""
    made = copy.deepcopy(layer)
    for hooks in (made._forward_hooks, made._forward_pre_hooks, made._backward_hooks, made._backward_pre_hooks):
        hooks.clear()
    if hasattr(made.weight, "quant_state"):  # 4 bits: layer and weight refer to each other
        made.weight.module, made.quant_state = made, made.weight.quant_state
    return made
