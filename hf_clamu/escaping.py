"""Control characters of users' strings (task ids, file names, completions), which no terminal and no page may get."""

from __future__ import annotations

import re

__all__ = ["escape", "escape_cell"]

# C0, DEL and C1, which move the cursor, colour and rename windows; and those that turn the order of what is read.
_ORDER = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_ORDER}]")
_UNSAFE_IN_CELL = re.compile(f"[\x00-\x1f\x7f-\x9f{_ORDER}]")


def escape(text: str) -> str:
    """Return a text whose control characters are written as `\\u001b`, as JSON has them; lines and tabs stay.

    Args:
        text (`str`): readable lines, or JSON, which means the same afterwards.
    """
    return _UNSAFE.sub(_escaped, text)


def escape_cell(text: str) -> str:
    """Return a text of one line without tabs: what `escape` does, and the ends of lines, too."""
    return _UNSAFE_IN_CELL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
