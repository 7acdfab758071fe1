"""Ids and labels that differ, and look equal to a reader."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable

__all__ = ["near_names", "warn_of_near_names"]

_logger = logging.getLogger(__name__)


def near_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in white space, case or Unicode form alone.

    Args:
        names (*iterable* of `str`): any names.

    Returns:
        *list* of *list* of `str`: groups of at least two.

    Example:

    ```python
    >>> near_names(["C10", "c10 ", "C11"])
    [['C10', 'c10 ']]

    ```
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(plain, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_near_names(names: Iterable[str], what: str, meaning: str) -> None:
    """Log a warning that counts near names; it names none: they are those of data owners.

    Args:
        names (*iterable* of `str`): the names.
        what (`str`): what they are names of, in the plural.
        meaning (`str`): what they stand for, in the plural.
    """
    count = sum(map(len, near_names(names)))
    if count:
        _logger.warning(
            f"{what}: {count} differ from another one in white space or case alone. They are different {meaning}. If "
            "that is not meant, make them equal in the data."
        )
