"""Which preset fits: one rule over what the user wishes and what each preset takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.merging import PRESETS
from hf_clamu.planning.estimate import BuildEstimate, PresetEstimates
from hf_clamu.planning.units import duration_text, size_text

__all__ = ["LARGE_MODEL", "PREFERENCES", "Recommendation", "Wishes", "recommend"]

# So many trained weights take 5 GB and more to finetune as a whole, and a mask per task of 40 MB and more.
LARGE_MODEL = 300_000_000
# Fewer rows teach a task little by themselves.
_FEW_ROWS = 8
# Where a build takes no longer, an ordinary training that is repeated for each request is simple, and exact too.
_SHORT_BUILD_SECONDS = 600

_OF_CLUSTERS = (
    "Under clusters a request learns all masks again, from everybody's rows, so answers for others change "
    "(docs/stability.md)."
)

# Which presets come first, and why: the first that keeps to the budgets is taken.
PREFERENCES: dict[str, tuple[tuple[str, ...], str]] = {
    "known ids": (
        ("per-task", "adapters", "clusters"),
        "The task of an input is known, so each task can have a mask of its own, which serves best; a request "
        "retrains the forgotten task alone.",
    ),
    "known ids, large model": (
        ("adapters", "clusters", "per-task"),
        "The model is large, so tasks are finetuned through LoRA: less memory, and masks of the adapter alone.",
    ),
    "unknown ids": (
        ("one-model",),
        "The task of an input is unknown, and masks are chosen by task: one model answers all, less accurately.",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What a user knows and allows.

    Args:
        ids_known (`bool`): whether the task of an input is known when it is answered.
        max_storage (`int`, *optional*): bytes of the saved model.
        max_request_seconds (`float`, *optional*): of one request to forget a task, on this machine.

    Raises:
        RecipeError: if a budget is not positive.
    """

    ids_known: bool = True
    max_storage: int | None = None
    max_request_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_storage", "max_request_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RecipeError(f"{name} must be above 0, got {value!r}.")

    def excess(self, estimate: BuildEstimate) -> float:
        """Return the greatest multiple of a budget that a build takes; 1 or less keeps to all of them."""
        shares = [0.0]
        if self.max_storage is not None:
            shares.append(estimate.model_bytes / self.max_storage)
        if self.max_request_seconds is not None and estimate.seconds is not None:
            shares.append(estimate.seconds["request"] / self.max_request_seconds)
        return max(shares)

    def excess_text(self, estimate: BuildEstimate) -> str:
        """Say which budgets a build exceeds, and by what."""
        parts = []
        if self.max_storage is not None and estimate.model_bytes > self.max_storage:
            parts.append(f"its saved model takes {size_text(estimate.model_bytes)} of {size_text(self.max_storage)}")
        limit, seconds = self.max_request_seconds, estimate.seconds
        if limit is not None and seconds is not None and seconds["request"] > limit:
            parts.append(f"a request takes {duration_text(seconds['request'])} of {duration_text(limit)}")
        return " and ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """A preset and why.

    Args:
        preset (`str`): its name.
        keeps_budgets (`bool`): whether it keeps to the budgets, as far as they can be checked.
        reasons (*tuple* of `str`): why this one, why not those before it, and what else to consider.
    """

    preset: str
    keeps_budgets: bool
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with what the preset is."""
        return {**asdict(self), "reasons": list(self.reasons), "summary": PRESETS[self.preset].summary}


def recommend(wishes: Wishes, estimates: PresetEstimates) -> Recommendation:
    """Choose a preset.

    Of the order in `PREFERENCES` the first that keeps to the budgets is taken. If none does, the one that exceeds them
    least is.

    Args:
        wishes (`Wishes`): what the user knows and allows.
        estimates (`PresetEstimates`): what each preset takes.

    Raises:
        RecipeError: if no preset that would do can be used with the recipe.
    """
    presets, refused = estimates.presets, estimates.refused
    order, reason = PREFERENCES[_case(wishes, presets)]
    excess = {name: wishes.excess(presets[name]) for name in order if name in presets}
    if not excess:
        raise RecipeError(f"No preset can be used with this recipe. {refused[order[0]]}")
    fitting = [name for name in excess if excess[name] <= 1]
    chosen = fitting[0] if fitting else min(excess, key=lambda name: excess[name])
    reasons = [reason]
    for name in order[: order.index(chosen)]:
        why = (
            f"it cannot be used here: {refused[name]}" if name in refused else f"{wishes.excess_text(presets[name])}."
        )
        reasons.append(f"{name} would come before it, but {why}")
    if not fitting:
        excess_text = wishes.excess_text(presets[chosen])
        reasons.append(f"No preset keeps to the budgets; this one comes nearest: {excess_text}.")
    if chosen == "clusters":
        reasons.append(_OF_CLUSTERS)
    reasons += _considerations(wishes, presets[chosen])
    return Recommendation(preset=chosen, keeps_budgets=bool(fitting), reasons=tuple(reasons))


def _case(wishes: Wishes, presets: Mapping[str, BuildEstimate]) -> str:
    """Return the row of `PREFERENCES` that applies."""
    if not wishes.ids_known:
        return "unknown ids"
    # All weights, where the recipe has no adapter of its own.
    num_trained = max((estimate.num_trained for estimate in presets.values()), default=0)
    return "known ids, large model" if num_trained >= LARGE_MODEL else "known ids"


def _considerations(wishes: Wishes, estimate: BuildEstimate) -> list[str]:
    """Return what to think of besides the preset."""
    notes = []
    if not wishes.ids_known:
        notes.append(
            "If owners send inputs that look different, per-task or clusters can find an input's cluster by itself "
            "(--cluster auto): compare both on your own rows with clamu evaluate --serving auto."
        )
    seconds = estimate.seconds
    if wishes.max_request_seconds is not None:
        if seconds is None:
            notes.append("The time of a request is unknown, so its budget was not checked: give --tokens.")
        elif seconds["total"] - seconds["finetune"] <= wishes.max_request_seconds < seconds["request"]:
            notes.append(
                "With an archive (--archive) a request subtracts without retraining, which keeps to the budget."
            )
    if estimate.rows_per_task < _FEW_ROWS:
        notes.append(
            f"A task has {estimate.rows_per_task:.1f} rows on average, which teach little: compare the scores of "
            "base, global and own model at the end of the training."
        )
    if seconds is not None and seconds["total"] <= _SHORT_BUILD_SECONDS:
        notes.append(
            f"The build takes {duration_text(seconds['total'])} or so: one joint model, trained again for each "
            "request, may do (docs/is-it-for-me.md)."
        )
    return notes
