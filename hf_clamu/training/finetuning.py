"""Finetuning the base model on one task, in a way that gives the same bits every time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from hf_clamu.errors import FixedPointOverflowError, RecipeError
from hf_clamu.exact import FixedPoint, TaskVector, encode_vector
from hf_clamu.tasks import EncodedTask
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.determinism import derive_seed, seeded
from hf_clamu.training.reporting import LossReport
from hf_clamu.training.signs import FixedSigns
from hf_clamu.training.workspace import Workspace

__all__ = ["FinetuningArguments", "finetune", "learning_rate_factor"]


@dataclass(frozen=True, kw_only=True)
class FinetuningArguments:
    """How each task is finetuned."""

    finetune_steps: int = field(default=20, metadata={"help": "Optimizer steps per task."})
    learning_rate: float | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Peak learning rate of AdamW; 'auto' chooses by the base model and by what is trained of it, and "
            "the saved model has the number."
        },
    )
    batch_size: int = field(default=20, metadata={"help": "Examples per step; a smaller task gives full batches."})
    weight_decay: float = field(default=0.0, metadata={"help": "Decoupled weight decay of AdamW."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's beta1."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's beta2."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warmup."})
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = field(
        default="constant", metadata={"help": "Learning rate after the warmup."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm; 0 for never."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast in the forward pass, weights in fp32."})
    freeze: tuple[str, ...] = field(default=(), metadata={"help": "Patterns of names of parameters that stay."})
    seed: int = field(default=0, metadata={"help": "Run seed; every other seed is derived from it and from ids."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads (they show in the bits); unset: what torch uses at the build."}
    )
    portable: bool = field(
        default=False,
        metadata={
            "help": "Bits that are the same on every x86-64 processor with AVX2, at about twice the time; the Python "
            "API needs hf_clamu.use_portable_kernels() before torch is imported."
        },
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", tuple(self.freeze))
        _require(self, "finetune_steps", self.finetune_steps >= 1, "at least 1")
        if self.learning_rate != "auto":
            _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0, or 'auto'")
        _require(self, "batch_size", self.batch_size >= 1, "at least 1")
        _require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        _require(self, "adam_beta1", 0 <= self.adam_beta1 < 1, "in [0, 1)")
        _require(self, "adam_beta2", 0 <= self.adam_beta2 < 1, "in [0, 1)")
        _require(self, "adam_epsilon", 0 < self.adam_epsilon < math.inf, "above 0")
        _require(self, "warmup_steps", 0 <= self.warmup_steps <= self.finetune_steps, "from 0 to finetune_steps")
        _require(self, "max_grad_norm", 0 <= self.max_grad_norm < math.inf, "0 or more")
        _require(self, "num_threads", self.num_threads is None or 1 <= self.num_threads <= 1024, "1 to 1024, or unset")
        kinds = ("constant", "linear", "cosine")
        _require(self, "lr_scheduler_type", self.lr_scheduler_type in kinds, f"one of {', '.join(kinds)}")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate as a number.

        Raises:
            RecipeError: if it is still to be chosen.
        """
        if self.learning_rate == "auto":
            raise RecipeError(
                "learning_rate is 'auto', which stands for a number that is chosen when a base model is loaded. Give "
                "a number here."
            )
        return self.learning_rate

    @property
    def total_learning_rate(self) -> float:
        """The sum of the learning rates of all steps: AdamW moves a weight by about so much at most.

        A step moves it by the learning rate at most while gradients keep their size; by up to `(1 - adam_beta1) /
        sqrt(1 - adam_beta2)` learning rates after many steps without one. Weight decay comes on top.

        Raises:
            RecipeError: if the learning rate is still to be chosen.

        Source: Kingma and Ba, "Adam", section 2.1.
        """
        return math.fsum(learning_rate_at(self, step) for step in range(self.finetune_steps))

    @property
    def has_fixed_signs(self) -> bool:
        """Whether the vectors of all tasks keep to one sign per weight, see `FixedSigns`."""
        return False


def _require(arguments: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {expected}, got {getattr(arguments, name)!r}.")


def learning_rate_factor(arguments: FinetuningArguments, step: int) -> float:
    """Return the share of the peak learning rate at a step (counted from 0)."""
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    progress = (step - arguments.warmup_steps) / max(1, arguments.finetune_steps - arguments.warmup_steps)
    if arguments.lr_scheduler_type == "linear":
        return 1.0 - progress
    if arguments.lr_scheduler_type == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def learning_rate_at(arguments: FinetuningArguments, step: int) -> float:
    """Return the learning rate at a step (counted from 0)."""
    return arguments.peak_learning_rate * learning_rate_factor(arguments, step)


def finetune(
    workspace: Workspace,
    task: EncodedTask,
    arguments: FinetuningArguments,
    codec: FixedPoint,
    *,
    signs: FixedSigns | None = None,
    buffers: dict[str, torch.Tensor] | None = None,
    report: LossReport | None = None,
) -> TaskVector:
    """Finetune the base model on one task and return its task vector on the integer grid.

    The live model holds the local model `M_t` afterwards.

    Args:
        workspace (`Workspace`): the live model.
        task (`EncodedTask`): the task's tokenised data.
        arguments (`FinetuningArguments`): steps, optimizer, seed.
        codec (`FixedPoint`): the integer grid.
        signs (`FixedSigns`, *optional*): that the task vector keeps to after every step; the optimizer's state is left
            as it is.
        buffers (*dict* of `str` to `torch.Tensor`, *optional*): memory of an earlier vector, which is overwritten.
        report (`LossReport`, *optional*): gets the losses of the steps, of a training that diverged, too.

    Returns:
        `TaskVector`: `round((theta_t - theta_0) / q)`.

    Raises:
        FixedPointOverflowError: if the training diverged; the message names the task.
        RecipeError: if the loss depends on nothing that is trained.

    Source: ClAMU, Algorithm 1, lines 1-6 (local finetuning; tau_t = M_t - M_0).
    """
    workspace.reset()
    # Tensors until the task is done: reading a number would wait for the device in every step.
    losses: list[torch.Tensor] | None = None if report is None else []
    _train(workspace, task, arguments, signs, losses)
    if report is not None and losses:
        report.add_losses(task.task_id, torch.stack(losses).tolist())
    try:
        return encode_vector(codec, workspace.parameters.items(), workspace.theta_0, buffers=buffers)
    except FixedPointOverflowError as error:
        raise FixedPointOverflowError(f"Task {task.task_id!r}: {error}") from None


def _train(
    workspace: Workspace,
    task: EncodedTask,
    arguments: FinetuningArguments,
    signs: FixedSigns | None,
    losses: list[torch.Tensor] | None,
) -> None:
    with seeded(derive_seed(arguments.seed, "finetune", task.task_id)), workspace.finetuning() as parameters:
        optimizer = torch.optim.AdamW(
            parameters,
            lr=arguments.peak_learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
            weight_decay=arguments.weight_decay,
            fused=True,  # one kernel per step: small models spend most of a step in the loop over parameters
        )
        order = derive_seed(arguments.seed, "batches", task.task_id)
        batch: dict[str, torch.Tensor] | None = None
        for step, examples in enumerate(
            sample_batches(task.train, arguments.batch_size, arguments.finetune_steps, order)
        ):
            if batch is None or examples is not task.train:
                batch = workspace.batch(examples)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(arguments, step)
            loss = workspace.forward(batch).loss
            if not loss.requires_grad:
                raise RecipeError(
                    f"Nothing that is trained ({', '.join(list(workspace.parameters)[:3])}, ...) has a part in what "
                    "the model computes from such data. Train other layers: freeze less, or name other target_modules."
                )
            if losses is not None:
                losses.append(loss.detach())
            loss.backward()
            if arguments.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
            optimizer.step()
            if signs is not None:
                signs.project_(workspace.parameters)
            optimizer.zero_grad(set_to_none=True)
        # The optimizer's state is twice the weights, and what follows needs memory, too.
        del optimizer, batch, loss
