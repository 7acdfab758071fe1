"""Names that users write, such as keys of a recipe: an unknown one is refused with a hint at the right one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Literal

from hf_clamu.errors import RecipeError

__all__ = ["OnMismatch", "Verification", "hint_for", "nearest_name", "refuse_unknown_keys"]

# What to do if data, bits or environment differ from the ledger; `localize` is for unmerging with an archive.
OnMismatch = Literal["error", "rebuild", "localize"]
# What is done before the result of received requests is saved: build it again, audit the change, or neither.
Verification = Literal["rebuild", "audit", "none"]


def nearest_name(name: object, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known name that is most like another one.

    Args:
        name: what a user wrote.
        known (*iterable* of `str`): the known names.
        likeness (`float`): how much alike they must be, between 0 and 1.

    Returns:
        `str`, *optional*: `None` if none is alike.

    Example:

    ```python
    >>> nearest_name("num_cluster", ["seed", "num_clusters"])
    'num_clusters'

    ```
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)), None)


def hint_for(name: object, known: Collection[str], *, lists: bool = True) -> str:
    """Return a sentence with a leading space: the nearest known name, or all of them.

    Args:
        name: what a user wrote.
        known (*collection* of `str`): the known names.
        lists (`bool`): list them where none is alike; otherwise there is no hint then.
    """
    nearest = nearest_name(name, known)
    if nearest is not None:
        return f" Did you mean {nearest!r}?"
    return f" Known ones: {', '.join(known)}." if lists else ""


def refuse_unknown_keys(keys: Iterable[object], known: Iterable[str], *, where: str, noun: str = "key") -> None:
    """Refuse the first unknown key.

    Args:
        keys (*iterable*): what a user wrote.
        known (*iterable* of `str`): the known names.
        where (`str`): what the keys are in, as in "the data section".
        noun (`str`): what a key is called.

    Raises:
        RecipeError: with a hint at the right one.
    """
    names = list(known)
    for key in keys:
        if key not in names:
            raise RecipeError(f"Unknown {noun} {key!r} in {where}.{hint_for(key, names)}")
