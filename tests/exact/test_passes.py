from __future__ import annotations

import pytest
import torch

from hf_clamu.exact import bits_dtype, entries_per_pass


def test_passes_are_long_where_starting_one_is_dear():
    assert entries_per_pass(torch.device("cpu"), 8) == 8
    on_device = entries_per_pass(torch.device("cuda"), 8)
    assert on_device > 1 << 20
    assert on_device % 64 == 0, "masks are packed in bytes and read in words"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits_have_the_width_of_the_number(dtype):
    bits = bits_dtype(dtype)
    assert not bits.is_floating_point
    assert torch.tensor([-1.5], dtype=dtype).view(bits).shape == (1,)
