"""How `verify` splits work over processes: as no build does it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hf_clamu.training.workers import split_backwards


@given(num_items=st.integers(0, 60), num_processes=st.integers(1, 9))
def test_each_item_goes_to_another_process_in_another_place_after_other_items(num_items, num_processes):
    dealt = split_backwards(num_items, num_processes)
    assert len(dealt) == num_processes
    assert sorted(item for own in dealt for item in own) == list(range(num_items))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for rank, own in enumerate(dealt):
        if num_processes > 1:
            assert not set(own) & set(range(rank, num_items, num_processes))
        for place, item in enumerate(own):
            # In a build only smaller ones come before an item in its process, whoever takes it.
            assert all(earlier > item for earlier in own[:place])
            is_middle = 2 * place + 1 == len(own)
            assert (place == item // num_processes) == is_middle
