"""One request to forget, as it is kept."""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_clamu.errors import TaskDataError

__all__ = [
    "DAYS_TO_ANSWER",
    "Outcome",
    "ReceivedRequest",
    "file_name_of",
    "is_text",
    "make_request",
    "now_text",
    "today",
]

# Article 12 (3) of the GDPR: without undue delay and within one month.
DAYS_TO_ANSWER = 30
_MOST_CHARACTERS = 1000  # of an id
_MOST_TASKS = 10_000  # of a request


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request.

    Args:
        status (`str`): `"forgotten"`, `"done already"` or `"failed"`.
        time (`str`): when, UTC, in ISO 8601.
        receipt (`str`, *optional*): name of the receipt's file.
        reason (`str`): why it failed, or what is left to do.
        is_erased (`bool`): the old commits of a Hub id were erased, too, as far as anybody but the Hub can.
    """

    status: str
    time: str
    receipt: str | None = None
    reason: str = ""
    is_erased: bool = False


@dataclass(frozen=True, kw_only=True)
class ReceivedRequest:
    """A request to forget tasks.

    Args:
        name (`str`): what it is called; its receipt has this as `id`.
        tasks (*tuple* of `str`): the tasks, as the ledger names them.
        received (`str`): the day it came, in ISO 8601.
        due (`str`): the day by which it must be answered.
        ordered (`str`, *optional*): when somebody gave it to the worker, UTC.
        outcome (`Outcome`, *optional*): what became of it.
    """

    name: str
    tasks: tuple[str, ...]
    received: str
    due: str
    ordered: str | None = None
    outcome: Outcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.outcome is None or self.outcome.status == "failed"

    @property
    def is_waiting(self) -> bool:
        """Whether the worker is to carry it out, and has not."""
        return self.ordered is not None and self.outcome is None

    @property
    def is_overdue(self) -> bool:
        """Whether it is open after the day by which it must be answered."""
        return self.is_open and self.due < today()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def from_dict(cls, values: Any) -> ReceivedRequest:
        """Return a request from what a file has.

        Raises:
            ValueError: if it is not what `to_dict` gives.
        """
        if not isinstance(values, dict) or values.keys() != {one.name for one in fields(cls)}:
            raise ValueError("other fields than a request has")
        tasks, outcome = values["tasks"], values["outcome"]
        if not isinstance(tasks, list) or not tasks or not all(isinstance(one, str) and one for one in tasks):
            raise ValueError("tasks that are no list of texts")
        if not isinstance(values["name"], str) or not isinstance(values["ordered"], (str, type(None))):
            raise ValueError("a name or an order that is no text")
        days = {key: _day(values[key], key).isoformat() for key in ("received", "due")}
        found = None if outcome is None else _outcome(outcome)
        return cls(**{**values, **days, "tasks": tuple(tasks), "outcome": found})


def _outcome(values: Mapping[str, Any]) -> Outcome:
    if not isinstance(values, dict) or values.keys() != {one.name for one in fields(Outcome)}:
        raise ValueError("an outcome of another kind")
    if values["status"] not in ("forgotten", "done already", "failed") or not isinstance(values["reason"], str):
        raise ValueError("an outcome of another kind")
    if not isinstance(values["time"], str) or not isinstance(values["receipt"], (str, type(None))):
        raise ValueError("an outcome of another kind")
    if not isinstance(values["is_erased"], bool):
        raise ValueError("an outcome of another kind")
    return Outcome(**values)


def make_request(
    name: str, tasks: tuple[str, ...], *, received: str | None = None, due: str | None = None
) -> ReceivedRequest:
    """Return a request that has just come.

    Args:
        name (`str`): what it is called.
        tasks (*tuple* of `str`): the tasks.
        received (`str`, *optional*): the day it came, in ISO 8601; today by default.
        due (`str`, *optional*): the day by which it must be answered; 30 days later by default.

    Raises:
        TaskDataError: if something of it is no day, too long, or missing.
    """
    _require_text(name, "the id of a request")
    if any(unicodedata.category(sign) == "Cc" for sign in name):
        raise TaskDataError(f"The id of a request is one line of signs that can be seen; found {name[:80]!r}.")
    if not 0 < len(tasks) <= _MOST_TASKS:
        raise TaskDataError(f"A request names 1 to {_MOST_TASKS:,} tasks; {name!r} names {len(tasks):,}.")
    for task_id in tasks:
        _require_text(task_id, "the id of a task")
    try:
        came = _day(received or today(), "received")
        until = _day(due, "due") if due else came + datetime.timedelta(days=DAYS_TO_ANSWER)
    except ValueError as error:
        raise TaskDataError(f"Request {name!r}: {error}. Write a day as 2026-01-31.") from None
    if came.isoformat() > today():
        raise TaskDataError(
            f"Request {name!r} came on {came}, which is yet to come: today is {today()} here. Write the day it came."
        )
    if until < came:
        raise TaskDataError(f"Request {name!r} is due on {until}, before it came ({came}). Write a later day.")
    return ReceivedRequest(name=name, tasks=tasks, received=came.isoformat(), due=until.isoformat())


def _require_text(value: str, what: str) -> None:
    if not value or len(value) > _MOST_CHARACTERS or value != value.strip():
        raise TaskDataError(
            f"{what[0].upper()}{what[1:]} has 1 to {_MOST_CHARACTERS:,} characters, without space at its ends; found "
            f"{value[:80]!r}{f' … ({len(value):,} characters)' if len(value) > 80 else ''}."
        )
    if not is_text(value):
        raise TaskDataError(f"{what[0].upper()}{what[1:]} is a text of Unicode; found {value[:80]!r}.")


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold a text: words of a command line may have bytes that are none."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _day(value: Any, what: str) -> datetime.date:
    try:
        if not isinstance(value, str):
            raise ValueError
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{what!r} is no day: {str(value)[:40]!r}") from None


def file_name_of(name: str) -> str:
    """Return the name of the file of a request: a digest, for what it is called may be any text."""
    return f"{hashlib.sha256(name.encode('utf-8')).hexdigest()[:32]}.json"


def now_text() -> str:
    """Return the time, UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def today() -> str:
    """Return the day, UTC, in ISO 8601."""
    return now_text()[:10]
