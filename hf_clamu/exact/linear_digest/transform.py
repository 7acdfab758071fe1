"""Polynomials of degree below 1024 to their values at the odd powers of a root of unity, modulo a prime.

The values are those of a number-theoretic transform: with `psi` of order 2048, `X**1024 + 1` vanishes at its odd
powers alone, and products of polynomials modulo `X**1024 + 1` are products of values.

All arithmetic is exact. Matrices are multiplied in float64 with every partial sum below 2**53, so neither the order of
additions nor the number of threads can show.
"""

from __future__ import annotations

import functools

import torch

__all__ = ["DEGREE", "MODULUS", "values_of"]

DEGREE = 1024
# The largest prime below 2**31 that is 1 modulo 2048.
MODULUS = 2147473409
# Of order 2048: 3 to the power of (MODULUS - 1) / 2048.
_PSI = 383167813
# DEGREE is its square: a transform is two products with matrices of this size.
_SIDE = 32
# Bits of the lower half of a residue: 2**16 * 2**31 * 32 is 2**52.
_HALF = 15


def values_of(coefficients: torch.Tensor) -> torch.Tensor:
    """Return the values of polynomials at the odd powers of `psi`.

    Args:
        coefficients (`torch.Tensor` of shape `(n, 1024)`, int8 to int64): lowest power first; any integers.

    Returns:
        `torch.Tensor` of shape `(n, 1024)`, int64: the value at `psi**(2 * k + 1)` in column `k`, from 0 to
        `MODULUS - 1`.
    """
    rows, twist, columns = _matrices()
    # With j = 32 a + b and k = 32 d + c, j (2 k + 1) is 32 a (2 c + 1) + b (2 c + 1) + 64 b d, modulo 2048.
    by_b = coefficients.reshape(-1, _SIDE, _SIDE).transpose(1, 2)
    inner = _product(by_b, rows) * twist % MODULUS
    values = _product(inner.transpose(1, 2), columns)
    return values.transpose(1, 2).reshape(-1, DEGREE)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return a product of matrices modulo `MODULUS`, from 0 to `MODULUS - 1`.

    Args:
        left (`torch.Tensor` of shape `(n, 32, 32)`, integer): any values.
        right (`torch.Tensor` of shape `(32, 32)`, float64): residues.
    """
    if left.dtype in (torch.int8, torch.int16):  # as most task vectors are
        return _exact(left, right) % MODULUS
    residues = left.to(torch.int64) % MODULUS
    low, high = residues & ((1 << _HALF) - 1), residues >> _HALF
    return ((_exact(high, right) % MODULUS << _HALF) + _exact(low, right)) % MODULUS


def _exact(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.to(torch.float64) @ right).to(torch.int64)


@functools.cache
def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the powers of psi by (a, c), by (b, c), and by (b, d)."""
    side = range(_SIDE)

    def table(exponent: list[list[int]]) -> torch.Tensor:
        return torch.tensor([[pow(_PSI, one, MODULUS) for one in row] for row in exponent])

    rows = table([[32 * a * (2 * c + 1) for c in side] for a in side])
    twist = table([[b * (2 * c + 1) for c in side] for b in side])
    columns = table([[64 * b * d for d in side] for b in side])
    return rows.to(torch.float64), twist, columns.to(torch.float64)
