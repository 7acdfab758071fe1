"""`encode_vector` gives what `FixedPoint.encode`, bounds and `digest_tensors` give one after the other."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clamu.errors import FixedPointOverflowError
from hf_clamu.exact import FixedPoint, TaskVector, digest_tensors, encode_vector

EDGES = [2**31 - 1, -(2**31 - 1), 2**31 - 0.5, 2**31 - 0.75, 2**31, -(2**31), -(2**31) + 0.5, 2**51, 2**52, -(2**53)]
EDGES += [2**60, -(2**60), 0.5, -0.5, 1.5, 2.5, -2.5, -0.0]


@settings(max_examples=300, deadline=None)
@given(
    bits=st.integers(0, 52),
    least_bits=st.sampled_from([8, 32]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    origin=st.sampled_from([0.125, 0.0, 1e-9, -3.7]),
    steps=st.lists(
        st.one_of(st.floats(-(2.0**33), 2.0**33), st.floats(-200.0, 200.0), st.sampled_from(EDGES)),
        min_size=1,
        max_size=20,
    ),
)
def test_narrow_steps_are_those_of_encode(bits, least_bits, dtype, origin, steps):
    codec = FixedPoint(fraction_bits=bits, least_bits=least_bits)
    theta = torch.tensor(steps, dtype=torch.float64).mul(codec.step).to(dtype)
    theta_0 = torch.full_like(theta, origin)
    outs = [torch.empty(theta.shape, dtype=kind) for kind in (torch.int8, torch.int16, torch.int32)]
    if not theta.isfinite().all():
        assert codec.encode_into(theta, theta_0, outs[0]) is None
        return
    expected = codec.encode("w", theta, theta_0)
    bound = int(expected.abs().max())
    for out in outs:
        found = codec.encode_into(theta, theta_0, out)
        assert found == (None if bound > 2**31 - 1 else bound)
        if bound <= torch.iinfo(out.dtype).max:
            assert out.tolist() == expected.tolist()
    # Rounded once, or twice where the difference is one of float32.
    first = Fraction(theta_0[0].item())
    for n, one in zip(expected.tolist(), theta.tolist(), strict=True):
        wanted = (Fraction(one) - first) * 2**bits
        assert abs(n - wanted) <= Fraction(1, 2) + abs(wanted) / 2**24


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**25, -(2.0**25)])
@pytest.mark.parametrize("place", [0, 16383, 16384, 40000])
def test_what_does_not_fit_into_int32_is_noticed(bad, place):
    theta = torch.zeros(40001)
    theta[place] = bad
    out = torch.empty(40001, dtype=torch.int8)
    assert FixedPoint().encode_into(theta, torch.zeros(40001), out) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_type_is_upcast_exactly(dtype):
    theta, theta_0 = _weights()
    narrow = {name: x.to(dtype) for name, x in theta.items()}
    whole = {name: x.float() for name, x in narrow.items()}
    for codec in (FixedPoint(), FixedPoint(fraction_bits=12), FixedPoint(least_bits=32)):
        _equal(encode_vector(codec, narrow.items(), theta_0), encode_vector(codec, whole.items(), theta_0))


def test_models_of_formats_1_and_2_take_differences_in_float64():
    # 1 + 2**-24 is no float32: the difference is rounded to 1 in it, and to 1 + 2**-24 in float64.
    theta, theta_0 = torch.tensor([1.0]), torch.tensor([-(2.0**-24)])
    now, before = (FixedPoint(fraction_bits=24, least_bits=bits) for bits in (8, 32))
    assert now.encode("w", theta, theta_0).item() == 2**24
    assert before.encode("w", theta, theta_0).item() == 2**24 + 1


def _weights(scale=1e-3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (600, 700), "a": (300_000,), "c": (), "d": (0, 3), "e": (5, 7)}
    theta_0 = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    theta = {name: x + scale * torch.randn(x.shape, generator=generator) for name, x in theta_0.items()}
    return theta, theta_0


def _one_by_one(codec, theta, theta_0):
    return TaskVector.of({name: codec.encode(name, theta[name], theta_0[name]) for name in sorted(theta)})


def _equal(one, two):
    assert one.digest == two.digest == digest_tensors(one.steps)
    assert one.bounds == two.bounds
    assert list(one.steps) == list(two.steps)
    for name, n in one.steps.items():
        assert n.dtype == two.steps[name].dtype
        assert torch.equal(n, two.steps[name])


@pytest.mark.parametrize("order", ["abcde", "edcba", "caebd"])
def test_the_order_of_the_parameters_does_not_show(order):
    theta, theta_0 = _weights()
    expected = _one_by_one(FixedPoint(), theta, theta_0)
    _equal(encode_vector(FixedPoint(), ((name, theta[name]) for name in order), theta_0), expected)


def test_buffers_are_used_again_whatever_they_held():
    buffers = {}
    codec = FixedPoint()
    for scale in (1e-3, 100.0, 1e-2):  # with 100, steps need int64
        theta, theta_0 = _weights(scale)
        _equal(encode_vector(codec, theta.items(), theta_0, buffers=buffers), _one_by_one(codec, theta, theta_0))
    first = {name: n.data_ptr() for name, n in buffers.items() if n.numel()}
    vector = encode_vector(codec, theta.items(), theta_0, buffers=buffers)
    assert {name: n.data_ptr() for name, n in vector.steps.items() if n.numel()} == first


def test_strides_do_not_show():
    theta, theta_0 = _weights()
    flipped = {name: x.t().contiguous().t() if x.dim() == 2 else x for name, x in theta.items()}
    _equal(encode_vector(FixedPoint(), flipped.items(), theta_0), _one_by_one(FixedPoint(), theta, theta_0))


def test_values_off_the_grid_name_the_parameter():
    theta, theta_0 = _weights()
    theta["e"][1, 2] = math.nan
    with pytest.raises(FixedPointOverflowError, match="'e'"):
        encode_vector(FixedPoint(), theta.items(), theta_0)


def test_errors_of_other_threads_are_raised():
    num_threads = torch.get_num_threads()
    theta = {name: torch.zeros(1 << 19) for name in "abc"}
    theta["b"][-1] = math.inf
    with pytest.raises(FixedPointOverflowError, match="'b'") as caught:
        encode_vector(FixedPoint(), theta.items(), {name: torch.zeros(1 << 19) for name in theta})
    assert caught.value.parameter == "b"
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize("bits", [14, 28])
@pytest.mark.parametrize("late", [3.0, 200.0, 40_000.0, 5e6, 3e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_grow_in_a_later_pass(bits, late, dtype):
    """What was tried for the first pass, narrow integers and float32, is given up for the later ones."""
    codec = FixedPoint(fraction_bits=bits)
    theta = torch.arange(3 * 2**18 + 5).remainder(100).mul(codec.step).to(dtype)
    theta[2**19 + 1], theta[-1] = -late * codec.step, late / 2 * codec.step
    weights, theta_0 = {"w": theta, "v": theta[:7]}, {"w": torch.zeros(theta.shape), "v": torch.zeros(7)}
    _equal(encode_vector(codec, weights.items(), theta_0), _one_by_one(codec, weights, theta_0))
    theta[-2] = math.nan
    with pytest.raises(FixedPointOverflowError, match="'w'"):
        encode_vector(codec, weights.items(), theta_0)
