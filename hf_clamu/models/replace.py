"""Replace a folder as a whole: readers see the old one or the new one, never a mixture."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

if sys.platform != "win32":
    import fcntl

__all__ = ["remove_abandoned", "staged_folder"]

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
        OSError: if something cannot be written.
    """
    # Resolved: a link to a folder stays a link, and what it points to is replaced.
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file, expected a folder or nothing. Choose another place.")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    lock = _lock(stage)
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
    except SafetensorError as error:
        # A full disk, mostly; it is not the writer's business which library noticed.
        raise OSError(f"{target} could not be written: {error}") from error
    finally:
        if lock is not None:
            os.close(lock)
        _remove(stage)


def _lock(folder: Path) -> int | None:
    """Lock a folder until its descriptor is closed or the process ends; None if somebody else has locked it."""
    if sys.platform == "win32":
        return None  # what killed writers leave stays there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(target: Path) -> None:
    """Delete what writers that were killed left beside a folder: others of its kind that nobody holds a lock on.

    It may be the old model, with everything that was to be forgotten: a writer can be killed after the exchange.

    Args:
        target (`Path`): the folder that they were to replace.
    """
    target = target.resolve()
    for stage in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
        lock = _lock(stage) if stage.is_dir() and not stage.is_symlink() else None
        if lock is not None:
            shutil.rmtree(stage, ignore_errors=True)
            os.close(lock)


def _remove(folder: Path) -> None:
    while folder.exists():
        # After the exchange the folder has no lock, so somebody else may take it for abandoned and delete it, too.
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


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
