"""Loading pretrained weights, all of them: only a new head may be drawn at random."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from hf_clamu.base_models.config import config_of_repository, could_not_load
from hf_clamu.base_models.foreign import foreign_files
from hf_clamu.base_models.library_calls import making_models, suppress_load_report
from hf_clamu.base_models.quantization.modules import loading_options, make_ready
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.tasks import ModelLimits

__all__ = ["load_pretrained", "require_same_positions"]

_SHOWN = 3


def load_pretrained(
    auto: Any,
    name: str,
    *,
    labels: Mapping[str, Any],
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    quantization: Quantization | None = None,
    may_be_quantized: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, dict[str, torch.Tensor], dict[int, str]]:
    """Load a base model from a folder or the Hub.

    Args:
        auto (*type*): one of transformers' Auto classes.
        name (`str`): a Hub id or a folder.
        labels (*mapping*): `num_labels` and the names, for a classification head.
        settings (*mapping*): what is set in the configuration.
        source (*mapping*): `revision`, `token` and `cache_dir`.
        quantization (`Quantization`, *optional*): how its linear layers are to be stored.
        may_be_quantized (`bool`): its files may hold them so already.
        dtype (`torch.dtype`): of a quantised model, before it was and of its other weights; others come in float32.

    Returns:
        `transformers.PreTrainedModel`, *dict* of `str` to `torch.Tensor`, *dict* of `int` to `str`: the model; its
        parameters that were drawn at random because the checkpoint lacks them; and the names of the labels that the
        loaded head was made for, empty if it was drawn.

    Raises:
        IncompatibleBaseError: if it cannot be loaded, or weights other than those of a head would be random.
    """
    access = {**source, "may_be_quantized": may_be_quantized or quantization is not None}
    stated = config_of_repository(name, {}, **access)
    config = config_of_repository(name, labels, **access) if labels else stated
    quantization, options = _quantizing(name, stated, quantization)
    for key, value in settings.items():
        setattr(config, key, value)
    with foreign_files(partial(could_not_load, name)), suppress_load_report(), making_models():
        model, info = auto.from_pretrained(
            name,
            config=config,
            dtype=torch.float32 if quantization is None else dtype,
            output_loading_info=True,
            # Checked below, key by key: transformers' permission is for the whole model.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **source,
            **options,
        )
    if quantization is not None:
        make_ready(model, quantization)
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    _require_shapes(name, model, mismatched, may_resize=bool(labels))
    _require_pretrained(name, model, set(info["missing_keys"]), stated)
    _require_all_layers(name, model, info["unexpected_keys"])
    require_same_positions(model, stated.pad_token_id if hasattr(stated, "pad_token_id") else None)
    state = model.state_dict()
    fresh = {key: state[key].clone() for key in sorted({*info["missing_keys"], *mismatched})}
    has_own_head = bool(labels) and not any(_is_head(model, key) for key in fresh)
    return model, fresh, dict(stated.id2label or {}) if has_own_head else {}


def _quantizing(name: str, stated: Any, given: Quantization | None) -> tuple[Quantization | None, dict[str, Any]]:
    """Return how a base model is quantised, in its files or by what is given, and the options that load it so."""
    stored = Quantization.recorded(getattr(stated, "quantization_config", None), f"The base model {name!r}")
    if stored is not None and given is not None:
        raise IncompatibleBaseError(
            f"The base model {name!r} is quantised already. Leave quantization_config out, or give the model that it "
            "was made from."
        )
    return stored or given, loading_options(stored or given, is_stored=stored is not None)


def _is_head(model: Any, key: str) -> bool:
    """Whether a weight is outside the body that every head of this kind of model shares."""
    prefix = model.base_model_prefix
    if prefix and isinstance(getattr(model, prefix, None), torch.nn.Module):
        return not key.startswith(f"{prefix}.")
    head = model.get_output_embeddings()  # of an encoder-decoder, whose body has no name of its own
    return head is not None and any(key == f"{name}.weight" for name, one in model.named_modules() if one is head)


def _require_shapes(name: str, model: Any, mismatched: set[str], *, may_resize: bool) -> None:
    """Check that all weights have the shapes of the configuration; a new head may have another."""
    odd = sorted(key for key in mismatched if not (may_resize and _is_head(model, key)))
    if odd:
        raise IncompatibleBaseError(
            f"The base model {name!r} has {_listed(odd)} in another shape than its config.json says, and would be "
            "random there. Mend config.json (vocabulary, positions, sizes), or take an undamaged copy."
        )


def _require_pretrained(name: str, model: Any, missing: set[str], stated: Any) -> None:
    """Check that only a head, or what was never pretrained, is drawn at random."""
    if not missing:
        return
    saved = _keys_of_saved_class(stated)
    if saved is None:
        absent = sorted(key for key in missing if not _is_head(model, key))
    else:
        # What the class that was saved has no weights for was never pretrained: a head, or a pooler.
        absent = sorted(key for key in missing if _below_prefix(model, key) in saved)
    if absent:
        raise IncompatibleBaseError(
            f"The base model {name!r} lacks {_listed(absent)}, which would be random. Take an undamaged copy, or "
            "mend config.json."
        )


def _keys_of_saved_class(stated: Any) -> set[str] | None:
    """Return the names of the weights of the class that a checkpoint says it is of, without the body's prefix."""
    import transformers

    for architecture in stated.architectures or ():
        kind = getattr(transformers, str(architecture), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            try:
                with torch.device("meta"), making_models():
                    empty = kind._from_config(stated)
            except Exception:  # without it, the names alone decide
                return None
            return {_below_prefix(empty, key) for key in empty.state_dict()}
    return None


def _below_prefix(model: Any, key: str) -> str:
    return key.removeprefix(f"{model.base_model_prefix}.")


def _require_all_layers(name: str, model: Any, unexpected: Iterable[str]) -> None:
    """Check that no layers are left out: that is what too small a number of layers in config.json does."""
    layers = {_numberless(_below_prefix(model, key)) for key in model.state_dict()}
    numbered = (key for key in unexpected if re.search(r"\.\d+\.", key))
    odd = sorted(key for key in numbered if _numberless(_below_prefix(model, key)) in layers)
    if odd:
        raise IncompatibleBaseError(
            f"The base model {name!r} has more layers than its config.json says: {_listed(odd)} would be left out. "
            "Mend config.json, or save the model that you mean."
        )


def require_same_positions(model: Any, pad_token_id: int | None) -> None:
    """Check that positions still count from where they were pretrained: RoBERTa counts from the padding token on.

    Args:
        model (`transformers.PreTrainedModel`): with the padding token that it is to have.
        pad_token_id (`int`, *optional*): the one that it was pretrained with.

    Raises:
        IncompatibleBaseError: if they differ and it matters.
    """
    found = getattr(model.config, "pad_token_id", None)
    if pad_token_id is None or found == pad_token_id or not ModelLimits.of(model).starts_at_padding:
        return
    raise IncompatibleBaseError(
        f"The base model was pretrained with the padding token {pad_token_id} and counts positions from it on, but "
        f"the tokenizer pads with {found}. Give the tokenizer that the model was made for."
    )


def _numberless(key: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", key)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(repr(key) for key in keys[:_SHOWN]) + more
