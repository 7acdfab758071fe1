"""What the one worker on a model's requests is doing at the moment, and whether it lives."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hf_clamu.errors import RunInProgressError
from hf_clamu.exact import canonical_json
from hf_clamu.operations.intake.folders import make_private
from hf_clamu.operations.intake.received import now_text
from hf_clamu.storage import read_json, write_atomically
from hf_clamu.storage.locking import FileLock

__all__ = ["STAGES", "Work", "WorkLog", "is_worked_on", "read_work", "work_now", "working"]

T = TypeVar("T")

STAGES = ("retraining", "verifying", "publishing", "done")
# What loops call themselves, to engineers and to others.
_SAID = {"finetune": "training tasks, each alone", "localize": "making the masks of clusters"}
_MOST_BYTES = 1 << 22
_MOST = 1 << 53  # of a number
_SECONDS_BETWEEN_WRITES = 0.3
_SECONDS_TO_WAIT = 2.0  # for somebody who only looks whether a worker lives


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker does, or was doing when it was stopped.

    Args:
        requests (*tuple* of `str`): names of the requests that it has.
        stage (`str`): one of `STAGES`.
        started (`str`): when it began, UTC, in ISO 8601.
        what (`str`): the loop that it is in.
        num_done, num_items (`int`): how far that loop is.
        seconds (`float`): how long that loop has run.
        pid (`int`): its process.
    """

    requests: tuple[str, ...]
    stage: str
    started: str
    what: str = ""
    num_done: int = 0
    num_items: int = 0
    seconds: float = 0.0
    pid: int = field(default_factory=os.getpid)

    @property
    def text(self) -> str:
        """The loop in words of whoever answers requests."""
        return next((said for start, said in _SAID.items() if self.what.startswith(start)), self.what)

    @property
    def seconds_left(self) -> float | None:
        """How long the loop will still take if it goes on like this."""
        return self.seconds / self.num_done * (self.num_items - self.num_done) if self.num_done else None


class WorkLog:
    """Writes what a worker does to a file, for those who watch.

    It can be called like the bars on a terminal, see `Progress`.

    Args:
        folder (`Path`): of the requests.
        requests (*sequence* of `str`): names of the requests that the worker has.
    """

    def __init__(self, folder: Path, requests: Sequence[str]) -> None:
        self._path = _path(folder)
        self._requests, self._started = tuple(requests), now_text()
        self._stage = STAGES[0]
        self._written = 0.0

    def enter(self, stage: str) -> None:
        """Go on to a stage."""
        self._stage = stage
        self._write()

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Yield the items one by one, and write how far it is."""
        return self.following(items, len(items), description)

    def following(self, items: Iterable[T], num_items: int, description: str) -> Iterable[T]:
        """Yield items that another bar shows, too, and write how far it is.

        Args:
            items (*iterable*): the items.
            num_items (`int`): how many they are.
            description (`str`): of the loop.
        """
        started = time.monotonic()
        for number, item in enumerate(items):
            if number == 0 or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
                seconds = round(time.monotonic() - started, 3)
                self._write(what=description, num_done=number, num_items=num_items, seconds=seconds)
            yield item

    def _write(self, **values: Any) -> None:
        self._written = time.monotonic()
        # Of no value for the requests themselves: a full disk must not stop them here.
        with contextlib.suppress(OSError):
            work = Work(requests=self._requests, started=self._started, stage=self._stage, **values)
            write_atomically(self._path, canonical_json({**asdict(work), "requests": list(work.requests)}))


@contextlib.contextmanager
def working(folder: Path) -> Iterator[None]:
    """Be the worker on the requests of a model while a block runs.

    Args:
        folder (`Path`): of the requests.

    Raises:
        RunInProgressError: if there is one.
    """
    make_private(folder)
    lock, until = FileLock(folder / "worker.lock"), time.monotonic() + _SECONDS_TO_WAIT
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.held())
                break
            except RunInProgressError:
                if time.monotonic() > until:
                    raise RunInProgressError(
                        f"A worker takes the requests in {folder} already. Wait for it, or stop it."
                    ) from None
                time.sleep(0.05)
        yield


def is_worked_on(folder: Path) -> bool:
    """Whether a worker lives that takes the requests of a model.

    Args:
        folder (`Path`): of the requests.
    """
    if not (folder / "worker.lock").exists():  # its holder removes it
        return False
    try:
        with FileLock(folder / "worker.lock").held():
            return False
    except RunInProgressError:
        return True


def work_now(folder: Path) -> Work | None:
    """Return what a living worker does; `None` if none lives, or nobody knows.

    Args:
        folder (`Path`): of the requests.
    """
    return read_work(folder) if is_worked_on(folder) else None


def read_work(folder: Path) -> Work | None:
    """Return what the worker does or did last; `None` if nobody knows.

    Args:
        folder (`Path`): of the requests.
    """
    try:
        values = read_json(_path(folder), _MOST_BYTES)
        is_one = isinstance(values, dict) and values.keys() == _CHECKS.keys()
        if not is_one or not all(check(values[key]) for key, check in _CHECKS.items()):
            return None
        return Work(**{**values, "requests": tuple(values["requests"])})
    except (OSError, ValueError):
        return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST


# The file may have come with a model, and what it says is shown.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "requests": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "stage": lambda value: _is_text(value) and value in STAGES,
    "started": _is_text,
    "what": _is_text,
    "num_done": lambda value: type(value) is int and _is_number(value),
    "num_items": lambda value: type(value) is int and _is_number(value),
    "seconds": _is_number,
    "pid": lambda value: type(value) is int and 0 < value <= _MOST,
}


def _path(folder: Path) -> Path:
    return folder / "work.json"
