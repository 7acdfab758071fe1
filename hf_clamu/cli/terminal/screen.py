"""What a terminal shows that a pipe does not: colours, and tables that fit.

Text is coloured as a whole, when it is printed: what users wrote is plain text by then, and never markup or codes.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Collection, Sequence
from typing import TextIO

__all__ = ["colored", "fitted_table", "is_screen"]

_RULE = "─"
# What stands out, and how. The lines of a table's head are those above its rule.
_STYLES = (
    (re.compile(rf"^(?P<found>\S.*)\n[{_RULE} ]+$", re.M), "bold"),
    (re.compile(rf"^(?P<found>[{_RULE} ]*{_RULE}{_RULE}[{_RULE} ]*)$", re.M), "dim"),
    (re.compile(r"^(?P<found>clamu(?: \[process \d+\])?:)(?= )", re.M), "bold red"),
    (re.compile(r"^(?P<found>Warning:)", re.M), "yellow"),
    (re.compile(r"^(?:.*\. )?Next: (?P<found>.+)$", re.M), "cyan"),
    (re.compile(r"(?:: | {2})(?P<found>identical|proven)\b"), "green"),
    (re.compile(r"\b(?P<found>DIFFERENT|OTHERS|ANOTHER|OVERDUE|refuted|failed)\b"), "bold red"),
)


def is_screen(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can do more than print lines."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def colored(text: str, stream: TextIO) -> str:
    """Return a text with colours, if the stream is a terminal and nobody minds (`NO_COLOR`).

    Args:
        text (`str`): without control characters.
        stream (`TextIO`): where it is printed.
    """
    if not is_screen(stream) or os.environ.get("NO_COLOR"):
        return text
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    for pattern, style in _STYLES:
        for found in pattern.finditer(text):
            shown.stylize(style, *found.span("found"))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(shown, soft_wrap=True, end="")
    return capture.get()


def fitted_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int], stream: TextIO
) -> str | None:
    """Return a table that folds long cells, so that it is no wider than the terminal; `None` if the stream is none.

    Args:
        columns (*sequence* of `str`): names of the columns.
        rows (*sequence* of *sequences* of `str`): cells, of one line each.
        left (*collection* of `int`): columns to the left; the others stand to the right.
        stream (`TextIO`): where it is printed.
    """
    if not is_screen(stream) or "utf" not in (stream.encoding or "").lower():
        return None
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        shown.add_column(Text(name), justify="left" if number in left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size().columns, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
