"""safetensors files: written with one metadata key at most, read with one kind of error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

__all__ = ["TensorFileError", "opened_tensors", "read_tensors", "save_tensors"]


class TensorFileError(OSError):
    """A safetensors file is damaged, or could not be written."""


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: tuple[str, str] = ("format", "pt")
) -> None:
    """Write a safetensors file; the same tensors give the same bytes.

    Args:
        path (`Path`): the file.
        tensors (*mapping* of `str` to `torch.Tensor`): by name.
        metadata (*tuple* of `str` and `str`): key and value. One key: safetensors writes several in a random order.

    Raises:
        OSError: if it cannot be written.
    """
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    try:
        save_file(contiguous, path, metadata=dict([metadata]))
    except SafetensorError as error:  # a full disk comes as one
        raise TensorFileError(f"{path} cannot be written: {error}") from error


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """Map a safetensors file while a block reads from it.

    Yields:
        `safetensors.safe_open`: the open file.

    Raises:
        OSError: if it is missing or damaged, now or while the block reads.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise TensorFileError(str(error)) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file, mapped from it.

    Raises:
        OSError: if it is missing or damaged.
    """
    with opened_tensors(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}
