"""Run work on tensors and files in parallel; scheduling never affects results."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["MIN_BYTES_FOR_A_THREAD", "SizedThreadPool"]

T = TypeVar("T")

# Smaller pieces of work are done before a thread could start.
MIN_BYTES_FOR_A_THREAD = 1 << 20
# More threads only compete for memory bandwidth.
_MOST_THREADS = 8


class SizedThreadPool:
    """Runs large pieces of work in threads, a few at a time, and small ones at once.

    Leaving the block waits for what has begun and drops the rest.
    """

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> SizedThreadPool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def submit(self, num_bytes: int, work: Callable[..., T], *args: Any) -> Callable[[], T]:
        """Begin a piece of work.

        Args:
            num_bytes (`int`): the size of what it works on.
            work (*callable*): what to do. It must let go of Python's lock, as torch, numpy and hashlib do.
            args: for `work`.

        Returns:
            *callable*: waits for the result and returns it, or raises what `work` raised.
        """
        if num_bytes < MIN_BYTES_FOR_A_THREAD:
            result = work(*args)
            return lambda: result
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "clamu-thread")
        return self._threads.submit(work, *args).result
