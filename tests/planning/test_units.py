"""Sizes and times as people read and write them."""

from __future__ import annotations

import pytest

from hf_clamu.planning import duration_text, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GiB", 3 * 2**29), ("2kb", 2000), ("1KiB", 1024), ("0.5TB", 5 * 10**11)],
)
def test_sizes_have_units(text, size):
    assert parse_size(text, "a budget") == size


def test_what_is_printed_suits_the_number():
    assert [size_text(size) for size in (512, 3 * 2**20, 5 * 2**29)] == ["0.5 KiB", "3.0 MiB", "2.5 GiB"]
    times = (0, 0.0042, 1.26, 90, 600, 10_000, 1_000_000)
    shown = ["0 seconds", "0.0042 seconds", "1.3 seconds", "90 seconds", "10 minutes", "3 hours", "12 days"]
    assert [duration_text(seconds) for seconds in times] == shown
