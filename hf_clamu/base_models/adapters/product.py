"""An adapter of its own for each task, merged into the weights when the task is finetuned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from hf_clamu.base_models.adapters.insertion import (
    forget_config,
    insert_adapter,
    plain_name,
    require_mergeable,
    unload_adapter,
)
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.errors import RecipeError

__all__ = ["LocalAdapter", "local_adapter"]


@dataclass(frozen=True)
class LocalAdapter:
    """Finetunes one task at a time through an adapter that is merged into the weights when the task is done.

    Args:
        space (`PeftSpace`): its shape.
        run_seed (`int`): every task's adapter starts from the same values, drawn from it.
    """

    space: PeftSpace
    run_seed: int

    def check(self, model: nn.Module) -> None:
        """Check that the weights that are merged into take part.

        Raises:
            RecipeError: naming one that is frozen, or if PEFT cannot merge the adapter into a layer.
        """
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        tuner = insert_adapter(self.space, model, self.run_seed)
        try:
            for name in require_mergeable(model):
                if not flags[name]:
                    raise RecipeError(
                        f"peft_merging='product' merges the adapter into {name!r}, which is frozen. Leave it out of "
                        "freeze, or its layer out of target_modules."
                    )
        finally:
            unload_adapter(tuner, model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])

    @contextmanager
    def inserted(self, model: nn.Module) -> Iterator[list[nn.Parameter]]:
        """Put the adapter in, yield the parameters to train, and merge it into the weights on leaving."""
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        tuner = insert_adapter(self.space, model, self.run_seed)
        for name, parameter in model.named_parameters():
            if flags.get(name) and ".base_layer." not in name:
                parameter.requires_grad_(True)  # a head, which PEFT froze
            elif not flags.get(plain_name(name), True):
                parameter.requires_grad_(False)  # a bias, which PEFT would train
        try:
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            tuner.merge_and_unload(progressbar=False)
            forget_config(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])


def local_adapter(space: PeftSpace | None, run_seed: int) -> LocalAdapter | None:
    """Return what finetunes each task through an adapter of its own, if the product is merged."""
    return None if space is None or space.is_live else LocalAdapter(space, run_seed)
