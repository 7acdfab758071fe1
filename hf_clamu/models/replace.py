"""Replace a folder as a whole: readers see the old one or the new one, never a mixture."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["staged_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Write a folder beside its place and bring it there with one rename.

    If the block raises, the target is as it was and the staged files are gone. On Linux an existing target is
    exchanged atomically; elsewhere it is moved aside first, so for a moment there is none at its place.

    Args:
        target (`Path`): the folder to replace or create.

    Yields:
        `Path`: an empty folder on the same file system.

    Raises:
        NotADirectoryError: if the target is a file.
    """
    # Resolved: a link to a folder stays a link, and what it points to is replaced.
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file, expected a folder or nothing. Choose another place.")
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        yield stage
        # mkdtemp makes private folders; a model gets the rights that mkdir would give.
        umask = os.umask(0)
        os.umask(umask)
        stage.chmod(0o777 & ~umask)
        for path in stage.rglob("*.safetensors"):
            path.chmod(0o666 & ~umask)  # safetensors makes private files, too
        _sync(stage)
        if target.exists():
            _exchange(stage, target)
        else:
            stage.rename(target)
    finally:
        if stage.exists():
            shutil.rmtree(stage)


def _exchange(stage: Path, target: Path) -> None:
    """Swap two folders; `stage` holds the old files afterwards."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        rename = getattr(libc, "renameat2", None)
        if rename is not None:
            done = rename(
                _AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_EXCHANGE)
            )
            if done == 0:
                return
    aside = stage.with_suffix(".old")
    target.rename(aside)
    try:
        stage.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(stage)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
