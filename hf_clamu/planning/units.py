"""Sizes and times as people read and write them."""

from __future__ import annotations

import re

from hf_clamu.errors import RecipeError

__all__ = ["duration_text", "parse_size", "size_text"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(I?)B", flags=re.IGNORECASE)


def parse_size(text: str, name: str) -> int:
    """Return the bytes of a size such as `"500MB"` (powers of 1000) or `"1.5GiB"` (powers of 1024).

    Args:
        text (`str`): the size.
        name (`str`): what it is, for the message.

    Raises:
        RecipeError: if it is no size.

    Example:

    ```python
    >>> parse_size("1.5GiB", "--max-storage")
    1610612736

    ```
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"{name} must be a size with its unit, such as 500MB or 1.5GiB, got {text!r}.")
    number, unit, binary = match.groups()
    return round(float(number) * float(1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1))


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
