"""The lock of one live model: a copy gets its own, and a forked process a free one."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["Guard"]


class Guard:
    """Lets one thread at a time select weights and use them.

    Take it with `with guard.lock:`; a thread that has it may take it again. `with` enters the lock itself, so an
    interruption cannot come between taking it and being able to release it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _GUARDS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return Guard()

    def __reduce__(self) -> tuple[type[Guard], tuple[()]]:
        return Guard, ()


_GUARDS: weakref.WeakSet[Guard] = weakref.WeakSet()


def _renew() -> None:
    # The thread that held a lock is not in the child, so it would never be released.
    for guard in _GUARDS:
        guard.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
