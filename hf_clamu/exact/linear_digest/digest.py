"""The linear digest of task vectors and merged deltas."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_clamu.exact.linear_digest.public_key import ROWS, public_values
from hf_clamu.exact.linear_digest.transform import DEGREE, MODULUS, values_of
from hf_clamu.exact.threads import MIN_BYTES_FOR_A_THREAD, one_thread_each

__all__ = ["DIGEST_SHAPE", "add_digests", "linear_digest", "subtract_digests"]

DIGEST_SHAPE = (ROWS, DEGREE)
# Blocks that are worked on at a time: 2 MiB of int64 for the public numbers.
_BLOCKS = 128


def linear_digest(steps: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the linear digest of integers by parameter.

    The entries of a parameter, in the order of their addresses and with zeros after them, are polynomials of 1024
    coefficients. Each is multiplied with two public ones that belong to its place, and the products are added up,
    modulo the prime and `X**1024 + 1`. A digest keeps their values, which add up as well.

    Args:
        steps (*mapping* of `str` to `torch.Tensor`, int8 to int64): a task vector or a merged delta, in grid steps.
            Widths do not count; a parameter without entries, or of zeros, counts as none.

    Returns:
        `torch.Tensor` of shape `(2, 1024)`, int32: from 0 to `MODULUS - 1`.

    Example:

    ```python
    >>> a, b = {"w": torch.tensor([3, -4])}, {"w": torch.tensor([-1, 9])}
    >>> both = torch.stack([linear_digest(a), linear_digest(b)])
    >>> torch.equal(add_digests(both), linear_digest({"w": torch.tensor([2, 5])}))
    True

    ```
    """
    total = torch.zeros(DIGEST_SHAPE, dtype=torch.int64)
    # Torch's own threads cost more than they bring for matrices this small.
    with one_thread_each([MIN_BYTES_FOR_A_THREAD]) as pool:
        parts = []
        for name, n in steps.items():
            flat = n.detach().reshape(-1)
            for start in range(0, flat.numel(), _BLOCKS * DEGREE):
                part = flat[start : start + _BLOCKS * DEGREE]
                num_bytes = part.numel() * ROWS * total.element_size()
                parts.append(pool.submit(num_bytes, _part_digest, name, n.shape, part, start // DEGREE))
        for part_digest in parts:
            total += part_digest()
    return (total % MODULUS).to(torch.int32)


def _part_digest(name: str, shape: torch.Size, entries: torch.Tensor, first: int) -> torch.Tensor:
    """Return what some blocks of a parameter add to a digest, int64 below `MODULUS` times their number."""
    missing = -entries.numel() % DEGREE
    values = values_of(torch.nn.functional.pad(entries.cpu(), (0, missing)))
    public = public_values(name, shape, first, len(values))
    return (public * values % MODULUS).sum(1)


def add_digests(digests: torch.Tensor) -> torch.Tensor:
    """Return the digest of the sum of vectors.

    Args:
        digests (`torch.Tensor` of shape `(n, 2, 1024)`, int32): of each of them; there may be none.
    """
    return (digests.sum(0, dtype=torch.int64) % MODULUS).to(torch.int32)


def subtract_digests(digest: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the digest of the difference of two vectors.

    Args:
        digest, other (`torch.Tensor` of shape `(2, 1024)`, int32): of each.
    """
    return ((digest.to(torch.int64) - other.to(torch.int64)) % MODULUS).to(torch.int32)
