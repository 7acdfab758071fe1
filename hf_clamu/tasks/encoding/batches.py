"""Batches of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.tasks.encoding.examples import Example

__all__ = ["IGNORED_LABEL", "collate", "padding_id"]

# The value that torch's cross-entropy leaves out.
IGNORED_LABEL = -100


def padding_id(processor: Any) -> int:
    """Return the id that fills short rows; any will do where a tokenizer has none, because it is masked."""
    return getattr(processor, "pad_token_id", None) or 0


def collate(
    examples: Sequence[Example], pad_token_id: int | None, *, padding_side: Literal["left", "right"] = "right"
) -> dict[str, torch.Tensor]:
    """Put examples into one batch: pad 1-D tensors to the longest, stack everything else.

    Args:
        examples (*sequence* of *dict* of `str` to `torch.Tensor`): at least one; all of one kind.
        pad_token_id (`int`, *optional*): fills `input_ids`; not needed where nothing is padded.
        padding_side (`str`, defaults to `"right"`): "left" or "right".

    Returns:
        *dict* of `str` to `torch.Tensor`: `input_ids`, `attention_mask` (0 on padding) and token `labels` (-100 on
        padding) of shape `(batch, longest)`; `pixel_values` and class `labels` stacked.

    Raises:
        RecipeError: if texts of different lengths meet without a padding token.

    Example:

    ```python
    >>> batch = collate([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}], 0)
    >>> batch["input_ids"].tolist()
    [[5, 6], [7, 0]]

    ```
    """
    if padding_side not in ("left", "right"):
        raise RecipeError(f"padding_side must be 'left' or 'right', found {padding_side!r}.")
    fill = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
    batch: dict[str, torch.Tensor] = {}
    for name in examples[0]:
        tensors = [example[name] for example in examples]
        if tensors[0].dim() == 1:
            value = fill.get(name, 0)
            longest = max(len(tensor) for tensor in tensors)
            if value is None and any(len(tensor) < longest for tensor in tensors):
                raise RecipeError("Texts of different lengths need padding, but the tokenizer has no pad_token_id.")
            tensors = [_pad(tensor, longest, value or 0, padding_side) for tensor in tensors]
        batch[name] = torch.stack(tensors)
    return batch


def _pad(tensor: torch.Tensor, length: int, value: int, side: Literal["left", "right"]) -> torch.Tensor:
    missing = length - len(tensor)
    return torch.nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=value)
