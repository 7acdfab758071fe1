from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clamu.errors import FixedPointOverflowError, RecipeError
from hf_clamu.exact import FixedPoint, fraction_bits_for

FRACTION_BITS = st.integers(0, 52)


@settings(max_examples=60, deadline=None)
@given(bits=FRACTION_BITS, steps=st.lists(st.integers(-(2**52), 2**52), min_size=1, max_size=20))
def test_grid_points_survive_encode_and_decode(bits, steps):
    codec = FixedPoint(fraction_bits=bits)
    n = torch.tensor(steps)
    decoded = codec.decode(n)
    assert decoded.dtype == torch.float64
    assert [Fraction(x) for x in decoded.tolist()] == [Fraction(k, 2**bits) for k in steps]
    encoded = codec.encode("w", decoded, torch.zeros_like(decoded))
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == steps


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 52), steps=st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=20))
def test_halves_round_to_even(bits, steps):
    codec = FixedPoint(fraction_bits=bits)
    # k + 1/2 steps is exact in float64 for |k| < 2**50.
    theta = torch.tensor([(k + 0.5) * codec.step for k in steps], dtype=torch.float64)
    encoded = codec.encode("w", theta, torch.zeros_like(theta)).tolist()
    assert encoded == [k if k % 2 == 0 else k + 1 for k in steps]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    pairs=st.lists(st.tuples(st.floats(-16, 16, width=16), st.floats(-16, 16, width=16)), min_size=1, max_size=20),
)
def test_the_error_is_at_most_half_a_step(bits, dtype, pairs):
    codec = FixedPoint(fraction_bits=bits)
    theta, theta_0 = torch.tensor(pairs).to(dtype).unbind(1)
    steps = codec.encode("w", theta, theta_0).tolist()
    for n, x, y in zip(steps, theta.tolist(), theta_0.tolist(), strict=True):
        moved = Fraction(x) - Fraction(y)
        before = abs(moved) / 2**24  # the difference is rounded to float32
        assert abs(Fraction(n, 2**bits) - moved) <= Fraction(1, 2 ** (bits + 1)) + before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**34, -(2.0**34), 3e38])
@pytest.mark.parametrize("position", [0, 65535, 65536, 70000])
def test_values_off_the_grid_raise_and_name_the_parameter(bad, position):
    theta = torch.zeros(70001)
    theta[position] = bad
    with pytest.raises(FixedPointOverflowError, match=r"'encoder\.weight'"):
        FixedPoint(fraction_bits=28).encode("encoder.weight", theta, torch.zeros(70001))


def test_the_limit_is_open_at_2_to_the_62():
    codec = FixedPoint(fraction_bits=28)
    below = torch.tensor([2.0**34], dtype=torch.float64)
    below = torch.nextafter(below, torch.zeros_like(below))
    assert codec.encode("w", below, torch.zeros_like(below)).item() == 2**62 - 2**9
    with pytest.raises(FixedPointOverflowError):
        codec.encode("w", torch.tensor([2.0**34]), torch.zeros(1))


def test_infinite_base_weights_raise():
    with pytest.raises(FixedPointOverflowError, match="'w'"):
        FixedPoint().encode("w", torch.tensor([float("inf")]), torch.tensor([float("inf")]))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (65536,), (65537,), (3, 50001)])
def test_encode_is_the_same_for_every_shape_stride_and_out(shape):
    generator = torch.Generator().manual_seed(1)
    theta, theta_0 = torch.randn(2, *shape, generator=generator)
    codec = FixedPoint(fraction_bits=20)
    expected = ((theta - theta_0).double() * 2.0**20).round().long()
    out = torch.full(shape, -1)
    assert codec.encode("w", theta, theta_0, out=out) is out
    assert torch.equal(out, expected)
    strided = torch.stack([theta, theta], dim=-1)[..., 0]
    assert torch.equal(codec.encode("w", strided, theta_0), expected)


def test_encode_refuses_misfitting_tensors():
    codec = FixedPoint()
    with pytest.raises(ValueError, match="theta_0 has"):
        codec.encode("w", torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match="out must be int64"):
        codec.encode("w", torch.zeros(3), torch.zeros(3), out=torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="out must be int64"):
        codec.encode("w", torch.zeros(3), torch.zeros(3), out=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="the delta has"):
        codec.apply(torch.zeros(3), torch.zeros(1, dtype=torch.int64), 1.0, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1, 65536, 65537])
def test_apply_is_float64_arithmetic_rounded_at_the_end(dtype, size):
    generator = torch.Generator().manual_seed(2)
    theta_0 = torch.randn(size, generator=generator).to(dtype)
    n = torch.randint(-(2**31), 2**31, (size,), generator=generator)
    expected = (theta_0.double() + n.double() * (0.375 * 2.0**-28)).to(dtype)
    result = FixedPoint(fraction_bits=28).apply(theta_0, n, 0.375, dtype)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


@given(st.floats(2.0**-60, 2.0**20))
def test_the_largest_movement_is_64_to_127_steps(movement):
    bits = fraction_bits_for(movement)
    assert 0 <= bits <= 52
    if 0 < bits < 52:
        assert 64 <= movement * 2.0**bits < 128
    codec, weight = FixedPoint(fraction_bits=bits), torch.tensor([movement], dtype=torch.float64)
    if movement < 2.0**7:
        error = codec.decode(codec.encode("w", weight, torch.zeros(1))) - weight
        assert float(error.abs()) <= max(movement / 128, 2.0**-53)


@pytest.mark.parametrize("bits", [-1, 53, 28.0, "28", None])
def test_fraction_bits_outside_0_to_52_are_refused(bits):
    with pytest.raises(RecipeError, match="fraction_bits"):
        FixedPoint(fraction_bits=bits)
