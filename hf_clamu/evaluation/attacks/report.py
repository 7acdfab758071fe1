"""What the attacks on a model found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_clamu.evaluation.attacks.intervals import Estimate

__all__ = ["FALSE_POSITIVE_RATES", "Extraction", "Leakage", "LeakageReport", "Membership"]

# By their names in the report.
FALSE_POSITIVE_RATES = {"1%": 0.01, "5%": 0.05}


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """How well a score tells members from held-out rows.

    Args:
        auc (`Estimate`): area under the ROC curve; 0.5 is chance, 1 tells all apart.
        tpr (*dict* of `str` to `Estimate`): part of the members that is found where 1 % and 5 % of the held-out rows
            are taken for members, by `"1%"` and `"5%"`.
        cluster (`int`, *optional*): the cluster, where the worst one is reported.
    """

    auc: Estimate
    tpr: dict[str, Estimate]
    cluster: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """How much of its rows a language model writes by itself.

    Args:
        strength (`Estimate`): mean extraction strength of the members.
        held_out (`Estimate`): that of the held-out rows: what can be guessed.
        whole (`Estimate`): part of the members that are written in whole, given the prompt alone.
        cluster (`int`, *optional*): the cluster, where the worst one is reported.
    """

    strength: Estimate
    held_out: Estimate
    whole: Estimate
    cluster: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
    """What some weights leak.

    Args:
        membership (*dict* of `str` to `Membership`): by attack.
        extraction (`Extraction`, *optional*): of a language model, if it was asked for.
    """

    membership: dict[str, Membership] = field(default_factory=dict)
    extraction: Extraction | None = None

    def with_attack(self, name: str, found: Membership | Extraction) -> Leakage:
        """Return this with what one more attack found."""
        if isinstance(found, Extraction):
            return replace(self, extraction=found)
        return replace(self, membership={**self.membership, name: found})


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageReport:
    """What a model leaks of some tasks, beside what it was before and a build without them.

    Args:
        tasks (*tuple* of `str`): whose rows they are.
        num_members, num_held_out (`int`): rows that are told apart.
        models (*dict* of `str` to *dict* of `str` to `Leakage`): of `"before"`, `"model"` and `"rebuilt"`, by weights:
            `"served"`, what serves each task: its cluster, and of a task that is not merged the global model; and
            where there are masks `"worst"`, for each attack the cluster that it does best on, whose intervals hold for
            all clusters together (Bonferroni).
        base (`Leakage`): of the base model, which has seen no row: what the two sets of rows differ by anyway.
        pair (*dict* of `str` to `Leakage`): what both copies leak together, with a model before: `"difference"` is the
            base model plus the difference of the two deltas, which is the vector of what left; `"guidance"` is guided
            decoding, of language models.
        tasks_between (*dict* of `str` to `int`): how many tasks `"left"` and `"joined"` between the two copies.
    """

    tasks: tuple[str, ...]
    num_members: int
    num_held_out: int
    models: dict[str, dict[str, Leakage]]
    base: Leakage
    pair: dict[str, Leakage] = field(default_factory=dict)
    tasks_between: Mapping[str, int] | None = None

    @property
    def equals_rebuilt(self) -> bool | None:
        """Whether every digit of the model is that of the rebuilt one; `None` if there is none."""
        return self.models["model"] == self.models["rebuilt"] if "rebuilt" in self.models else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        values = asdict(self)
        return {**values, "tasks": list(self.tasks), "equals_rebuilt": self.equals_rebuilt}
