"""What an audit checked, and what it found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["AuditReport", "Check"]

_VERDICTS = {True: "passed", False: "failed", None: "not shown"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was checked.

    Args:
        name (`str`): a word.
        passed (`bool`, *optional*): None if nothing here can show it.
        text (`str`): what was expected and found, or why it is not shown.
        is_needed (`bool`): whether an audit proves nothing without it.
    """

    name: str
    passed: bool | None
    text: str
    is_needed: bool = True

    @property
    def verdict(self) -> str:
        """`"passed"`, `"failed"` or `"not shown"`."""
        return _VERDICTS[self.passed]


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """All checks of an audit; true if none failed and none that is needed is missing.

    Args:
        checks (*tuple* of `Check`): in the order in which they were made.
        seconds (`float`): how long it took.
    """

    checks: tuple[Check, ...]
    seconds: float

    def __bool__(self) -> bool:
        return all(check.passed or (check.passed is None and not check.is_needed) for check in self.checks)

    @property
    def verdict(self) -> str:
        """`"proven"`, `"refuted"` or `"not proven"`."""
        if any(check.passed is False for check in self.checks):
            return "refuted"
        return "proven" if self else "not proven"

    def failures(self) -> Iterable[Check]:
        """Return the checks that failed."""
        return [check for check in self.checks if check.passed is False]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "verdict": self.verdict,
            "checks": [{"name": one.name, "verdict": one.verdict, "text": one.text} for one in self.checks],
            "seconds": self.seconds,
        }
