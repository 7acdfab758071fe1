"""Adapters that were trained from one common factor, which add up as they are."""

from __future__ import annotations

import logging

from hf_clamu.base_models.adapters.insertion import ADAPTER_NAME
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import BaseModel
from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.local_models.adapter_checkpoint import AdapterCheckpoint, same_bits
from hf_clamu.local_models.local_models import LocalModels

__all__ = ["adapter_space", "share_factors"]

_logger = logging.getLogger(__name__)


def adapter_space(local_models: LocalModels, merging: str | None) -> PeftSpace | None:
    """Return the adapter that the merged model has inside, if tasks are added as the adapters that they came as.

    Args:
        local_models (`LocalModels`): all that are merged.
        merging (`str`, *optional*): `"product"` or `"frozen_a"`; by default the second where it can be.

    Raises:
        IncompatibleBaseError: if `"frozen_a"` is asked for and cannot be.
        RecipeError: for another word, or without adapters.
    """
    if merging not in (None, "product", "frozen_a"):
        raise RecipeError(f"peft_merging of checkpoints must be product or frozen_a, got {merging!r}.")
    adapters = [one for task_id in local_models if isinstance(one := local_models[task_id], AdapterCheckpoint)]
    if not adapters:
        if merging is not None:
            raise RecipeError(f"peft_merging={merging!r} says how adapters are merged, and no checkpoint is one.")
        return None
    if merging == "product":
        return None
    reason = _differ(adapters) if len(adapters) == len(local_models) else "some checkpoints are whole models"
    if reason is None:
        return adapters[0].shared_space
    if merging == "frozen_a":
        raise IncompatibleBaseError(
            f"peft_merging='frozen_a' needs LoRA adapters of one shape with the same factor A: {reason}. Choose "
            "'product'."
        )
    _logger.info(
        "Adapters are merged as what they change in the weights (peft_merging product): %s. A build from them that is "
        "to be compared with this one needs the same word.",
        reason,
    )
    return None


def _differ(adapters: list[AdapterCheckpoint]) -> str | None:
    """Say why adapters cannot be added as they are, if so."""
    first = adapters[0]
    factors = first.own_factors
    for one in adapters:
        if one.no_sharing is not None:
            return one.no_sharing
        if one.shared_space != first.shared_space:
            return f"{one.folder} has other settings than {first.folder}"
        own = one.own_factors
        if own.keys() != factors.keys() or not all(same_bits(own[name], factors[name]) for name in factors):
            return f"{one.folder} has another factor A than {first.folder}"
    return None


def share_factors(base: BaseModel, local_models: LocalModels) -> None:
    """Give the adapter inside a base model the factor that all adapters have.

    Args:
        base (`BaseModel`): changed in place.
        local_models (`LocalModels`): adapters of one shape with the same factor.

    Raises:
        IncompatibleBaseError: if the adapters do not fit the model.
    """
    first = local_models[next(iter(local_models))]
    assert isinstance(first, AdapterCheckpoint)
    factors = first.own_factors
    live = dict(base.model.named_parameters())
    for name in base.fresh:
        key = f"base_model.model.{name.replace(f'.{ADAPTER_NAME}', '')}"
        if key in factors and factors[key].shape == live[name].shape:  # reading says what does not fit
            base.fresh[name] = factors[key].to(live[name].dtype).clone()
            live[name].data.copy_(base.fresh[name])
