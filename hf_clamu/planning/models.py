"""The model that a build would train, without memory for its weights."""

from __future__ import annotations

from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import add_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.loading import empty_model
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.base_models.quantization.sizes import quantized_bytes
from hf_clamu.merging import ClamuArguments
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import TaskDataset

__all__ = ["model_to_train"]


def model_to_train(
    recipe: Recipe, space: PeftSpace | None, tasks: TaskDataset, arguments: ClamuArguments
) -> tuple[Any, dict[str, int]]:
    """Return the model that a build would train, with its adapter inside.

    Args:
        recipe (`Recipe`): names the base model.
        space (`PeftSpace`, *optional*): the adapter.
        tasks (`TaskDataset`): decide the head.
        arguments (`ClamuArguments`): the settings.

    Returns:
        `transformers.PreTrainedModel`, *dict* of `str` to `int`: the model on the meta device, its weights in one
        type; and the bytes of those that the build holds in few bits, by their names without the adapter.

    Raises:
        IncompatibleBaseError: if the base model's configuration cannot be read.
        RecipeError: if the adapter or the quantisation does not fit it.
    """
    base, quantization = recipe.base(), Quantization.of(recipe.quantization_config)
    if quantization is not None:
        quantization.require_weights(base)
    may_be = space is not None and space.is_live and space.peft_type == "LORA"
    model = empty_model(
        base, tasks.spec, num_labels=tasks.num_labels, revision=recipe.revision, may_be_quantized=may_be
    )
    stored = Quantization.recorded(getattr(model.config, "quantization_config", None), f"The base model {base!r}")
    quantization = quantization or stored
    if quantization is not None:
        quantization.require_adapter(space)
        quantization.require_settings(portable=arguments.portable, bf16=arguments.bf16)
    quantized = quantized_bytes(model, quantization)
    if space is not None:
        with torch.device("meta"):
            add_adapter(space, model, arguments.seed)
    return model, quantized
