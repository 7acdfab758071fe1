"""What a run takes: seconds by stage, memory, and room on the disk."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Stopwatch", "collecting_rarely", "peak_memory", "size_of_files", "with_stages"]

# Objects that are made before Python looks for cycles among them.
_RARELY = 100_000


class Stopwatch:
    """Seconds by stage. A stage inside another one counts for itself alone, so stages add up to what all of them take.

    It belongs to one thread.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what a block takes, without the stages inside it, to `seconds[name]`."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the stage that is running."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let Python look for unreachable cycles less often while a block imports much.

    Importing transformers makes objects that stay: looking at them again and again takes a seventh of its time.
    """
    before = gc.get_threshold()
    gc.set_threshold(_RARELY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def with_stages(seconds: Mapping[str, float], **stages: float) -> dict[str, float]:
    """Return durations by stage with what was done around them, which is part of the total then.

    Args:
        seconds (*mapping* of `str` to `float`): durations and, if there are any, their `total`.
        stages (`float`): more of them, by name.
    """
    more = {name: seconds.get(name, 0.0) + taken for name, taken in stages.items()}
    return {**seconds, **more, "total": seconds.get("total", 0.0) + sum(stages.values())}


def peak_memory() -> int | None:
    """Return the most memory that this process has had so far, in bytes: its resident pages, mapped files included.

    Returns:
        `int`, *optional*: `None` where the system does not tell, such as Windows.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in KiB


def size_of_files(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
