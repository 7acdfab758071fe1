"""A base model that is given in memory: rebuilt from its own configuration and weights, or refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from hf_clamu.base_models.casting import cast_weights
from hf_clamu.base_models.config import require_no_imports
from hf_clamu.base_models.foreign import foreign_files
from hf_clamu.base_models.library_calls import making_models
from hf_clamu.errors import IncompatibleBaseError

__all__ = ["rebuilt", "require_base"]


def require_base(base: Any) -> None:
    """Check that something is what a base model can be given as.

    Args:
        base (*anything*): a name, a folder, a mapping, a configuration or a model.

    Raises:
        IncompatibleBaseError: saying what to give instead.
    """
    import os

    import transformers

    if hasattr(base, "clamu_config"):
        raise IncompatibleBaseError(
            "The base model is a merged ClAMU model. Export the merged model first (export), and give the folder."
        )
    if isinstance(base, (str, os.PathLike, Mapping, transformers.PreTrainedConfig, transformers.PreTrainedModel)):
        if base == "":
            raise IncompatibleBaseError(f"The base model has no name. {_EXPECTED}")
        return
    kind = type(base).__name__
    if hasattr(base, "peft_config"):
        hint = (
            "Merge the adapter into it first (merge_and_unload()) and give what that returns, or give the base model "
            "alone with peft_config=, to finetune each task through an adapter."
        )
    elif hasattr(base, "_orig_mod"):
        hint = "Give the model that torch.compile was called on."
    elif isinstance(getattr(base, "module", None), torch.nn.Module):
        hint = "Give the model inside it (.module)."
    elif isinstance(base, torch.nn.Module):
        hint = "Only models of transformers can be saved and loaded with their configuration."
    else:
        hint = _EXPECTED
    raise IncompatibleBaseError(f"The base model is a {kind}. {hint}")


_EXPECTED = (
    "Give a Hub id (org/name), a folder written by save_pretrained, a configuration with a model_type, or a "
    "transformers model."
)


def rebuilt(model: Any, architecture: Any, settings: Mapping[str, Any]) -> Any:
    """Return the model that a given one's configuration and weights make, as every later load makes it.

    What was only set on the live object (another attention, a padding token that came later, hooks) is not in it. The
    given model is not changed, and parameters that it has frozen are frozen.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        architecture (*type*): its class in transformers.
        settings (*mapping*): what is set in the configuration.

    Raises:
        IncompatibleBaseError: if they make another model, or none.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise IncompatibleBaseError(
            "The base model has an adapter inside (add_adapter). Take it out first (delete_adapter), or give the base "
            "model alone with peft_config=, to finetune each task through an adapter."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise IncompatibleBaseError(
            "The base model is on the meta device and has no weights there. Load it with its weights."
        )
    values = model.config.to_dict()
    require_no_imports(values, architecture.config_class, "The base model")
    config = architecture.config_class.from_dict(values)
    for key, value in settings.items():
        setattr(config, key, value)
    with foreign_files(_does_not_fit):
        with making_models():
            made = architecture._from_config(config)
        cast_weights(made, model.dtype)
        try:
            made.load_state_dict(model.state_dict())
        except RuntimeError as error:  # its first line alone says nothing
            raise _does_not_fit(" ".join(str(error).split())[:300]) from error
    _require_equal(model, made)
    made.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    given = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(given[name].requires_grad)
    return made


def _does_not_fit(cause: str) -> IncompatibleBaseError:
    return IncompatibleBaseError(
        f"The base model's weights do not fit its own configuration, so a saved model could not be loaded: {cause} "
        "Give a model that from_pretrained makes."
    )


def _require_equal(model: Any, made: Any) -> None:
    """Check that all weights arrived: names that a configuration ties share one storage, and the last one wins."""
    given, own = model.state_dict(), made.state_dict()
    for name, weights in given.items():
        found = own.get(name)
        if found is None or _same(weights, found):
            continue
        tied = [one for one in given if one in own and own[one].data_ptr() == found.data_ptr()]
        others = [one for one in tied if not _same(weights, given[one])]
        if others:
            raise IncompatibleBaseError(
                f"The base model has {name!r} with other values than {others[0]!r}, but its configuration ties them "
                "(tie_word_embeddings), so one would replace the other. Set model.config.tie_word_embeddings = False "
                "first, or save the model and give the folder."
            )
        raise IncompatibleBaseError(
            f"The base model has {name!r} as {weights.dtype}, which does not fit its type {made.dtype} without loss. "
            "Give all weights one type, such as model.float()."
        )


def _same(given: torch.Tensor, found: torch.Tensor) -> bool:
    given, found = given.detach().cpu(), found.detach().cpu()
    wide = torch.promote_types(given.dtype, found.dtype)
    return given.shape == found.shape and torch.allclose(
        given.to(wide), found.to(wide), rtol=0, atol=0, equal_nan=True
    )
