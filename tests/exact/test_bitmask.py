from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import check_padding, pack_mask, packed_size, unpack_mask


def random_mask(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("size", [*range(66), 65535, 65536, 65537])
def test_pack_and_unpack_undo_each_other(size):
    mask = random_mask((size,), seed=size)
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(size),) == (-(-size // 8),)
    unpacked = unpack_mask(packed, (size,))
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 6), max_size=4), seed=st.integers(0, 2**31))
def test_shapes_come_back_and_bytes_follow_row_major_order(shape, seed):
    mask = random_mask(tuple(shape), seed)
    packed = pack_mask(mask)
    assert torch.equal(unpack_mask(packed, mask.shape), mask)
    bits = [int(bit) for bit in mask.flatten().tolist()]
    by_hand = [sum(bit << k for k, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8)]
    assert packed.tolist() == by_hand


def test_strides_do_not_show():
    mask = random_mask((5, 7))
    transposed = mask.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert torch.equal(pack_mask(transposed), pack_mask(mask))


@pytest.mark.parametrize(
    ("mask", "golden"),
    [
        ([], b""),
        ([1], b"\x01"),
        ([0, 1], b"\x02"),
        ([0, 0, 0, 0, 0, 0, 0, 1], b"\x80"),
        ([0, 0, 0, 0, 0, 0, 0, 0, 1], b"\x00\x01"),
        ([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1], b"\x4d\x06"),
        ([1] * 12, b"\xff\x0f"),
    ],
)
def test_the_layout_is_fixed(mask, golden):
    packed = pack_mask(torch.tensor(mask, dtype=torch.bool))
    assert bytes(packed.tolist()) == golden


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16])
def test_packed_masks_pass_the_check_of_padding(size):
    check_padding("w", pack_mask(torch.ones(size, dtype=torch.bool)), size)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 9, 15])
def test_every_bit_behind_the_last_weight_is_refused(size):
    for spare in range(size % 8, 8):
        packed = pack_mask(torch.zeros(size, dtype=torch.bool))
        packed[-1] |= 1 << spare
        with pytest.raises(CheckpointFormatError, match=r"'layer\.weight' has bits behind"):
            check_padding("layer.weight", packed, size)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(1, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(2, 1, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, dtype=torch.bool),
    ],
)
def test_a_mask_of_the_wrong_size_or_type_is_refused(packed):
    with pytest.raises(CheckpointFormatError, match=r"'layer\.weight' must be uint8 of shape \(2,\)"):
        check_padding("layer.weight", packed, 9)
