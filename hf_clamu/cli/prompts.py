"""Questions that a command asks on a terminal."""

from __future__ import annotations

import sys

import typer

from hf_clamu.cli.output import note

__all__ = ["wants_erasure"]


def wants_erasure(chosen: bool | None, repo_id: str) -> bool:
    """Return whether the history of a repo is to be erased: as chosen, or as answered."""
    if chosen is not None:
        return chosen
    if sys.stdin.isatty():
        question = f"Old commits of {repo_id} still hold the forgotten tasks. Erase its history for good?"
        return typer.confirm(question, default=False, err=True)
    note(f"Old commits of {repo_id} still hold the forgotten tasks: clamu erase {repo_id} removes them for good.")
    return False
