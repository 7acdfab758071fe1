"""Parameters and buffers that take no part in merging: finetuning must leave them as they are."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from hf_clamu.errors import ExactnessError

__all__ = ["Outside"]

# Bytes per pass, a multiple of 8: temporaries stay small.
_CHUNK = 1 << 23


class Outside:
    """Remembers parameters and buffers outside of those that take part, by sums over their bits.

    A sum costs about as much as reading the weights once, so it can be taken after every task.

    Args:
        model (`torch.nn.Module`): the base model.
        inside (*collection* of `torch.Tensor`): parameters that take part.
    """

    def __init__(self, model: nn.Module, inside: Collection[torch.Tensor]) -> None:
        self._model = model
        self._inside = [id(parameter) for parameter in inside]
        self._before = self._sums()

    def check(self) -> None:
        """Check that everything outside is as it was.

        Raises:
            ExactnessError: naming the first tensor that is not.
        """
        after = self._sums()
        changed = sorted(name for name in {*self._before, *after} if self._before.get(name) != after.get(name))
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ExactnessError(
                f"Training changed {changed[0]!r}{more} of the base model, which no task vector holds, so tasks would "
                "show in one another and none could be forgotten. Nothing was saved. Take a base model "
                "whose layers write to nothing while they train, or an adapter that leaves these weights alone."
            )

    @torch.no_grad()
    def _sums(self) -> dict[str, tuple[object, ...]]:
        parameters = [item for item in self._model.named_parameters() if id(item[1]) not in self._inside]
        tensors = dict([*parameters, *self._model.named_buffers()])
        # The scales of quantised weights are in the state alone.
        named = {*dict(self._model.named_parameters(remove_duplicate=False)), *tensors}
        named |= dict(self._model.named_buffers(remove_duplicate=False)).keys()
        tensors |= {name: value for name, value in self._model.state_dict().items() if name not in named}
        return {name: (str(t.dtype), tuple(t.shape), *_sums_of(t)) for name, t in tensors.items()}


def _sums_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return a sum over the bits of a tensor, and one weighted by their positions."""
    if tensor.is_meta:
        return 0, 0
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    plain = placed = 0
    for number, part in enumerate(flat.split(_CHUNK)):
        whole = part[: part.numel() // 4 * 4]
        words = whole.view(torch.int32).to(torch.int64) if whole.data_ptr() % 4 == 0 else whole.to(torch.int64)
        words = torch.cat([words, part[whole.numel() :].to(torch.int64)])
        places = torch.arange(1, words.numel() + 1, device=words.device)
        plain += int(words.sum())
        placed += (number + 1) * int((words * places).sum())
    return plain, placed
