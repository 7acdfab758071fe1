"""Run work on tensors and files in parallel; scheduling never affects results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["MIN_BYTES_FOR_A_THREAD", "SizedThreadPool", "one_thread_each"]

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


@contextmanager
def one_thread_each(sizes: Iterable[int]) -> Iterator[SizedThreadPool]:
    """Give a pool for pieces of work in which torch uses one thread; as many run at a time as there are cores.

    torch's own threads meet at the end of each operation, and one that the machine keeps waiting keeps all others.

    Args:
        sizes (*iterable* of `int`): bytes of each piece. Each entry of its results must be computed by itself, so that
            threads cannot show in the bits.
    """
    num_threads = torch.get_num_threads()
    with SizedThreadPool() as pool:
        if num_threads == 1 or all(size < MIN_BYTES_FOR_A_THREAD for size in sizes):
            yield pool
            return
        torch.set_num_threads(1)  # noqa: TID251 - for a moment in which nothing is computed whose bits depend on it
        try:
            yield pool
        finally:
            torch.set_num_threads(num_threads)  # noqa: TID251
