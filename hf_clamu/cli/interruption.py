"""What to say about the model that a command was about to save when an error or the user stops it."""

from __future__ import annotations

import os
from pathlib import Path

from hf_clamu.cli.output import is_saved_model

__all__ = ["error_message", "expect_result", "interruption_message", "reset"]

# Commands that resume when they are started again.
_RESUMABLE = ("train", "merge", "unmerge", "add", "update")
# Commands that write no model.
_READING = ("info", "evaluate", "predict", "verify", "plan")
# Of this run: the folder that gets the result and the identity of the one that it replaces, or the id of a repo.
_expected: list[tuple[Path | str, tuple[int, int] | None]] = []


def reset() -> None:
    """Forget what an earlier command in this process expected."""
    _expected.clear()


def expect_result(location: Path | str) -> None:
    """Note that a model is about to be saved to a folder, or pushed to a repo on the Hub."""
    _expected[:] = [(location, _identity(location) if isinstance(location, Path) else None)]


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _replaced() -> Path | None:
    """Return the folder that has the new model; its identity changed, because folders are exchanged as a whole."""
    for location, before in _expected:
        if isinstance(location, Path) and _identity(location) not in (None, before) and is_saved_model(location):
            return location
    return None


def error_message(message: str) -> str:
    """Return the message of an error, with a sentence more if the model was replaced before it."""
    folder = _replaced()
    if folder is None:
        return message
    return f"{message} The new model is in {folder} already; the same command again finishes what is left."


def interruption_message(command: str) -> str:
    """Return what is true of a command that was interrupted."""
    folder = _replaced()
    if folder is not None:
        return f"Interrupted after the new model had come to {folder}; the same command again finishes what is left."
    for repo_id in (location for location, _ in _expected if isinstance(location, str)):
        return (
            f"Interrupted while the new model was pushed to {repo_id}; it may be there. The same command again finds "
            f"out. If old commits were to be erased, repeat that, too: clamu erase {repo_id}."
        )
    if command in _RESUMABLE:
        return "Interrupted; nothing was changed. The same command again goes on from what is finished."
    if command in _READING:
        return "Interrupted; nothing was changed."
    return "Interrupted; what was done by then is done."
