"""Sizes and times as people read and write them."""

from __future__ import annotations

__all__ = ["duration_text", "size_text"]


def size_text(size: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def duration_text(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 or not seconds else f"{seconds:.2g} seconds"
