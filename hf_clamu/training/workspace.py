"""The live copy of the base model on which every task and every mask is trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from hf_clamu.errors import RecipeError
from hf_clamu.exact.threads import one_thread_each
from hf_clamu.tasks import Example, collate
from hf_clamu.training.outside import Outside

__all__ = ["LiveModel", "TaskAdapter", "Workspace", "move_model", "trainable_names"]


def trainable_names(model: nn.Module, freeze: Sequence[str]) -> list[str]:
    """Return the names of the parameters that take part in merging.

    Every floating-point parameter that requires a gradient takes part, tied ones once, except those that a pattern
    freezes.

    Args:
        model (`torch.nn.Module`): the base model.
        freeze (*sequence* of `str`): shell patterns on parameter names, such as `"transformer.wte.*"`.

    Raises:
        RecipeError: if a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]
    for pattern in freeze:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in model.named_parameters()):
            examples = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            raise RecipeError(
                f"freeze={pattern!r} matches no parameter of the base model; its names look like {examples}."
            )
    trained = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in freeze)]
    if not trained:
        raise RecipeError("No parameter is left to train: every one is frozen. Give fewer freeze patterns.")
    return sorted(trained)


def move_model(model: nn.Module, device: torch.device | str) -> None:
    """Move a model, with what layers in 8 bits keep beside their parameters.

    `Module.to` moves parameters and buffers. Layers of bitsandbytes hold a weight and its scales a second time, in
    attributes of the weight before their first product and in a state of their own after it.

    Args:
        model (`torch.nn.Module`): changed in place.
        device (`torch.device` or `str`): where to.
    """
    model.to(device)
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        holders: tuple[Any, ...] = (weight, getattr(module, "state", None))
        for holder in holders:
            if getattr(holder, "SCB", None) is not None:
                holder.CB, holder.SCB = weight.data, holder.SCB.to(device)


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return contiguous copies of weights, made several at a time: new memory costs more than the copying."""
    with one_thread_each(parameter.nbytes for parameter in parameters.values()) as pool:
        copies = {name: pool.submit(one.nbytes, _copy, one.data) for name, one in parameters.items()}
        return {name: copy() for name, copy in copies.items()}


def _copy(weights: torch.Tensor) -> torch.Tensor:
    return weights.clone(memory_format=torch.contiguous_format)


class LiveModel:
    """A model on a device that runs on batches of examples.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        device (`torch.device`, *optional*): where it is; the CPU by default.
        pad_token_id (`int`): fills short rows of a batch of token ids.
        bf16 (`bool`): run the forward pass under bfloat16 autocast.
    """

    def __init__(
        self, model: nn.Module, *, device: torch.device | None = None, pad_token_id: int = 0, bf16: bool = False
    ) -> None:
        self.model: Any = model
        self.device = device or torch.device("cpu")
        self.pad_token_id = pad_token_id
        self.bf16 = bf16
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self._dtype = next(floating, torch.float32)

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Pad and stack examples on the device; pixels come in the type of the weights, as not every model casts."""
        stacked = collate(examples, self.pad_token_id).items()
        return {
            key: value.to(self.device, self._dtype if value.is_floating_point() else None) for key, value in stacked
        }

    def forward(self, batch: Mapping[str, torch.Tensor], **options: Any) -> Any:
        """Run the model on a batch, under autocast if the recipe says so."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=True):
            return self.model(**batch, **options)


class TaskAdapter(Protocol):
    """An adapter that a task is finetuned through and that is merged into the weights when the task is done."""

    def check(self, model: nn.Module) -> None:
        """Check that what merging the adapter writes to takes part, that is requires a gradient."""
        ...

    def inserted(self, model: nn.Module) -> AbstractContextManager[list[nn.Parameter]]:
        """Put the adapter into a model, yield the parameters to train, and merge it on leaving."""
        ...


class Workspace(LiveModel):
    """A base model on a device, whose weights are changed and brought back.

    One workspace serves all tasks: the model is built once, and its weights are copied back. Until something trains,
    the live model and `theta_0` are the same memory.

    Args:
        model (`transformers.PreTrainedModel`): the base model, holding `theta_0`. It is changed while training.
        freeze (*sequence* of `str`): patterns of parameters that do not take part.
        device (`torch.device`): where it trains.
        pad_token_id (`int`): fills short rows of a batch of token ids.
        bf16 (`bool`): run the forward pass under bfloat16 autocast.
        adapter (`TaskAdapter`, *optional*): each task is finetuned through it; otherwise directly.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        freeze: Sequence[str] = (),
        device: torch.device | None = None,
        pad_token_id: int = 0,
        bf16: bool = False,
        adapter: TaskAdapter | None = None,
    ) -> None:
        super().__init__(model, device=device, pad_token_id=pad_token_id, bf16=bf16)
        self._adapter = adapter
        names = set(trainable_names(model, freeze))
        move_model(model, self.device)
        self.parameters: dict[str, nn.Parameter] = {}
        self.theta_0: dict[str, torch.Tensor] = {}
        self._frozen: list[nn.Parameter] = []
        self._has_own_memory = False
        for name, parameter in sorted(model.named_parameters()):
            if name in names:
                self.parameters[name] = parameter
            elif parameter.requires_grad:
                parameter.requires_grad_(False)
                self._frozen.append(parameter)
        # Weights may be mapped from a file that others write to.
        for name, weights in _copies(self.parameters).items():
            self.parameters[name].data = self.theta_0[name] = weights
        if adapter is not None:
            adapter.check(model)
        self._outside = Outside(model, self.parameters.values())

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each parameter that takes part, by sorted name."""
        return {name: theta.shape for name, theta in self.theta_0.items()}

    @property
    def num_parameters(self) -> int:
        """The number of weights that take part."""
        return sum(theta.numel() for theta in self.theta_0.values())

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy weights (*mapping* of `str` to `torch.Tensor`) into the live model."""
        self._take_memory()
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def reset(self) -> None:
        """Bring the base model's weights back."""
        if not self._take_memory():
            self.load(self.theta_0)

    def release(self) -> None:
        """Leave the model as it came: base weights, on the CPU, every parameter trainable."""
        for name, parameter in self.parameters.items():
            parameter.data = self.theta_0[name]
        self._has_own_memory = False
        move_model(self.model, "cpu")
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.model.eval()

    def _take_memory(self) -> bool:
        """Give the live model memory beside `theta_0`; return whether it had none, and holds the base weights now.

        Only now: merging models from files changes nothing in it.
        """
        if self._has_own_memory:
            return False
        for name, parameter in self.parameters.items():
            parameter.data = self.theta_0[name].clone()
        self._has_own_memory = True
        return True

    @contextmanager
    def finetuning(self) -> Iterator[list[nn.Parameter]]:
        """Put the model into training mode and yield the parameters that a task trains."""
        self._take_memory()
        if self._adapter is None:
            with self.training():
                yield list(self.parameters.values())
        else:
            with self._adapter.inserted(self.model) as parameters, self.training():
                yield parameters
        self._outside.check()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the model into training mode, with the running statistics of batch normalisation frozen.

        Running statistics are buffers that depend on the order of the batches and are not part of a task vector, so
        they stay those of the base model.
        """
        self._take_memory()
        self.model.train()
        # A gradient that the model came with would be added to the first one.
        self.model.zero_grad(set_to_none=True)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        try:
            yield
        finally:
            self.model.eval()
            self.model.zero_grad(set_to_none=True)
