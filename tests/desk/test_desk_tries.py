"""How often somebody may guess a password."""

from __future__ import annotations

import asyncio

import pytest

from hf_clamu.desk.web import tries as tries_file
from hf_clamu.desk.web.tries import Tries, address_of_visitor, with_address

HERE, THERE = "203.0.113.5", "198.51.100.7"


class Clock:
    """Time that passes when it is told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tries(clock):
    return Tries(clock)


def _guess(tries, address, user, count):
    """Guess wrong as often as one may within a time; returns how often that was."""
    num_taken = 0
    for _ in range(count):
        if not tries.seconds_to_wait(address, user):
            tries.note(address, user, is_right=False)
            num_taken += 1
    return num_taken


def test_a_thousand_guesses_in_a_row_are_five(tries, clock):
    assert _guess(tries, HERE, "anna", 1000) == 5
    assert tries.seconds_to_wait(HERE, "anna") == 1.0
    # Another address is let in, another user of this one, too, and the right password is taken after the wait.
    assert tries.seconds_to_wait(THERE, "anna") == tries.seconds_to_wait(HERE, "ben") == 0.0
    clock.seconds += 1.0
    assert tries.seconds_to_wait(HERE, "anna") == 0.0
    tries.note(HERE, "anna", is_right=True)
    assert _guess(tries, HERE, "anna", 1000) == 5


def test_waits_grow_to_a_quarter_of_an_hour_and_fade(tries, clock):
    waits = []
    for _ in range(100):
        tries.note(HERE, "anna", is_right=False)
        waits.append(tries.seconds_to_wait(HERE, "anna"))
        clock.seconds += waits[-1]
    assert waits[:6] == pytest.approx([0, 0, 0, 0, 1, 2], abs=0.1)
    assert waits[-1] == pytest.approx(900.0) == max(waits)
    assert all(tries.seconds_to_wait(THERE, user) == 0.0 for user in ("anna", "ben"))
    clock.seconds += 100 * 900.0
    assert _guess(tries, HERE, "anna", 1000) == 5


def test_many_users_from_one_address_and_many_addresses_for_one_user(tries, clock):
    assert sum(_guess(tries, HERE, f"user_{number}", 4) for number in range(100)) == 20
    assert tries.seconds_to_wait(THERE, "user_0") == 0.0
    tries.note(THERE, "anna", is_right=True)
    others = [f"192.0.2.{number}" for number in range(200)]
    assert sum(_guess(tries, other, "anna", 5) for other in others) == 100
    # Where a user came from before, they are let in whatever others do.
    assert tries.seconds_to_wait(THERE, "anna") == 0.0
    assert tries.seconds_to_wait("192.0.2.250", "anna") > 0
    # One visitor has as many of the longer addresses as they like.
    assert sum(_guess(tries, f"2001:db8::{number}", "dora", 5) for number in range(1, 50)) == 5
    assert _guess(tries, "2001:db8:0:1::1", "dora", 5) == 5
    # Where the desk listens on ::, these are visitors with the shorter ones.
    assert _guess(tries, "::ffff:203.0.113.9", "emil", 1000) == 5
    assert tries.seconds_to_wait("203.0.113.9", "emil") > 0
    assert tries.seconds_to_wait("::ffff:203.0.113.8", "emil") == 0.0


def test_what_is_remembered_is_bounded(tries, monkeypatch):
    monkeypatch.setattr(tries_file, "_MOST_REMEMBERED", 10)
    for number in range(50):
        tries.note(f"192.0.2.{number}", f"user_{number}", is_right=False)
    assert len(tries) == 10
    # Of a name without end only the beginning.
    assert _guess(tries, HERE, "x" * 100_000, 5) == 5
    assert tries.seconds_to_wait(HERE, "x" * 200) == 1.0


def test_what_is_behind_knows_the_address():
    found = []

    async def behind(scope, receive, send):
        found.append(address_of_visitor())

    for client in ((HERE, 1), None):
        asyncio.run(with_address(behind)({"client": client}, None, None))
    assert found == [HERE, ""]
    assert address_of_visitor() == ""
