"""The side module: it holds the bits of all mask adapters and brings those of the active one into the weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hf_clamu.checkpoint.masks import digest_mask, split_mask
from hf_clamu.errors import CheckpointFormatError, StaleMaskError
from hf_clamu.exact import PackedMask, check_padding
from hf_clamu.models.mask_adapter.delta import SharedDelta

__all__ = ["SIDE_MODULE", "ClamuMaskLayer"]

# Must not contain the prefix: PEFT skips modules that do when it deletes an adapter.
SIDE_MODULE = "clamu_adapters"


class ClamuMaskLayer(nn.Module, BaseTunerLayer):
    """Holds one packed mask per adapter, and flips the model's own weights to the active one.

    It wraps no module and takes no part in the forward pass: the masked weights are the model's weights. Masks may be
    loaded without a call to anything here (transformers does), so a hook looks once more before each forward pass.

    Args:
        model (`transformers.PreTrainedModel`): the model whose weights are flipped.
        delta (`SharedDelta`): its merged delta.
    """

    adapter_layer_names = ("clamu_mask",)
    other_param_names = ()

    def __init__(self, model: nn.Module, delta: SharedDelta) -> None:
        super().__init__()
        self.clamu_mask = nn.ParameterDict()
        self.delta = delta
        self._active_adapter: list[str] = []
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # In a list, or nn.Module would take the model for a submodule of its own submodule.
        self._models = [model]
        self._applied: tuple[object, ...] | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]
        self._digests: dict[str, str] = {}
        self._factors: dict[str, Mapping[str, float] | None] = {}
        self._sound: dict[str, tuple[torch.Tensor, int]] = {}
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    # PEFT's own look for a wrapped layer, and would look forever.
    @property
    def weight(self) -> torch.Tensor:
        raise AttributeError("a mask adapter wraps no layer")

    @property
    def bias(self) -> torch.Tensor:
        raise AttributeError("a mask adapter wraps no layer")

    def add_adapter(
        self,
        adapter_name: str,
        *,
        mask_digest: str = "",
        factors: Mapping[str, float] | None = None,
        on_meta: bool = False,
    ) -> None:
        """Make room for the bits of one more adapter; until they are loaded it selects no weights."""
        self._digests[adapter_name], self._factors[adapter_name] = mask_digest, factors
        device = torch.device("meta") if on_meta else self._device
        bits = torch.zeros(self.delta.num_bytes, dtype=torch.uint8, device=device)
        self.clamu_mask[adapter_name] = nn.Parameter(bits, requires_grad=False)

    def require_sound(self, adapter_name: str, *, is_loaded: bool = True) -> None:
        """Check that the bits of an adapter are those that were saved.

        Args:
            adapter_name (`str`): the adapter.
            is_loaded (`bool`): whether its bits must have been loaded; until then they are zeros.

        Raises:
            CheckpointFormatError: if they are not.
        """
        bits = self.clamu_mask[adapter_name].detach()
        if bits.is_meta or not (is_loaded or bits.any()):
            return
        known = self._sound.get(adapter_name)
        version = self.clamu_mask[adapter_name]._version
        if known is not None and known[0] is self.clamu_mask[adapter_name] and known[1] == version:
            return
        for name, part in split_mask(bits, self.delta.num_weights).items():
            check_padding(name, part, self.delta.num_weights[name])
        expected = self._digests.get(adapter_name)
        if expected and digest_mask(bits, self._factors[adapter_name]) != expected:
            raise CheckpointFormatError(
                f"The bits of the mask adapter {adapter_name!r} are not those that were saved: its digest differs. "
                "Take an undamaged copy."
            )
        self._sound[adapter_name] = (self.clamu_mask[adapter_name], version)

    def refresh(self, *, is_loaded: bool = False) -> None:
        """Bring the weights to the active adapter, unless they are there already.

        Args:
            is_loaded (`bool`): whether the bits of the adapter must have been loaded.

        Raises:
            CheckpointFormatError: if the bits are not those that were saved; nothing is touched then.
            WeightsChangedError: if a weight was changed since the last switch; nothing is touched then.
            StaleMaskError: if the model has got another merged delta.
        """
        bits = self._wanted()
        if bits is not None:
            self.require_sound(self._active_adapter[0], is_loaded=is_loaded)
        wanted = (bits, None if bits is None else bits._version)
        switch = self.delta.switch
        if self._applied is not None:
            same = self._applied[0] is bits and self._applied[1] == wanted[1] and switch.is_consistent
            if same and self._applied[2] is switch.selected and self.delta.is_attached_to(self._model):
                return
        self._require_delta()
        wanted_mask = self.delta.rest if bits is None else self._mask(self._active_adapter[0])
        switch.select(self._parameters_by_name(), wanted_mask)
        self._applied = (*wanted, switch.selected)

    def detach(self, adapter_name: str | None) -> None:
        """Leave the model with the weights of an adapter, or as it was before the first; this ends the layer."""
        if adapter_name is not None:
            self.require_sound(adapter_name)
        if adapter_name is not None or self.delta.is_attached_to(self._model):
            self._require_delta()
            mask = self.delta.rest if adapter_name is None else self._mask(adapter_name)
            self.delta.switch.select(self._parameters_by_name(), mask)
        self._hook.remove()
        delattr(self._model, SIDE_MODULE)

    def train(self, mode: bool = True) -> ClamuMaskLayer:
        # transformers fills in the bits unseen and then calls eval(), so the weights are right at once.
        super().train(mode)
        self.refresh()
        return self

    # -- what PEFT and transformers call -----------------------------------------------------------------------

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise ValueError(f"One mask is active at a time, got {names}: set one of them.")
        if names and names[0] not in self.clamu_mask:
            raise ValueError(f"There is no mask adapter {names[0]!r} here: load it first.")
        before = self._active_adapter
        self._active_adapter = names
        try:
            self.refresh()
        except Exception:
            self._active_adapter = before
            raise

    def enable_adapters(self, enabled: bool) -> None:
        before = self._disable_adapters
        self._disable_adapters = not enabled
        try:
            self.refresh()
        except Exception:
            self._disable_adapters = before
            raise

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.clamu_mask:
            return
        names = [name for name in self.clamu_mask if name != adapter_name]
        if adapter_name in self._active_adapter:
            # First, so that an error leaves everything as it was.
            self.set_adapter(sorted(names)[:1])
            if names:
                warnings.warn(
                    f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to "
                    f"{sorted(names)[0]}.",
                    stacklevel=2,
                )
        del self.clamu_mask[adapter_name]

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        if requires_grad:
            raise ValueError("Masks have no gradients: ClamuTrainer learns them. Load them with is_trainable=False.")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """The active mask is in the weights at all times: another one is made the active one."""
        if adapter_names:
            self.set_adapter(adapter_names)

    def unmerge(self) -> None:
        """Nothing to do, see `merge`."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        bits = self.clamu_mask[adapter_name]
        if not bits.is_meta:
            self.clamu_mask[adapter_name] = nn.Parameter(bits.to(device or self._device), requires_grad=False)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _model(self) -> nn.Module:
        return self._models[0]

    @property
    def _device(self) -> torch.device:
        return self._model.get_parameter(next(iter(self.delta.num_weights))).device

    def _parameters_by_name(self) -> dict[str, nn.Parameter]:
        return dict(self._model.named_parameters())

    def _mask(self, adapter_name: str) -> PackedMask:
        return self.delta.mask(self.clamu_mask[adapter_name], self._factors[adapter_name])

    def _wanted(self) -> torch.Tensor | None:
        if self._disable_adapters or not self._active_adapter:
            return None
        bits: torch.Tensor = self.clamu_mask[self._active_adapter[0]]
        return None if bits.is_meta else bits  # on the meta device it is yet to be loaded

    def _require_delta(self) -> None:
        if not self.delta.is_attached_to(self._model):
            raise StaleMaskError(
                "Tasks were merged or unmerged since these mask adapters were loaded, so they belong to a merged "
                "delta that the model no longer has. Call unload() and load the adapters of the new state."
            )

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_mixed_batch(kwargs)
        if not torch.compiler.is_compiling():
            self.refresh(is_loaded=True)


def refuse_mixed_batch(kwargs: dict[str, Any]) -> None:
    """Refuse a batch whose samples ask for different adapters.

    Raises:
        ValueError: if `adapter_names` is there.
    """
    if kwargs.get("adapter_names") is not None:
        raise ValueError(
            "adapter_names= asks for another adapter per sample, but a mask adapter changes the weights for the whole "
            "batch. Group the samples by adapter and call set_adapter before each group."
        )


def _after_loading(module: nn.Module, incompatible_keys: object) -> None:
    # PEFT sets the adapter first and loads its bits afterwards.
    assert isinstance(module, ClamuMaskLayer)
    module.refresh()
