"""A LoRA adapter per cluster, trained on the members' data where ClAMU learns a mask: what the same bits give then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hf_clamu.base_models.adapters.insertion import forget_config
from hf_clamu.merging import ClamuArguments
from hf_clamu.tasks import Example
from hf_clamu.training import Workspace, sample_batches, seeded

__all__ = ["LORA_RATES", "train_adapter"]

# Of Adam; the tuning examples choose.
LORA_RATES = (3e-3, 1e-2, 3e-2)


def train_adapter(
    workspace: Workspace, examples: Sequence[Example], arguments: ClamuArguments, *, rank: int, rate: float, seed: int
) -> tuple[dict[str, torch.Tensor], int]:
    """Train an adapter in every linear layer for as many steps, on batches as large, as a mask would be learned.

    Args:
        workspace (`Workspace`): the live model.
        examples (*sequence* of `Example`): training examples of all members.
        arguments (`ClamuArguments`): have the steps and the size of a batch.
        rank (`int`): of the adapter, whose product counts once (`lora_alpha` is the rank).
        rate (`float`): Adam's learning rate.
        seed (`int`): of the adapter's first values, of dropout and of the batches.

    Returns:
        *tuple* of *dict* and `int`: the weights with the adapter merged into them, and how many it has of its own.

    Source: LoRA (Hu et al., 2022).
    """
    workspace.reset()
    with seeded(seed), workspace.training(), _inserted(workspace, rank) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
        for batch in sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, seed):
            workspace.forward(workspace.batch(batch)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        size = sum(parameter.numel() for parameter in parameters)
    return {name: weight.detach().clone() for name, weight in workspace.parameters.items()}, size


@contextmanager
def _inserted(workspace: Workspace, rank: int) -> Iterator[list[torch.nn.Parameter]]:
    """Put an adapter into the live model, yield what it trains, and merge it into the weights on leaving."""
    from peft import LoraConfig, LoraModel

    flags = {name: parameter.requires_grad for name, parameter in workspace.model.named_parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_linear_layers(workspace))
    tuner = LoraModel(workspace.model, config, "default")
    try:
        yield [parameter for parameter in workspace.model.parameters() if parameter.requires_grad]
    finally:
        tuner.merge_and_unload(progressbar=False)
        forget_config(workspace.model)
        for name, parameter in workspace.model.named_parameters():
            parameter.requires_grad_(flags[name])


def _linear_layers(workspace: Workspace) -> list[str]:
    """Return the names of all linear layers whose weights take part in merging, the head's included."""
    from transformers.pytorch_utils import Conv1D

    modules = workspace.model.named_modules()
    return [
        name
        for name, module in modules
        if isinstance(module, (torch.nn.Linear, Conv1D)) and f"{name}.weight" in workspace.parameters
    ]
