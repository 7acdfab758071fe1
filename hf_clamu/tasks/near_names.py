"""Ids and labels that differ, and look equal to a reader."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

__all__ = ["LABELS_REMEDY", "describe_near", "hint_at_like", "ids_remedy", "names_like", "near_names", "strip_unites"]

LABELS_REMEDY = "Write one label in the data, or list all of them in label_names if they are different ones."
_SHOWN = 5  # groups of names

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


def describe_near(groups: Sequence[Sequence[str]], place: Callable[[str], object], noun: str) -> str:
    """Name groups of names that look alike, with their places.

    Args:
        groups (*sequence* of *sequence* of `str`): from `near_names`.
        place (*callable*): says where a name is.
        noun (`str`): what the names are, in the plural.

    Example:

    ```python
    >>> describe_near([["C1", "c1"]], {"C1": "line 2", "c1": "line 9"}.get, "ids")
    "'C1' (line 2) and 'c1' (line 9)"

    ```
    """
    # Each place reads the file again, so no more of them than are shown.
    shown = "; ".join(" and ".join(f"{name!r} ({place(name)})" for name in group) for group in groups[:_SHOWN])
    more = len(groups) - _SHOWN
    return shown + (f"; and {more} more {'group' if more == 1 else 'groups'} of such {noun}" if more > 0 else "")


def strip_unites(groups: Iterable[Iterable[str]]) -> bool:
    """Whether some names of a group are the same without white space at their ends."""
    return any(len({name.strip() for name in group}) < len(set(group)) for group in groups)


def ids_remedy(groups: Iterable[Iterable[str]]) -> str:
    """Say what to do about task ids that look alike.

    Args:
        groups (*iterable* of *iterable* of `str`): from `near_names`.
    """
    strip = ", or give ids: strip (--ids strip), which removes white space at the ends" if strip_unites(groups) else ""
    return (
        f"If they are one owner, write one id in the data{strip}; if they are different owners, give ids: as-is "
        "(--ids as-is)."
    )


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
