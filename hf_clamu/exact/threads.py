"""Work on many pieces of memory or files, on all cores; who does what cannot show in the result."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["WORTH_A_THREAD", "Beside"]

T = TypeVar("T")

# Bytes.
WORTH_A_THREAD = 1 << 20
# Beyond this, memory is what they wait for.
_MOST_THREADS = 8


class Beside:
    """Runs large pieces of work in threads, a few at a time, and small ones at once.

    Leaving the block waits for what has begun and drops the rest.
    """

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def run(self, size: int, work: Callable[..., T], *args: Any) -> Callable[[], T]:
        """Begin a piece of work.

        Args:
            size (`int`): how many bytes it is about.
            work (*callable*): what to do. It must let go of Python's lock, as torch, numpy and hashlib do.
            args: for `work`.

        Returns:
            *callable*: waits for the result and returns it, or raises what `work` raised.
        """
        if size < WORTH_A_THREAD:
            found = work(*args)
            return lambda: found
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "clamu-beside")
        return self._threads.submit(work, *args).result
