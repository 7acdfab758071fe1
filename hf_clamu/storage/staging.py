"""Folders in which a model is written before it comes to its place, and what becomes of those of killed processes.

A stage is a hidden folder with a name of our form, a marker file and a lock that goes with its process. All three
together tell that it is ours and that no process uses it: only then is it deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.exact import canonical_json
from hf_clamu.storage.durable import partial_name, read_json, write_atomically

if sys.platform != "win32":
    import fcntl

__all__ = [
    "Stage",
    "abandoned",
    "hidden_name",
    "locked_folder",
    "new_stage",
    "remove_scratch",
    "remove_stage",
    "scratch_folder",
]

_MARKER = "clamu-stage.json"
_MODEL = "model"
_FORM = re.compile(r"\..*\.[0-9a-f]{16}\.new", re.DOTALL)
_MOST_MARKER_BYTES = 1 << 26
# Bytes; file systems that know others allow more.
_LONGEST_NAME = 255
_SCRATCH = "clamu-scratch"


@dataclass(frozen=True)
class Stage:
    """A folder that its process has locked.

    Args:
        folder (`Path`): with the marker; private.
        note (*dict*): what the marker says.
    """

    folder: Path
    note: dict[str, Any]

    @property
    def model(self) -> Path:
        """Where the files are written, with the rights that a new folder gets."""
        return self.folder / _MODEL

    def mark(self, **note: Any) -> None:
        """Keep something in the marker, for the next process if this one is killed."""
        write_atomically(self.folder / _MARKER, canonical_json({"clamu_stage": 1, **note}))


def hidden_name(name: str, ending: str) -> str:
    """Return `.NAME` and an ending; a name that would be too long is cut, and a digest tells it from others."""
    most_bytes = _LONGEST_NAME - 1 - len(ending.encode())
    encoded = os.fsencode(name)
    if len(encoded) > most_bytes:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        name = f"{encoded[: most_bytes - 17].decode('utf-8', errors='ignore')}~{digest}"
    return f".{name}{ending}"


@contextmanager
def new_stage(parent: Path, name: str) -> Iterator[Stage]:
    """Make a stage inside a folder, and remove it in the end, whatever it holds then.

    Args:
        parent (`Path`): the folder.
        name (`str`): what it is for.

    Raises:
        OSError: if it cannot be made, or what it holds cannot be removed.
    """
    while True:
        folder = parent / hidden_name(name, f".{secrets.token_hex(8)}.new")
        folder.mkdir(mode=0o700)
        lock = _lock(folder)
        if sys.platform == "win32" or (lock is not None and _is_at(folder, lock)):
            break
        if lock is not None:  # another process took it for an abandoned one before it was locked
            os.close(lock)
    stage = Stage(folder, {})
    try:
        stage.mark()
        stage.model.mkdir()
        yield stage
    finally:
        if lock is not None:
            os.close(lock)
        remove_stage(folder)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Give a private folder for a copy of a model outside its place; those of killed processes go first.

    Args:
        purpose (`str`): for its name.
    """
    remove_scratch()
    with new_stage(Path(tempfile.gettempdir()), f"{_SCRATCH}-{purpose}") as stage:
        yield stage.model


def remove_scratch() -> None:
    """Delete the copies of models that killed processes of this user left in the folder for temporary files."""
    for folder, _ in abandoned(Path(tempfile.gettempdir()), lambda name: name.startswith(f".{_SCRATCH}-")):
        with suppress(OSError):
            remove_stage(folder)


def abandoned(parent: Path, is_meant: Callable[[str], bool]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the stages in a folder whose processes are gone, each locked meanwhile, with what its marker says.

    Args:
        parent (`Path`): the folder.
        is_meant (*callable*): whether a stage of this name is looked for.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(parent))
    except OSError:
        return
    for name in names:
        folder = parent / name
        if not (_FORM.fullmatch(name) and is_meant(name) and _is_own_folder(folder)):
            continue
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            note = _note(folder)
            if note is not None:
                yield folder, note
        finally:
            os.close(lock)


def _note(folder: Path) -> dict[str, Any] | None:
    """Return what a marker says; None if the folder is not ours. One was just made if it has no whole marker yet."""
    marker = folder / _MARKER
    try:
        if {path.name for path in folder.iterdir()} <= {partial_name(_MARKER)}:
            return {}
        note = read_json(marker, _MOST_MARKER_BYTES)
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.get("clamu_stage") == 1 else None


def remove_stage(folder: Path) -> None:
    """Delete a stage, the marker last; another process may do so at the same time.

    Raises:
        OSError: if something in it cannot be deleted.
    """
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            elif path.name != _MARKER:
                path.unlink(missing_ok=True)
    (folder / _MARKER).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        folder.rmdir()


def _remove_tree(folder: Path) -> None:
    for allowed in (False, True):
        try:
            while folder.exists():
                with suppress(FileNotFoundError):
                    shutil.rmtree(folder)
            return
        except PermissionError:
            if allowed:
                raise
            # Folders that were made read-only.
            for walked, _, _ in os.walk(folder):
                Path(walked).chmod(0o700)


def _is_own_folder(folder: Path) -> bool:
    """Whether a folder itself, no link, belongs to this user."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (sys.platform == "win32" or found.st_uid == os.geteuid())


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process has locked a folder, and lock it; a folder that does not exist is not locked."""
    lock = None
    while sys.platform != "win32":
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            lock = None
            break
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network disks cannot
            break
        if _is_at(folder, lock):
            break
        os.close(lock)  # it was replaced while we waited
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until its descriptor is closed or the process ends; None if another one has locked it."""
    if sys.platform == "win32":
        return None  # what killed writers leave stays there
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
