"""Settings of the localization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_clamu.errors import RecipeError
from hf_clamu.training import MaskingArguments

__all__ = ["LocalizationArguments", "LocalizationName"]

SearchName = Literal["short", "full"]
# For editors: the built-in ones. The registry decides what is accepted.
LocalizationName = Literal["clamu", "sift", "tall", "emr", "global"] | str


@dataclass(frozen=True, kw_only=True)
class LocalizationArguments(MaskingArguments):
    """How masks are found and how strongly the merged delta is applied."""

    localization: LocalizationName = field(default="clamu", metadata={"help": "How masks are made"})
    scaling: float | str = field(
        default=4.0,
        metadata={
            "help": "The scaling coefficient alpha: a multiple of 1/T (never above 1), 'sum' for alpha = 1, or 'auto' "
            "to choose from a fixed grid by the score of the merged tasks (validation examples where there are any). "
            "The default is for clamu; the paper of sift takes 1."
        },
    )
    scaling_search: SearchName = field(
        default="short",
        metadata={
            "help": "How scaling 'auto' tries values where masks are learned: 'short' (the mask steps are divided "
            "among them, and the chosen one is learned in full), or 'full' (each in full)."
        },
    )
    # A string once the settings are made; `None` asks for the default.
    global_scaling: float | str | None = field(
        default=None,
        metadata={
            "help": "Alpha of the global model, which has no mask: 'average' for 1/T, or 0, the base model, if that "
            "scores higher where validation examples are measured; a multiple of 1/T, 'sum', 'auto' to choose from "
            "the grid and 0, or 'same' as under the masks. By default 'auto' if scaling is 'auto', and otherwise "
            "'average'; 'same' for localizations without masks."
        },
    )
    tall_lambda: float = field(
        default=0.4,
        metadata={
            "help": "TALL's lambda for tasks that come without data; with data it is chosen from 0.2 to 0.6 by score."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scaling_search not in get_args(SearchName):
            raise RecipeError(
                f"scaling_search must be one of {', '.join(get_args(SearchName))}, got {self.scaling_search!r}."
            )
        if not 0 < self.tall_lambda < float("inf"):
            raise RecipeError(f"tall_lambda must be a number above 0, got {self.tall_lambda!r}.")
        _require_scaling("scaling", self.scaling, ("sum", "auto"))
        if self.global_scaling is None:
            object.__setattr__(self, "global_scaling", "auto" if self.scaling == "auto" else "average")
        _require_scaling("global_scaling", self.global_scaling, ("average", "sum", "auto", "same"))

    @property
    def chooses_alpha(self) -> bool:
        """Whether a scaling coefficient is chosen by the scores of the tasks, which reads their data."""
        return "auto" in (self.scaling, self.global_scaling)


def _require_scaling(name: str, value: float | str | None, words: tuple[str, ...]) -> None:
    is_known = value in words if isinstance(value, str) else value is not None and 0 < value < float("inf")
    if not is_known:
        *others, last = map(repr, words)
        raise RecipeError(f"{name} must be a number above 0, {', '.join(others)} or {last}, got {value!r}.")
