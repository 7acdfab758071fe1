"""Which examples a training step sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

__all__ = ["chunks", "sample_batches"]

T = TypeVar("T")


def sample_batches(examples: Sequence[T], batch_size: int, steps: int, seed: int) -> Iterator[Sequence[T]]:
    """Yield one batch per step: shuffled epochs, or always all examples where they fit into one batch.

    Args:
        examples (*sequence*): in canonical order.
        batch_size (`int`): examples per step; the last batch of an epoch may be smaller.
        steps (`int`): batches to yield.
        seed (`int`): of the shuffles.

    Example:

    ```python
    >>> [len(batch) for batch in sample_batches(range(5), 2, 4, seed=0)]
    [2, 2, 1, 2]

    ```
    """
    if len(examples) <= batch_size:
        for _ in range(steps):
            yield examples
        return
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            if done == steps:
                return
            yield [examples[i] for i in order[start : start + batch_size]]
            done += 1


def chunks(examples: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield consecutive parts of at most `size` examples."""
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
