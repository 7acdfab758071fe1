"""The linear digest: against its definition in plain integers, additive, and blind to width and layout."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
import torch

from hf_clamu.exact.linear_digest import (
    DEGREE,
    DIGEST_SHAPE,
    MODULUS,
    add_digests,
    linear_digest,
    security_bits,
    subtract_digests,
)
from hf_clamu.exact.linear_digest.public_key import public_values
from hf_clamu.exact.linear_digest.transform import values_of

PSI = pow(3, (MODULUS - 1) // (2 * DEGREE), MODULUS)


def _value(coefficients, k):
    """The value of a polynomial at psi**(2 k + 1), by Horner's rule on Python's integers."""
    point, value = pow(PSI, 2 * k + 1, MODULUS), 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % MODULUS
    return value


def _raw(name, shape, block):
    header = json.dumps([name, list(shape)]).encode()
    seed = b"hf_clamu linear digest 1" + len(header).to_bytes(8, "little") + header + block.to_bytes(8, "little")
    stream = hashlib.shake_128(seed).digest(4 * (2 * DEGREE + 32))
    return [int.from_bytes(stream[at : at + 4], "little") & 0x7FFFFFFF for at in range(0, len(stream), 4)]


def _drawn(name, shape, block):
    return [number for number in _raw(name, shape, block) if number < MODULUS][: 2 * DEGREE]


def _random(shape, bits, seed=0):
    draw = random.Random(seed)
    count = torch.Size(shape).numel()
    return torch.tensor([draw.randrange(-(2**bits), 2**bits) for _ in range(count)]).reshape(shape)


def test_the_modulus_is_a_prime_with_the_roots():
    assert all(MODULUS % divisor for divisor in range(2, 46342))  # to its square root
    assert (MODULUS - 1) % (2 * DEGREE) == 0
    assert pow(PSI, DEGREE, MODULUS) == MODULUS - 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_values_are_those_of_the_polynomials(dtype):
    info = torch.iinfo(dtype)
    coefficients = torch.randint(
        info.min, info.max, (3, DEGREE), generator=torch.Generator().manual_seed(0), dtype=dtype
    )
    coefficients[1] = info.min  # the largest sums that there can be
    coefficients[2] = info.max
    found = values_of(coefficients)
    for row in range(3):
        for k in (0, 1, 31, 32, 33, 511, 1023):
            assert int(found[row, k]) == _value(coefficients[row].tolist(), k)


def test_public_numbers_come_from_the_name_alone():
    found = public_values("a.weight", (3, 700), 1, 2)
    assert found.shape == (2, 2, DEGREE)
    for block in range(2):
        assert found[:, block].reshape(-1).tolist() == _drawn("a.weight", (3, 700), 1 + block)


def test_public_numbers_skip_what_is_not_below_the_modulus():
    """1 number in 209,000 is drawn again: a block with one among those that are used is looked for."""
    for block in range(2000):
        if any(number >= MODULUS for number in _raw("w", (1,), block)[: 2 * DEGREE]):
            assert public_values("w", (1,), block, 1).reshape(-1).tolist() == _drawn("w", (1,), block)
            return
    pytest.fail("no block has one")


def test_a_digest_is_the_sum_over_the_blocks():
    steps = {"b": _random((5, 300), 7), "a": _random((2,), 40)}
    found = linear_digest(steps)
    assert (found.dtype, found.shape) == (torch.int32, DIGEST_SHAPE)
    for row, k in ((0, 0), (0, 777), (1, 3), (1, 1023)):
        expected = 0
        for name, n in steps.items():
            flat = n.reshape(-1).tolist()
            for block in range(0, len(flat), DEGREE):
                public = _drawn(name, n.shape, block // DEGREE)
                expected += public[row * DEGREE + k] * _value(flat[block : block + DEGREE], k)
        assert int(found[row, k]) == expected % MODULUS


def test_known_digests():
    """Test vectors: docs/linear-digest.md shows them, and any other implementation must give them."""
    ones = linear_digest({"w": torch.ones(3, dtype=torch.int8)})
    long = linear_digest({"layer.weight": torch.arange(-1500, 1500).reshape(3, 1000)})
    assert [hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16] for one in (ones, long)] == VECTORS


VECTORS = ["d8a79d7c0ad304ef", "8a6b56441eb6bb36"]


def test_it_adds_up_and_is_removed():
    vectors = [{"w": _random((3000,), 7, seed), "v": _random((17, 3), 20, seed)} for seed in range(5)]
    digests = torch.stack([linear_digest(vector) for vector in vectors])
    total = {name: sum(vector[name] for vector in vectors) for name in ("w", "v")}
    assert torch.equal(add_digests(digests), linear_digest(total))
    rest = {name: total[name] - vectors[2][name] for name in total}
    assert torch.equal(subtract_digests(linear_digest(total), digests[2]), linear_digest(rest))
    assert torch.equal(add_digests(digests[:0]), linear_digest({"w": torch.zeros(5, dtype=torch.int8)}))


def test_width_layout_and_order_do_not_count():
    n = _random((40, 60), 6)
    expected = linear_digest({"w": n})
    for dtype in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(linear_digest({"w": n.to(dtype)}), expected)
    assert torch.equal(linear_digest({"w": n.t().contiguous().t()}), expected)
    both = {"w": n, "a": _random((3,), 6)}
    assert torch.equal(linear_digest(both), linear_digest(dict(reversed(both.items()))))


def test_threads_do_not_count():
    steps, before = {"w": _random((200, 1024), 30)}, torch.get_num_threads()
    expected = linear_digest(steps)
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(linear_digest(steps), expected)
    finally:
        torch.set_num_threads(before)


def test_names_shapes_and_places_count():
    n = _random((40, 60), 6)
    expected = linear_digest({"w": n})
    assert not torch.equal(linear_digest({"v": n}), expected)
    assert not torch.equal(linear_digest({"w": n.reshape(60, 40)}), expected)
    assert not torch.equal(linear_digest({"w": n.flip(0)}), expected)


def test_a_thousand_forgeries_are_found():
    """One step of one weight; of 20 tasks one is dropped, doubled, or exchanged for another vector."""
    draw = random.Random(0)
    vectors = [_random((2500,), 7, seed) for seed in range(20)]
    digests = torch.stack([linear_digest({"w": vector}) for vector in vectors])
    expected, total = add_digests(digests), sum(vectors)
    assert torch.equal(linear_digest({"w": total}), expected)
    for number in range(1000):
        kind, forged = number % 4, total.clone()
        task = draw.randrange(20)
        if kind == 0:
            forged[draw.randrange(2500)] += draw.choice((-1, 1))
        elif kind == 1:
            forged -= vectors[task]
        elif kind == 2:
            forged += vectors[task]
        else:
            forged += _random((2500,), 7, 1000 + number) - vectors[task]
        assert not torch.equal(linear_digest({"w": forged}), expected), (kind, number)


def test_wider_bounds_are_easier_to_forge():
    found = [security_bits(2**exponent) for exponent in (0, 8, 16, 24, 29)]
    assert found == sorted(found, reverse=True)
    assert found[-1] >= 128
    # Small enough that the modulus itself is a solution.
    assert security_bits(MODULUS // 2 + 1) == 0


def test_security_is_that_of_a_search_over_everything():
    """The same estimate with every number of coordinates tried."""
    import math

    def log_delta(b):
        return math.log2((math.pi * b) ** (1 / b) * b / (2 * math.pi * math.e)) / (2 * (b - 1))

    def exhaustive(bound):
        for b in range(50, 2049):
            lengths = (
                w * log_delta(b) + 2048 / w * math.log2(MODULUS) - math.log2(w) / 2 for w in range(2049, 40000, 64)
            )
            if min(lengths) <= math.log2(2 * bound):
                return 0.292 * b
        return 0.292 * 2048

    for exponent in (16, 29):
        assert security_bits(2**exponent) == pytest.approx(exhaustive(2**exponent), rel=0.01)
