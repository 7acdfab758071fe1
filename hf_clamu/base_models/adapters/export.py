"""Out of a model with an adapter inside: the plain model, or the adapter as PEFT loads it without hf_clamu."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import ADAPTER_NAME, plain_name
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.library_calls import making_models
from hf_clamu.base_models.quantization.modules import adopt_layers, quantization_of
from hf_clamu.checkpoint.layout import MASK_NAME
from hf_clamu.errors import RecipeError
from hf_clamu.storage import save_tensors

__all__ = ["plain_model", "require_whole", "save_adapter", "save_adapter_config"]


def plain_model(live: Any, architecture: Any, *, merge: bool) -> Any:
    """Return the model without the adapter, sharing tensors with the live one.

    Args:
        live (`transformers.PreTrainedModel`): with the adapter inside.
        architecture (`type`): class of the plain model.
        merge (`bool`): merge the adapter into the base weights; otherwise leave it out.

    Raises:
        RecipeError: if it is to be merged into quantised weights.
    """
    if quantization_of(live) is not None:
        require_whole(live, merge=merge)
        with torch.device("meta"), making_models():
            quantized = architecture._from_config(copy.deepcopy(live.config))
        adopt_layers(quantized, live, copies=False)
        quantized.generation_config = getattr(live, "generation_config", None)
        return quantized.eval()
    state = {plain_name(name): value for name, value in live.state_dict().items()}
    if merge:
        for name, layer in _merged_layers(live).items():
            for key, value in layer.state_dict().items():
                state[f"{name}.{key}"] = value
    with torch.device("meta"), making_models():
        plain = architecture._from_config(copy.deepcopy(live.config))
    names = plain.state_dict().keys()
    plain.load_state_dict({name: state[name] for name in names}, assign=True)
    plain.tie_weights()
    plain.generation_config = getattr(live, "generation_config", None)
    return plain.eval()


def require_whole(live: Any, *, merge: bool) -> None:
    """Refuse to merge an adapter into quantised weights, which would be rounded once more.

    Args:
        live (`transformers.PreTrainedModel`): with the adapter inside.
        merge (`bool`): it is to be merged.

    Raises:
        RecipeError: naming what to do instead.
    """
    quantization = quantization_of(live)
    if merge and quantization is not None:
        raise RecipeError(
            f"The base model is stored in {quantization.bits} bits, and an adapter that is merged into it would be "
            "rounded with it: the result would answer otherwise. Export the adapter alone: export(merge=False) or "
            "export_adapters() (clamu export DIR --adapters all)."
        )


def save_adapter(
    space: PeftSpace,
    live: Any,
    folder: Path,
    base_model: str | None,
    revision: str | None,
    *,
    task_type: str | None = None,
) -> None:
    """Write the live adapter, and trained heads, as an adapter that PEFT loads without hf_clamu.

    Args:
        space (`PeftSpace`): its shape.
        live (`transformers.PreTrainedModel`): with the adapter inside.
        folder (`Path`): an empty folder.
        base_model (`str`, *optional*): Hub id or folder of the base model.
        revision (`str`, *optional*): its commit.
        task_type (`str`, *optional*): what PEFT calls the kind of the tasks.

    Raises:
        RecipeError: if layers share a part of the adapter, which PEFT writes from its own wrapper only.
    """
    from peft import get_peft_model_state_dict

    own = live.state_dict()
    names = {plain_name(name) for name in space.heads(live) if f".{ADAPTER_NAME}" not in name}
    heads = {name: own[name] for name in names if name in own}
    # PEFT has no module that is both trained and adapted: a head that is both is written with its adapter merged.
    merged = _merged_layers(live, of=names)
    for module, layer in merged.items():
        heads |= {f"{module}.{key}": value for key, value in layer.state_dict().items()}
    try:
        adapter = get_peft_model_state_dict(live, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    except (KeyError, ValueError) as error:
        # It looks for what all layers share (VeRA's projections, VB-LoRA's bank) on a wrapper around the model.
        raise RecipeError(
            f"PEFT cannot write a {space.peft_type} adapter out of a model that it does not wrap: {error} Export "
            "it merged into the base weights (merge=True)."
        ) from error
    adapter = {key: value for key, value in adapter.items() if not key.startswith(tuple(f"{m}." for m in merged))}
    state = {**adapter, **heads}
    tensors = {f"base_model.model.{name}": state[name].contiguous().clone() for name in sorted(state)}
    config = copy.deepcopy(live.peft_config[ADAPTER_NAME])  # with what PEFT chose for this model
    config.base_model_name_or_path, config.revision, config.inference_mode = base_model, revision, True
    config.task_type = task_type
    config.modules_to_save = sorted({name.rsplit(".", 1)[0].split(".")[0] for name in heads}) or None
    if space.options.get("modules_to_save"):
        config.modules_to_save = list(space.options["modules_to_save"])
    if merged:
        config.exclude_modules = _excluding(config.exclude_modules, sorted(merged))
    save_adapter_config(config, folder)
    save_tensors(folder / MASK_NAME, tensors)


def save_adapter_config(config: Any, folder: Path) -> None:
    """Write `adapter_config.json`, always with the same bytes: the order of PEFT's sets is another in each process.

    Args:
        config (`peft.PeftConfig`): changed in place.
        folder (`Path`): the adapter's.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, (set, frozenset)):
            setattr(config, field.name, sorted(value))
    config.save_pretrained(folder)


def _merged_layers(live: Any, of: Collection[str] | None = None) -> dict[str, Any]:
    """Return the layers that an adapter is put into, by name, as copies with the adapter merged into their weights.

    Args:
        live (`transformers.PreTrainedModel`): with the adapter inside.
        of (*collection* of `str`, *optional*): names of weights; only their layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in live.named_modules():
        if isinstance(module, BaseTunerLayer) and (of is None or f"{name}.weight" in of):
            layer: Any = copy.deepcopy(module)
            layer.merge()
            found[name] = layer.get_base_layer()
    return found


def _excluding(excluded: Any, names: list[str]) -> Any:
    """Return PEFT's `exclude_modules`, a list of names or a pattern, with more names."""
    if isinstance(excluded, str):
        return "|".join([f"(?:{excluded})", *map(re.escape, names)])
    return sorted({*(excluded or ()), *names})
