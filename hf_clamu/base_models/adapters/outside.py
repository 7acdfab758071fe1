"""Adapters that PEFT wrote elsewhere: what they change in a base model's weights, computed in float64."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import (
    ADAPTER_NAME,
    insert_adapter,
    plain_name,
    require_own_targets,
    unload_adapter,
)
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.errors import IncompatibleBaseError

__all__ = ["OutsideAdapter"]

# PEFT writes an adapter as if around the model, and names what it trains beside its own parameters.
_PREFIX = "base_model.model."
_SAVED_COPY = f".modules_to_save.{ADAPTER_NAME}."
# Other ways to draw LoRA's first values take them out of the base weights, which PEFT does again at each load.
_KEEP_BASE = ("gaussian", "eva", "orthogonal", "lora_ga", "mica")


def lora_variants() -> frozenset[str]:
    """Return the settings of LoRA with which it computes something else than a product of two factors, or may."""
    from peft import LoraConfig

    stated = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    return frozenset({"use_dora", "use_qalora", "alora_invocation_tokens", "kasa_config", *stated})


@dataclass(frozen=True)
class OutsideAdapter:
    """The shape and the tensors of an adapter that was trained elsewhere.

    Args:
        space (`PeftSpace`): its shape.
        tensors (*dict* of `str` to `torch.Tensor`): by the names in its file.
    """

    space: PeftSpace
    tensors: Mapping[str, torch.Tensor]

    @property
    def is_plain_lora(self) -> bool:
        """Whether its change of a linear layer is the product of two factors, which this module multiplies itself."""
        if self.space.peft_type != "LORA" or any(self.space.options.get(name) for name in lora_variants()):
            return False
        # Of embeddings and convolutions PEFT forms the product in its own ways.
        return not any(".lora_embedding_" in name or one.dim() > 2 for name, one in self.tensors.items())

    @property
    def changes_base(self) -> str | None:
        """The setting, if there is one, with which PEFT changes the base weights when it loads the adapter."""
        start = self.space.options.get("init_lora_weights", True)
        if self.space.peft_type != "LORA":
            return None
        if isinstance(start, str) and start.lower() not in _KEEP_BASE:
            return f"init_lora_weights = {start!r}"
        return "kasa_config" if self.space.options.get("kasa_config") else None

    def split(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return its own parameters, and the weights of the base model that it has whole, by the model's names.

        Args:
            model (`transformers.PreTrainedModel`): the base model.
        """
        known = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        own, whole = {}, {}
        for name, tensor in self.tensors.items():
            short = name.removeprefix(_PREFIX)
            plain = plain_name(short.replace(_SAVED_COPY, "."))
            if plain in known:
                whole[plain] = tensor
            else:
                own[short] = tensor
        return own, whole

    def check(self, model: Any) -> None:
        """Check that the adapter fits a base model, which is as before afterwards.

        Args:
            model (`transformers.PreTrainedModel`): the base model.

        Raises:
            IncompatibleBaseError: if it does not; the message goes on where the caller has named the adapter.
            RecipeError: if PEFT cannot put it into the model.
        """
        own, whole = self.split(model)
        shapes = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
        for name, tensor in whole.items():
            if tuple(tensor.shape) != shapes[name]:
                raise IncompatibleBaseError(
                    f"it has {name!r} of shape {tuple(tensor.shape)}, the base model's has {shapes[name]}"
                )
        odd = next((name for name, tensor in self.tensors.items() if not tensor.is_floating_point()), None)
        if odd is not None:
            raise IncompatibleBaseError(f"its {odd!r} has numbers of type {self.tensors[odd].dtype}, expected floats")
        self.require_ties(model, whole)
        if own or self.space.peft_type == "LORA":
            with self._inserted(model, own):
                pass

    @torch.no_grad()
    def changed(self, model: Any) -> dict[str, torch.Tensor]:
        """Return the weights that the adapter changes, as they are with it.

        A product of LoRA's factors is summed rank by rank, so that it has the same bits on every machine; others are
        merged by PEFT, layer by layer. Both in float64, on the CPU.

        Args:
            model (`transformers.PreTrainedModel`): the base model, with the base weights; it is as before afterwards.

        Raises:
            IncompatibleBaseError, RecipeError: as `check`.
        """
        own, whole = self.split(model)
        merged: dict[str, torch.Tensor] = {}
        if own or self.space.peft_type == "LORA":
            with self._inserted(model, own) as layers:
                merged = dict(_merged(layers, self.is_plain_lora))
        found = {**merged, **whole}
        for name in sorted(merged.keys() & whole.keys()):  # a bias of its own, and what the adapter adds to it
            before = model.get_parameter(name).detach().to("cpu", torch.float64)
            found[name] = whole[name].to(torch.float64) + (merged[name] - before)
        return found

    def require_ties(self, model: Any, whole: Mapping[str, torch.Tensor]) -> None:
        """Check that no weight was trained apart from another that is the same one in the base model.

        Args:
            model (`transformers.PreTrainedModel`): the base model, with the base weights.
            whole (*mapping* of `str` to `torch.Tensor`): the weights that the adapter has whole.

        Raises:
            IncompatibleBaseError: if one was.
        """
        if self.space.options.get("ensure_weight_tying"):
            return
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for same in names.values():
            given, absent = [name for name in same if name in whole], [name for name in same if name not in whole]
            own = model.get_parameter(same[0]).detach().cpu()
            if given and absent and not torch.equal(whole[given[0]].to(own.dtype), own):
                raise IncompatibleBaseError(
                    f"it trained {given[0]!r} apart from {absent[0]!r}, and the base model has one weight for both. "
                    "Train with ensure_weight_tying=True, or from a base model that does not tie them"
                )

    @contextmanager
    def _inserted(self, model: Any, own: Mapping[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
        """Put the adapter into a model, and yield its layers by name."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        if self.changes_base:
            raise IncompatibleBaseError(
                f"it has {self.changes_base}, with which PEFT changes the base weights at each load. Save it as a "
                "plain LoRA adapter (save_pretrained with path_initial_model_for_weight_conversion), or merge it into "
                "its base model (merge_and_unload) and give that as a whole checkpoint"
            )
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        # Biases that were trained are weights here, and no part of the adapter.
        options = {key: value for key, value in self.space.options.items() if key not in ("bias", "modules_to_save")}
        tuner = insert_adapter(replace(self.space, options=options), model, 0)  # what is drawn is replaced at once
        try:
            require_own_targets(model)
            try:
                with _without_peft_warnings():
                    expected = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
            except (KeyError, ValueError) as error:  # what all layers share it looks for on a wrapper of its own
                cause = " ".join(str(error).split())[:200]
                raise IncompatibleBaseError(
                    f"PEFT does not read a {self.space.peft_type} adapter without its own model around it ({cause}). "
                    "Merge it into its base model (merge_and_unload), and give that as a whole checkpoint"
                ) from error
            absent, odd = sorted(expected.keys() - own.keys()), sorted(own.keys() - expected.keys())
            if absent or odd:
                what = f"it lacks {absent[0]!r}" if absent else f"it has {odd[0]!r}, which its settings do not"
                raise IncompatibleBaseError(what)
            for name, tensor in expected.items():
                if tensor.shape != own[name].shape:
                    raise IncompatibleBaseError(
                        f"it has {name!r} of shape {tuple(own[name].shape)}; with the base model it would have "
                        f"{tuple(tensor.shape)}"
                    )
            with _without_peft_warnings():
                set_peft_model_state_dict(model, dict(own), adapter_name=ADAPTER_NAME)
            yield {name: one for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}
        finally:
            unload_adapter(tuner, model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])


@contextmanager
def _without_peft_warnings() -> Iterator[None]:
    """Keep back what PEFT says of biases of factors, which it takes for shards; shapes are compared here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*LoRA tensor\(s\) have invalid shape")
        yield


def _merged(layers: Mapping[str, Any], multiplies: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that layers would have with their adapters merged, where they differ."""
    from peft.tuners.lora import Linear

    for name, module in layers.items():
        base: Any = module.get_base_layer()
        before = {key: value.detach().to("cpu", torch.float64) for key, value in base.named_parameters()}
        is_product = multiplies and type(module) is Linear
        bias = module.lora_B[ADAPTER_NAME].bias if is_product else None
        if is_product and (bias is None or "bias" in before):
            after = {"weight": before["weight"] + _product(module)}
            if bias is not None:
                after["bias"] = before["bias"] + bias.detach().cpu().double() * module.scaling[ADAPTER_NAME]
        else:
            layer: Any = copy.deepcopy(module)
            layer = layer.to("cpu", torch.float64)
            try:
                layer.merge()
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
                cause = " ".join(str(error).split())[:200]
                raise IncompatibleBaseError(f"PEFT cannot merge it into {name!r} ({cause})") from error
            after = {key: value.detach() for key, value in layer.get_base_layer().named_parameters()}
        for key, value in after.items():
            if not torch.equal(value, before[key]):
                yield f"{name}.{key}", value


def _product(module: Any) -> torch.Tensor:
    """Return LoRA's change of a weight: `scaling * B @ A`, a sum over the ranks in their order."""
    a = module.lora_A[ADAPTER_NAME].weight.detach().to("cpu", torch.float64)
    b = module.lora_B[ADAPTER_NAME].weight.detach().to("cpu", torch.float64)
    total = torch.zeros(b.shape[0], a.shape[1], dtype=torch.float64)
    for rank in range(a.shape[0]):
        total.add_(b[:, rank, None] * a[None, rank])
    total.mul_(module.scaling[ADAPTER_NAME])
    return total.T if module.fan_in_fan_out else total
