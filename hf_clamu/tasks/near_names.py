"""Ids and labels that differ, and look equal to a reader."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["hint_at_like", "names_like", "near_names"]

_ZEROS_BEFORE_NUMBER = re.compile(r"^(\D*)0+(?=\d+$)")


def near_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in white space, case, Unicode form or leading zeros alone.

    Args:
        names (*iterable* of `str`): any names.

    Returns:
        *list* of *list* of `str`: groups of at least two, each in the order of `names`.

    Example:

    ```python
    >>> near_names(["C10", "c10 ", "C11", "C010"])
    [['C10', 'c10 ', 'C010']]

    ```
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_plain(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def names_like(wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the known names that look like one of those wanted, and are none of them.

    Example:

    ```python
    >>> names_like(["c10", "C12"], ["C10", "C11", "C12"])
    ['C10']

    ```
    """
    asked = set(wanted)
    return [
        name
        for group in near_names([*sorted(asked), *known])
        if asked.intersection(group)
        for name in group
        if name not in asked
    ]


def hint_at_like(wanted: Iterable[str], known: Iterable[str]) -> str:
    """Return a sentence, with a leading space, of the known names that look like those wanted; "" if none does."""
    alike = names_like(wanted, known)
    return f" Did you mean {', '.join(map(repr, alike[:5]))}?" if alike else ""


def _plain(name: str) -> str:
    """Return what is left of a name without the differences that a reader overlooks."""
    text = unicodedata.normalize("NFKC", name).casefold()
    # Soft hyphens, zero-width spaces and the like, which no screen shows.
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return _ZEROS_BEFORE_NUMBER.sub(r"\1", " ".join(text.split()))
