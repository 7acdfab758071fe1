"""What sequences came to: exact, refused or failed, and which values of the space they covered."""

from __future__ import annotations

import collections
import json
from typing import TYPE_CHECKING

from tests.differential.space import AXES

if TYPE_CHECKING:
    from tests.differential.sequence import Outcome

__all__ = ["Coverage"]


class Coverage:
    """Counts outcomes."""

    def __init__(self) -> None:
        self.failed: list[int] = []
        self.num_exact = 0
        self.num_refused = 0
        self.num_comparisons = 0
        self.num_files = 0
        self.num_different = 0
        self.did: collections.Counter[str] = collections.Counter()
        self.refusals: collections.Counter[str] = collections.Counter()
        # By axis and value: how many were exact, refused and failed.
        self.values: dict[str, dict[str, list[int]]] = {axis: {} for axis in AXES}

    def add(self, outcome: Outcome) -> None:
        """Take one more sequence in."""
        compared = outcome.num_comparisons > 0
        place = 2 if outcome.failures else 0 if compared else 1
        for axis, seen in self.values.items():
            value = json.dumps(outcome.configuration[axis], ensure_ascii=False)
            seen.setdefault(value, [0, 0, 0])[place] += 1
        if outcome.failures:
            self.failed.append(outcome.seed)
        self.num_exact += place == 0
        self.num_refused += place == 1
        self.num_comparisons += outcome.num_comparisons
        self.num_files += outcome.num_files
        self.num_different += outcome.num_different
        self.did.update(outcome.did)
        self.refusals.update(outcome.refusals)

    def summary(self) -> str:
        """Return one line."""
        return (
            f"{self.num_exact} exact, {self.num_refused} refused, {len(self.failed)} failed {self.failed}; "
            f"{self.num_comparisons} folders with {self.num_files} files compared, {self.num_different} bytes differ"
        )

    def table(self) -> str:
        """Return the counts per value, of requests and checks, and of refusals by message."""
        lines = ["value: exact / refused / failed"]
        for axis, seen in self.values.items():
            lines.append(f"{axis}: " + ", ".join(f"{v} {'/'.join(map(str, n))}" for v, n in sorted(seen.items())))
        lines.append("requests and checks: " + ", ".join(f"{name} {n}" for name, n in sorted(self.did.items())))
        lines += ["refusals:", *(f"{n:5} {message}" for message, n in self.refusals.most_common())]
        return "\n".join(lines)

    @staticmethod
    def describe(outcome: Outcome) -> str:
        """Return what a sequence did, and how to repeat it."""
        refused = [f"refused: {one}" for one in outcome.refusals]
        endings = [*outcome.failures, *refused] or ["exact"]
        return "\n".join(
            (
                f"seed {outcome.seed}: python -m tests.differential --seed {outcome.seed}",
                *(f"  {step}" for step in outcome.steps),
                f"  configuration: {json.dumps(outcome.configuration, ensure_ascii=False)}"
                if outcome.failures
                else "",
                *(f"  {ending}" for ending in endings),
            )
        )
