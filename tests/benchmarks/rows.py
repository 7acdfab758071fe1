"""What a benchmark gives: ratios of two times that were measured in turn, in one run."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Peak", "Row", "Size", "ratios", "timed", "times"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the page.

    Args:
        what (`str`): what was timed.
        against (`str`): what it is divided by; empty if the values are no ratios.
        values (*list* of `float`): one per round.
        target (`float`, *optional*): the most (`at_least`: the least) that it should be.
        at_least (`bool`): whether more is better.
        unit (`str`): behind each number.
        note (`str`): what a reader should know.
    """

    what: str
    against: str
    values: list[float]
    target: float | None = None
    at_least: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median is within the target; None if there is none."""
        if self.target is None:
            return None
        middle = statistics.median(self.values)
        return middle >= self.target if self.at_least else middle <= self.target

    def cells(self) -> list[str]:
        """Return the line of the table."""
        middle, low, high = statistics.median(self.values), min(self.values), max(self.values)
        spread = f" ({_number(low)} to {_number(high)})" if len(self.values) > 1 else ""
        target = "–" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:g}{self.unit}"
        met = {None: "–", True: "yes", False: "**no**"}[self.is_met]
        return [self.what, self.against or "–", f"{_number(middle)}{self.unit}{spread}", target, met]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the benchmarks are.

    Args:
        gpt2 (*dict*): configuration of the large model.
        small (*dict*): configuration of the model that many tasks finetune.
        tokens (*tuple* of `int`): rows and length of a batch of the large model.
        checkpoints (`int`): merged from files.
        tasks (`int`): finetuned in a comparison with a Trainer for each.
        merged (`int`): tasks of the model that forgets one.
        adapters (`int`): loaded at once.
        many (`int`): tasks of the part "many".
        journal (`int`): tasks whose clusters are localized with a journal there.
        growth (*list* of *tuple* of `int`): numbers of tasks and clusters.
    """

    gpt2: dict[str, Any]
    small: dict[str, Any]
    tokens: tuple[int, int]
    checkpoints: int
    tasks: int
    merged: int
    adapters: int
    many: int
    journal: int
    growth: list[tuple[int, int]] = field(default_factory=list)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def times(works: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Time several things in turn, so that what else the machine does falls on all of them; one round is not counted.

    Args:
        works (*sequence* of *callable*): what is timed.
        rounds (`int`): how often.

    Returns:
        *list* of *list* of `float`: for each of them, its seconds by round.
    """
    found: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, seconds in zip(works, found, strict=True):
            taken = timed(work)
            if number:
                seconds.append(taken)
    return found


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Divide round by round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


class Peak(threading.Thread):
    """The most anonymous memory that a process had, in bytes beyond what it had at first."""

    def __init__(self, pid: int | str = "self", every: float = 0.01) -> None:
        super().__init__(daemon=True)
        self._pid, self._every = pid, every
        self._ended = threading.Event()
        self.first = self.most = self.now()
        self.start()

    def now(self) -> int:
        """Bytes of memory that no file stands behind; 0 if the process has ended."""
        try:
            lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)

    def run(self) -> None:
        while not self._ended.wait(self._every):
            self.most = max(self.most, self.now())

    def above_first(self) -> int:
        """Stop, and return the peak beyond the first."""
        self._ended.set()
        self.join()
        return self.most - self.first
