"""What a base model is: its class, its weights and their digest, and how a saved model names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import plain_name
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.quantization.modules import stored_parts
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.exact import digest_json, digest_tensors

__all__ = ["BaseModel", "base_digest", "base_weights", "load_architecture", "start_digest"]

# Not weights, or different in each release: they would change bytes without changing the model.
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation_autoset")

_OTHER_CLASS = {
    "saved model": "Install a release that has it.",
    "base model": "Give a model of a class of transformers, which a saved model can name.",
}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A loaded base model `M0`.

    Args:
        model (`transformers.PreTrainedModel`): holding `theta_0`.
        processor (*tokenizer or image processor*, *optional*): made for it.
        name_or_path (`str`): Hub id, or `""` for a model that exists only here.
        revision (`str`, *optional*): commit of the Hub repo.
        digest (`str`): SHA-256 of all parameters and buffers.
        embedded (`bool`): whether a saved model must carry the base inside, because no Hub has it.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the checkpoint lacks, drawn at load (a new head,
            an adapter).
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        quantization (`Quantization`, *optional*): how its linear layers are stored.
        is_quantized_at_load (`bool`): each load quantises them; otherwise its files hold them so.
    """

    model: Any
    processor: Any
    name_or_path: str
    revision: str | None
    digest: str
    embedded: bool
    fresh: dict[str, torch.Tensor]
    space: PeftSpace | None = None
    quantization: Quantization | None = None
    is_quantized_at_load: bool = False

    def config_dict(self) -> dict[str, Any]:
        """Return the model's configuration without what changes from release to release."""
        values = self.model.config.to_dict()
        for key in _VOLATILE_CONFIG_KEYS:
            values.pop(key, None)
        # For transformers, a configuration that names it is that of quantised files.
        values.pop("quantization_config", None)
        if self.quantization is not None and not self.is_quantized_at_load:
            values["quantization_config"] = self.quantization.to_dict()
        values["architectures"] = [type(self.model).__name__]
        return dict(json.loads(json.dumps(values, default=str)))

    def generation_dict(self) -> dict[str, Any] | None:
        """Return the model's defaults for `generate`, if it generates."""
        generation = getattr(self.model, "generation_config", None)
        if generation is None or not self.model.can_generate():
            return None
        return {key: value for key, value in generation.to_diff_dict().items() if key not in _VOLATILE_CONFIG_KEYS}

    @property
    def start_digest(self) -> str:
        """SHA-256 of what tasks are finetuned from, see `start_digest`."""
        return start_digest(self.digest, self.space, self.fresh)

    def reference(self) -> BaseReference:
        """Return what `config.json` says of the base model."""
        at_load = self.quantization.to_dict() if self.quantization is not None and self.is_quantized_at_load else None
        return BaseReference(
            name_or_path=self.name_or_path,
            revision=self.revision,
            digest=self.digest,
            embedded=self.embedded,
            dtype=str(self.model.dtype).removeprefix("torch."),
            quantization_config=at_load,
        )


def base_digest(model: Any, adapter: frozenset[str] = frozenset()) -> str:
    """Return the SHA-256 of a model's parameters and persistent buffers; tied weights count once.

    Of a quantised model, scales, code books and settings count, too.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        adapter (*frozenset* of `str`): names of an adapter inside it, which do not count.
    """
    return digest_tensors(base_weights(model, adapter))


def start_digest(digest: str, space: PeftSpace | None, fresh: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of what tasks are finetuned from: a base model, and the first values of an adapter inside.

    Args:
        digest (`str`): of the base model.
        space (`PeftSpace`, *optional*): the adapter.
        fresh (*mapping* of `str` to `torch.Tensor`): parameters that the base checkpoint lacks, the adapter's too.
    """
    return digest if space is None or not space.is_live else digest_json([digest, digest_tensors(fresh)])


def base_weights(model: Any, adapter: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
    """Return what `base_digest` is the digest of."""
    persistent = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    weights = {**dict(model.named_parameters()), **buffers, **stored_parts(model, persistent)}
    return {plain_name(name): value for name, value in weights.items() if name not in adapter}


def load_architecture(architecture: str, what: str = "saved model") -> Any:
    """Return transformers' class of this name.

    Args:
        architecture (`str`): the name.
        what (`str`): whose it is, for the message.

    Raises:
        IncompatibleBaseError: if the installed transformers has none.
    """
    import transformers

    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise IncompatibleBaseError(
            f"The {what} is a {architecture!r}, which the installed transformers {transformers.__version__} does not "
            f"have. {_OTHER_CLASS[what]}"
        )
    return found
