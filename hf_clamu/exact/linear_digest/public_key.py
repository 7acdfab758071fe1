"""The public numbers of the linear digest: drawn from a name, so that nobody can have chosen them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from hf_clamu.exact.linear_digest.transform import DEGREE, MODULUS

__all__ = ["ROWS", "public_values"]

# Of the digest: each is a sum over all blocks, with numbers of its own.
ROWS = 2
_DOMAIN = b"hf_clamu linear digest 1"
# Numbers of 31 bits that are drawn for a block; 1 in 209,000 is not below the modulus, and then is passed over.
_DRAWN = ROWS * DEGREE + 32


def public_values(name: str, shape: Sequence[int], first: int, count: int) -> torch.Tensor:
    """Return the numbers that the values of some blocks of a parameter are multiplied with.

    Args:
        name (`str`): of the parameter.
        shape (*sequence* of `int`): of the parameter.
        first (`int`): index of the first block of 1024 entries.
        count (`int`): blocks.

    Returns:
        `torch.Tensor` of shape `(2, count, 1024)`, int64: from 0 to `MODULUS - 1`.
    """
    header = json.dumps([name, list(shape)], ensure_ascii=True).encode("ascii")
    start = hashlib.shake_128(_DOMAIN + len(header).to_bytes(8, "little") + header)
    found = torch.empty(count, ROWS * DEGREE, dtype=torch.int64)
    for row, block in enumerate(range(first, first + count)):
        stream = start.copy()
        stream.update(block.to_bytes(8, "little"))
        drawn = torch.frombuffer(bytearray(stream.digest(4 * _DRAWN)), dtype=torch.int32) & 0x7FFFFFFF
        if int(drawn.max()) >= MODULUS:
            drawn = drawn[drawn < MODULUS]
        found[row] = drawn[: ROWS * DEGREE]
    return found.view(count, ROWS, DEGREE).transpose(0, 1)
