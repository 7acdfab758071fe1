"""A lock that belongs to one live model: a copy has its own, and a forked process does not inherit a taken one."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["Guard"]


class Guard:
    """Lets one thread at a time select weights and use them.

    Take it with `with guard.lock:`; a thread that has it may take it again. The lock itself is what `with` enters, so
    that no interruption comes between taking it and being able to give it back.
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
    # The thread that had a lock is not in the child, so nobody would ever give it back.
    for guard in _GUARDS:
        guard.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
