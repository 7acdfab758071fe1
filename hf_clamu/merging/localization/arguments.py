"""Settings of the localization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_clamu.errors import RecipeError
from hf_clamu.training import MaskingArguments

__all__ = ["LocalizationArguments", "LocalizationName"]

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

    tall_lambda: float = field(
        default=0.4,
        metadata={
            "help": "TALL's lambda for tasks that come without data; with data it is chosen from 0.2 to 0.6 by score."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tall_lambda < float("inf"):
            raise RecipeError(f"tall_lambda must be a number above 0, got {self.tall_lambda!r}.")
        if isinstance(self.scaling, str):
            if self.scaling not in ("sum", "auto"):
                raise RecipeError(f"scaling must be a number above 0, 'sum' or 'auto', got {self.scaling!r}.")
        else:
            object.__setattr__(self, "scaling", float(self.scaling))
            if not 0 < self.scaling < float("inf"):
                raise RecipeError(f"scaling must be a number above 0, 'sum' or 'auto', got {self.scaling!r}.")
