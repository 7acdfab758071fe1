"""Tasks of which the encoded examples are kept, and not the rows: packing them, and reading them when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.encoding import EncodedTask, Example

__all__ = ["StoredTask", "pack", "packed_template", "unpack"]

# The shapes of a field's examples are kept beside their values.
_SHAPES = "/shapes"
_TEMPLATE = "chat_template"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredTask:
    """A task whose encoded examples are kept.

    Args:
        num_train (`int`): of training examples.
        num_validation (`int`): of examples that are kept out of training.
        cluster_key (`str`, *optional*): the task's value in the cluster column.
        origin (`str`): where they are kept, in words.
        read (*callable*): returns the `EncodedTask`, checked to be what was kept.
    """

    num_train: int
    num_validation: int
    cluster_key: str | None
    origin: str
    read: Callable[[], EncodedTask]

    @property
    def num_examples(self) -> int:
        """How many examples it has."""
        return self.num_train + self.num_validation

    @property
    def first_place(self) -> str:
        """Where it is kept."""
        return self.origin


def pack(encoded: EncodedTask) -> dict[str, torch.Tensor]:
    """Return the examples of a task as few tensors: `PART/FIELD` and `PART/FIELD/shapes`.

    Args:
        encoded (`EncodedTask`): the task.

    Returns:
        *dict* of `str` to `torch.Tensor`: for the parts `train` and `validation` and each field of their examples, the
        values of all examples one after the other, of shape `(values,)`, and their shapes, int64 of shape
        `(examples, dimensions)`. Of conversations also `chat_template`, uint8 of shape `(32,)`: its SHA-256.

    Raises:
        TaskDataError: if examples of a part have other fields, types or numbers of dimensions than the first.
    """
    tensors: dict[str, torch.Tensor] = {}
    for part, examples in (("train", encoded.train), ("validation", encoded.validation)):
        kinds = [{name: (value.dtype, value.dim()) for name, value in example.items()} for example in examples]
        if any(kind != kinds[0] for kind in kinds):
            raise TaskDataError(
                f"The examples of task {encoded.task_id!r} differ in fields, types or dimensions, so they cannot be "
                "kept in a snapshot. Give them one form, or train without a snapshot."
            )
        for name in examples[0] if examples else ():
            values = [example[name] for example in examples]
            tensors[f"{part}/{name}"] = torch.cat([value.reshape(-1) for value in values])
            shapes = torch.tensor([list(value.shape) for value in values], dtype=torch.int64)
            tensors[f"{part}/{name}{_SHAPES}"] = shapes.view(len(values), values[0].dim())
    if encoded.chat_template is not None:
        tensors[_TEMPLATE] = torch.tensor(list(bytes.fromhex(encoded.chat_template)), dtype=torch.uint8)
    return tensors


def packed_template(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the SHA-256 of the chat template that `pack` kept, if there is one."""
    return bytes(tensors[_TEMPLATE].tolist()).hex() if _TEMPLATE in tensors else None


def unpack(tensors: Mapping[str, torch.Tensor]) -> tuple[list[Example], list[Example]]:
    """Return the training and the validation examples that `pack` packed.

    Raises:
        KeyError, ValueError: if the tensors are none that it returns.
    """
    return list(_part("train", tensors)), list(_part("validation", tensors))


def _part(part: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[Example]:
    names = [name for name in tensors if name.startswith(f"{part}/") and not name.endswith(_SHAPES)]
    fields = {name.removeprefix(f"{part}/"): _cut(tensors[name], tensors[name + _SHAPES]) for name in sorted(names)}
    for values in zip(*fields.values(), strict=True):
        yield dict(zip(fields, values, strict=True))


def _cut(values: torch.Tensor, shapes: torch.Tensor) -> Sequence[torch.Tensor]:
    if shapes.dtype != torch.int64 or shapes.dim() != 2 or values.dim() != 1 or bool((shapes < 0).any()):
        raise ValueError("a field has no such shapes")
    sizes = shapes.prod(1).tolist()
    if sum(sizes) != len(values):
        raise ValueError("a field has another size than its shapes")
    parts = values.split(sizes)
    # Each in memory of its own, as an encoder gives them.
    return [part.clone().view(shape) for part, shape in zip(parts, shapes.tolist(), strict=True)]
