"""How hard it is to find two integer vectors with one linear digest: an estimate, and what it rests on."""

from __future__ import annotations

import math

from hf_clamu.exact.linear_digest.public_key import ROWS
from hf_clamu.exact.linear_digest.transform import DEGREE, MODULUS

__all__ = ["security_bits"]

_DIMENSION = ROWS * DEGREE
# A lattice reduction with block size b is taken to cost 2**(0.292 b), one call of the best known sieve.
_BITS_PER_BLOCK_SIZE = 0.292
_LEAST_BLOCK_SIZE, _LARGEST_BLOCK_SIZE = 50, 2048


def security_bits(bound: int) -> float:
    """Estimate the work, as a power of two, to find two vectors within a bound that have one linear digest.

    Their difference is a solution of Module-SIS (rank 2, degree 1024, this modulus) with entries up to twice the
    bound. The attacker is given more: any solution whose Euclidean length is that of a vector of such entries. The
    shortest vector that a lattice reduction with block size `b` finds in `w` of the coordinates has the length
    `delta(b)**w * MODULUS**(2048 / w)`; the attacker takes the best `w`.

    It is an estimate by the core-SVP method, as lattice signatures are judged, not a proof. Fewer than the entries of
    the vectors count, and structure of the ring that nobody has used yet does not.

    Args:
        bound (`int`): no entry of either vector is larger, in grid steps, such as the sum of the ledger's bounds.

    Returns:
        `float`: at most 598, the largest block size that is looked at.

    Source: D. Micciancio, O. Regev, "Lattice-based cryptography" (2009), section 3; E. Alkim et al., "Post-quantum key
    exchange, a new hope" (2016), section 6 (core-SVP); Y. Chen (2013) for `delta(b)`.
    """
    if 2 * bound >= MODULUS:
        return 0.0
    low, high = _LEAST_BLOCK_SIZE, _LARGEST_BLOCK_SIZE
    if _is_enough(low, bound):
        return _BITS_PER_BLOCK_SIZE * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_enough(middle, bound) else (middle, high)
    return _BITS_PER_BLOCK_SIZE * high


def _is_enough(block_size: int, bound: int) -> bool:
    """Whether a lattice reduction finds a vector whose entries are, in the mean square, within twice the bound."""
    log_delta = _log2_root_hermite(block_size)
    # The best number of coordinates, without its square root; nearby ones give nearly the same.
    best = math.sqrt(_DIMENSION * math.log2(MODULUS) / log_delta)
    counts = (max(_DIMENSION + 1, round(best * factor)) for factor in (0.8, 0.9, 1.0, 1.1, 1.2))
    return any(
        w * log_delta + _DIMENSION / w * math.log2(MODULUS) - 0.5 * math.log2(w) <= math.log2(max(1, 2 * bound))
        for w in counts
    )


def _log2_root_hermite(block_size: int) -> float:
    b = block_size
    return math.log2((math.pi * b) ** (1 / b) * b / (2 * math.pi * math.e)) / (2 * (b - 1))
