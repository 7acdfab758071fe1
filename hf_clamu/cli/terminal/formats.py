"""The formats of results, and the one that the running command was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from hf_clamu.errors import RecipeError

__all__ = ["FORMATS", "OutputFormat", "asked_for", "chosen_format", "current_format", "use_format"]

# As the Hub's own command line calls them.
OutputFormat = Literal["human", "json", "agent", "quiet"]
FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

_current: list[OutputFormat] = ["human"]


def current_format() -> OutputFormat:
    """Return the format of the command that runs in this process."""
    return _current[0]


def use_format(chosen: OutputFormat) -> None:
    """Say in which format the command answers from now on."""
    _current[:] = [chosen]


def chosen_format(as_json: bool, given: OutputFormat | None) -> OutputFormat:
    """Return what `--json` and `--format` ask for together.

    Raises:
        RecipeError: if they contradict one another.
    """
    if as_json and given not in (None, "json"):
        raise RecipeError(f"--json means --format json, and --format {given} is given, too. Give one of them.")
    return "json" if as_json else given or "human"


def asked_for(words: Sequence[str]) -> OutputFormat:
    """Return the format that a command line asks for, as far as it shows: the parser may refuse the line itself.

    Args:
        words (*sequence* of `str`): the arguments, up to `--`.
    """
    named = [word.partition("=")[2] for word in words if word.startswith("--format=")]
    named += [after for word, after in pairwise(words) if word == "--format"]
    if "--json" in words or "json" in named:
        return "json"
    return next((known for known in FORMATS if known in named), "human")
