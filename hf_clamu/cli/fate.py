"""What became of the model that a command was about to bring to its place, for whoever stops it there."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["after_an_error", "bringing", "forget", "interrupted"]

# Commands that go on from what is finished when they are started again.
_RESUMABLE = ("train", "merge", "unmerge", "add", "update")
# Commands that change nothing that is there already.
_READING = ("info", "evaluate", "predict", "verify", "plan")
# Of this run: the folder, and which one stood there; or the id of a repo on the Hub.
_bringing: list[tuple[Path | str, tuple[int, int] | None]] = []


def forget() -> None:
    """Begin a run."""
    _bringing.clear()


def bringing(place: Path | str) -> None:
    """Say that a model is about to come to a folder, or to a repo on the Hub."""
    _bringing[:] = [(place, _identity(place) if isinstance(place, Path) else None)]


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _replaced() -> Path | None:
    """Return the folder that has the new model: it is another one than before, as it is exchanged as a whole."""
    for place, before in _bringing:
        if isinstance(place, Path) and _identity(place) not in (None, before) and (place / "ledger.json").is_file():
            return place
    return None


def after_an_error(message: str) -> str:
    """Return the message of an error, with a sentence more if the model was replaced before it."""
    folder = _replaced()
    if folder is None:
        return message
    return f"{message} The new model is in {folder} already; the same command again finishes what is left."


def interrupted(command: str) -> str:
    """Return what is true of a command that was interrupted."""
    folder = _replaced()
    if folder is not None:
        return f"Interrupted after the new model had come to {folder}; the same command again finishes what is left."
    for repo_id in (place for place, _ in _bringing if isinstance(place, str)):
        return (
            f"Interrupted while the new model was pushed to {repo_id}; it may be there. The same command again finds "
            f"out. If old commits were to be erased, repeat that, too: clamu erase {repo_id}."
        )
    if command in _RESUMABLE:
        return "Interrupted; nothing was changed. The same command again goes on from what is finished."
    if command in _READING:
        return "Interrupted; nothing was changed."
    return "Interrupted; what was done by then is done."
