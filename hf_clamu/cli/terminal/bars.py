"""Bars on stderr, while a command runs: how many are done, the time so far and the time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from hf_clamu.cli.terminal.formats import current_format
from hf_clamu.cli.terminal.screen import is_screen

if TYPE_CHECKING:
    from rich.progress import Progress, Task

__all__ = ["aside", "progress_bars", "seconds_left", "stop_bars"]

T = TypeVar("T")

_OFF = "HF_HUB_DISABLE_PROGRESS_BARS"  # as for the Hub's own bars
# The display of this process, while there is a bar.
_display: list[Progress] = []


def progress_bars(items: Sequence[T], description: str) -> Iterable[T]:
    """Show a bar while the items are taken one by one; a loop within a loop has its own, below.

    Args:
        items (*sequence*): what the loop goes over.
        description (`str`): what is done to them.
    """
    return _followed(items, description) if _are_wanted() else items


def _are_wanted() -> bool:
    if _display:  # which stands in for stderr meanwhile
        return True
    is_main = os.environ.get("RANK", "0") == "0"
    is_off = os.environ.get(_OFF, "").upper() in ("1", "ON", "YES", "TRUE")
    return is_main and not is_off and is_screen(sys.stderr) and current_format() in ("human", "json")


def _followed(items: Sequence[T], description: str) -> Iterator[T]:
    display = _shared()
    bar, started = display.add_task(description, total=len(items), ended=0.0), time.monotonic()
    try:
        for item in items:
            yield item
            display.update(bar, advance=1, ended=time.monotonic() - started)
    finally:
        if bar in display.task_ids:
            display.remove_task(bar)
        if not display.task_ids:
            stop_bars()


def _shared() -> Progress:
    if not _display:
        _display.append(_new())
        _display[0].start()
    return _display[0]


def _new() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Steady(Console):
        """Leaves the cursor on, so that a killed process leaves the terminal as it was."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            left = seconds_left(int(task.completed), int(task.total or 0), task.fields["ended"], elapsed)
            return Text(f"{_clock(elapsed)}, {'?' if left is None else _clock(left)} left")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Times(),
        console=Steady(file=sys.stderr),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
    )


def seconds_left(done: int, total: int, ended: float, elapsed: float) -> float | None:
    """Return the time that is left if the others take as long as those before; `None` before the first is done.

    Args:
        done, total (`int`): items.
        ended (`float`): seconds from the start to the end of the last one that is done.
        elapsed (`float`): seconds from the start till now.
    """
    return max(0.0, ended / done * (total - done) - (elapsed - ended)) if done else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


@contextmanager
def aside() -> Iterator[None]:
    """Take the bars away while a line is printed, and show them again below it."""
    if not _display:
        yield
        return
    display = _display[0]
    display.stop()
    try:
        yield
    finally:
        display.start()


def stop_bars() -> None:
    """Take the bars away for good: their loops are over, or an error has left them."""
    while _display:
        _display.pop().stop()
