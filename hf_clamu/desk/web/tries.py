"""How often somebody may guess a password.

gradio takes several hundred guesses a second. Here each wrong one makes the next wait, twice as long as the one
before: soon from the same address for the same user, later from the same address for all users, last for the same user
from addresses that this user never came from. So one address shuts out nobody but itself, and many together cannot
guess on. What is known of wrong ones fades, and is kept in memory alone.
"""

from __future__ import annotations

import contextvars
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Tries", "address_of_visitor", "with_address"]

# How many wrong ones are free.
_FREE_OF_BOTH, _FREE_OF_ADDRESS, _FREE_OF_USER = 5, 20, 100
_LONGEST_WAIT = 900.0
_SECONDS_TO_FADE = 900.0  # of one wrong guess
_MOST_REMEMBERED, _MOST_CHARACTERS = 10_000, 100

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]
_ADDRESS = contextvars.ContextVar("address of the visitor who is answered", default="")


class Tries:
    """Counts wrong guesses.

    Args:
        clock (*callable*): gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[tuple[str, str], tuple[float, float]] = {}  # how many, and when the last was
        self._came: dict[tuple[str, str], None] = {}  # from where users logged in

    def __len__(self) -> int:
        """Return how many counts are kept."""
        return len(self._wrong)

    def seconds_to_wait(self, address: str, user: str) -> float:
        """Return how long the next guess from an address for a user has to wait; 0 if it need not."""
        return max(self._wait(key, free) for key, free in self._keys(address, user))

    def note(self, address: str, user: str, *, is_right: bool) -> None:
        """Note what a guess was."""
        place, user = _network(address), user[:_MOST_CHARACTERS]
        if is_right:
            self._wrong.pop((place, user), None)
            _remember(self._came, (place, user), None)
            return
        now = self._clock()
        for key, _ in self._keys(address, user):
            _remember(self._wrong, key, (self._count(key) + 1, now))

    def _keys(self, address: str, user: str) -> list[tuple[tuple[str, str], int]]:
        """Return what is counted, and how many wrong ones are free."""
        place, user = _network(address), user[:_MOST_CHARACTERS]
        keys = [((place, user), _FREE_OF_BOTH), ((place, ""), _FREE_OF_ADDRESS)]
        return keys if (place, user) in self._came else [*keys, (("", user), _FREE_OF_USER)]

    def _count(self, key: tuple[str, str]) -> float:
        count, last = self._wrong.get(key, (0.0, 0.0))
        return max(0.0, count - (self._clock() - last) / _SECONDS_TO_FADE)

    def _wait(self, key: tuple[str, str], free: int) -> float:
        count, last = self._wrong.get(key, (0.0, 0.0))
        if count < free - 0.5:  # it has faded a little since the first
            return 0.0
        wait = min(_LONGEST_WAIT, 2.0 ** float(min(max(count - free, 0.0), 60.0)))
        return float(max(0.0, last + wait - self._clock()))


def with_address(app: _App) -> _App:
    """Return an ASGI application that tells what is behind it which address it answers, see `address_of_visitor`.

    Args:
        app (*callable*): what is behind it.
    """

    async def answer(scope: _Scope, receive: Any, send: Any) -> None:
        token = _ADDRESS.set(str((scope.get("client") or ("",))[0]))
        try:
            await app(scope, receive, send)
        finally:
            _ADDRESS.reset(token)

    return answer


def address_of_visitor() -> str:
    """Return the address that is answered at the moment."""
    return _ADDRESS.get()


def _network(address: str) -> str:
    """Return an address, of the longer ones the network that one visitor has for themselves."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return "?"
    if known.version == 4 or known.ipv4_mapped is not None:  # a server on :: sees the shorter ones inside longer ones
        return str(known if known.version == 4 else known.ipv4_mapped)
    return str(ipaddress.ip_network((known, 64), strict=False))


def _remember(memory: dict[tuple[str, str], Any], key: tuple[str, str], value: Any) -> None:
    memory.pop(key, None)  # the last ones stay longest
    while len(memory) >= _MOST_REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = value
