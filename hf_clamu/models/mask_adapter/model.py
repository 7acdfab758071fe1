"""The tuner: adds mask adapters to a model, and takes them out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.models.mask_adapter.config import ClamuMaskConfig
from hf_clamu.models.mask_adapter.delta import DeltaSource, SharedDelta
from hf_clamu.models.mask_adapter.layer import SIDE_MODULE, ClamuMaskLayer, refuse_mixed_batch
from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["ClamuMaskModel", "attach_delta"]


class ClamuMaskModel(BaseTuner):
    """Serves the clusters of a merged model as PEFT adapters: `W_k = M0 + alpha * (mask_k * delta)`, bit for bit.

    No module is wrapped. One side module holds the bits of all adapters, and the merged delta is loaded once per
    model, so that each further adapter costs its bits alone.

    Args:
        model (`transformers.PreTrainedModel`): the base model, or a `ClamuModel`.
        config (`ClamuMaskConfig`): of the first adapter.
        adapter_name (`str`): its name.
        low_cpu_mem_usage (`bool`): make room for the bits on the meta device.

    Raises:
        StaleMaskError: if the mask was made for another merged delta.
        IncompatibleBaseError: if the base model is not the one that was merged into.
        CheckpointFormatError: if the merged delta is not to be found or is damaged.

    Example:

    ```python
    import hf_clamu.models.mask_adapter
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, "org/clamu-reddit", subfolder="masks/cluster_003", adapter_name="3")
    model.load_adapter("org/clamu-reddit", subfolder="masks/cluster_007", adapter_name="7")
    model.set_adapter("7")
    ```
    """

    prefix = "clamu_mask"
    tuner_layer_cls = ClamuMaskLayer

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        try:
            config = _checked(self.peft_config[adapter_name])
            layer = _layer_of(model)
            if layer is None:
                delta = _find_delta(model, config)
                delta.require(config)
                layer = _add_layer(model, delta)
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
            layer.delta.require(config)
        except Exception:
            # A failed load leaves no trace; the dictionary belongs to the model from the second adapter on.
            self.peft_config.pop(adapter_name, None)
            raise
        config.name_delta(layer.delta.source)
        layer.add_adapter(
            adapter_name, mask_digest=config.mask_digest, factors=config.factors, on_meta=low_cpu_mem_usage
        )
        self.set_adapter(self.active_adapters, inference_mode=True)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the plain model with the weights of the active adapter, bit for bit.

        Args:
            progressbar (`bool`): has no effect, it is done at once.
            safe_merge (`bool`): refuse weights that are not finite.
            adapter_names (*list* of `str`, *optional*): instead of the active adapter, this one.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        if len(names) > 1:
            raise ValueError(f"One mask can be merged, got {names}: the weights of two do not add up.")
        layer = self._layer
        if safe_merge and names:
            layer.set_adapter(names)
            if not all(p.isfinite().all() for p in self.model.parameters() if p.is_floating_point()):
                raise ValueError(f"The weights of the adapter {names[0]!r} are not all finite.")
        return self._leave(names[0] if names else None)

    def unload(self) -> nn.Module:
        """Return the model as it was before the first adapter, bit for bit."""
        return self._leave(None)

    def _leave(self, adapter_name: str | None) -> nn.Module:
        model: nn.Module = self.model
        self._layer.detach(adapter_name)
        if hasattr(model, "peft_config"):
            del model.peft_config
        return model

    @property
    def _layer(self) -> ClamuMaskLayer:
        layer = _layer_of(self.model)
        assert layer is not None, "the side module is there from the first adapter to unload"
        return layer

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PeftModel calls this before it drops adapter_names.
        refuse_mixed_batch(kwargs)
        yield

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("mask adapters replace no module")


def attach_delta(model: Any, name_or_path: str, *, revision: str | None = None, **options: Any) -> Any:
    """Give a base model the merged delta of a saved model, for adapters that do not say where theirs is.

    That is needed for adapters that were saved alone from a local folder, and before transformers' own
    `model.load_adapter`, which does not tell where it loads from. The model's weights stay as they are.

    Args:
        model (`transformers.PreTrainedModel`): the base model.
        name_or_path (`str`): folder or Hub id of a saved ClAMU model.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        options (*optional*): `token`, `cache_dir` and other options of `hf_hub_download`; `subfolder`.

    Returns:
        `transformers.PreTrainedModel`: the model itself.

    Raises:
        CheckpointFormatError: if there is no saved model, or it is damaged.
        IncompatibleBaseError: if the base model is not the one that was merged into.
    """
    subfolder = options.pop("subfolder", None) or ""
    if _layer_of(model) is not None:
        raise ValueError("This model has a merged delta attached already. Call unload() on its PEFT model first.")
    _add_layer(model, SharedDelta.load(model, DeltaSource(str(name_or_path), revision, subfolder, options)))
    return model


def _checked(config: Any) -> ClamuMaskConfig:
    if not isinstance(config, ClamuMaskConfig):
        raise TypeError(f"Mask adapters do not mix with others, got a {type(config).__name__}.")
    if not config.inference_mode:
        raise ValueError("Masks are not trained through PEFT: ClamuTrainer learns them. Leave out is_trainable.")
    return config


def _layer_of(model: nn.Module) -> ClamuMaskLayer | None:
    layer = getattr(model, SIDE_MODULE, None)
    return layer if isinstance(layer, ClamuMaskLayer) else None


def _add_layer(model: nn.Module, delta: SharedDelta) -> ClamuMaskLayer:
    layer = ClamuMaskLayer(model, delta)
    model.add_module(SIDE_MODULE, layer)
    return layer


def _find_delta(model: nn.Module, config: ClamuMaskConfig) -> SharedDelta:
    if isinstance(model, ClamuModel):
        return SharedDelta.of_clamu_model(model)
    source = config.delta_source
    if source is None:
        raise CheckpointFormatError(
            "The mask adapter does not say where its merged delta is, and it was not loaded from within a saved "
            "model. Give the saved model first: hf_clamu.models.mask_adapter.attach_delta(model, folder_or_hub_id)."
        )
    return SharedDelta.load(model, source)
