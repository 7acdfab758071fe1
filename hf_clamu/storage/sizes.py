"""Sizes of files as users write them."""

from __future__ import annotations

import re

from hf_clamu.errors import RecipeError

__all__ = ["parse_size"]

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
