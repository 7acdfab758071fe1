"""One run at a time on an output: a file beside it that the run locks, and deletes when it ends.

The file may be deleted while other processes wait for it: a process that locks a file checks that it is still the one
at its path, and only the holder deletes it. Its content says which command has just saved what. A run that is killed
leaves it behind, up to its last step.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_clamu.errors import RunInProgressError
from hf_clamu.exact import canonical_json, digest_json
from hf_clamu.storage.durable import parse_json, sync_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLock"]

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_MOST_BYTES = 1 << 16
# What each thread of this process holds: descriptor and how often it was taken, by process, thread and file.
_held: dict[tuple[int, int, Path], list[int]] = {}


class FileLock:
    """A lock that goes with the process, however it ends.

    Args:
        path (`Path`): of the file; its folder is made when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.parent.resolve() / path.name

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other runs out while a block runs; re-entrant within a thread.

        Yields:
            `bool`: whether this is the outermost block.

        Raises:
            RunInProgressError: if another run holds it.
        """
        key = (os.getpid(), threading.get_ident(), self.path)
        if key in _held:
            _held[key][1] += 1
            try:
                yield False
            finally:
                _held[key][1] -= 1
            return
        _held[key] = [self._acquire(), 1]
        try:
            yield True
        finally:
            descriptor, _ = _held.pop(key)
            # While it is still locked: a process that has opened it meanwhile sees that it is gone.
            self._remove(descriptor)

    def write_message(self, value: Any) -> None:
        """Keep a JSON-able value in the file, for the next run if this one is killed; the lock must be held."""
        descriptor, _ = _held[os.getpid(), threading.get_ident(), self.path]
        data = canonical_json({"value": value, "digest": digest_json(value)})
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
        sync_folder(self.path.parent)

    def read_message(self) -> Any:
        """Return what was kept by this run or one that was killed; None if nothing was. The lock must be held."""
        descriptor, _ = _held[os.getpid(), threading.get_ident(), self.path]
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            kept = parse_json(os.read(descriptor, _MOST_BYTES))
            return kept["value"] if kept["digest"] == digest_json(kept["value"]) else None
        except (ValueError, KeyError, TypeError):
            return None

    def _acquire(self) -> int:
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(f"{self.path} is no plain file: remove it.")
                _lock(descriptor)
                if _is_at(self.path, descriptor):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise RunInProgressError(
                    f"Another run works on this output at the moment ({self.path} is locked). Wait for it, stop it, "
                    "or choose another output."
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder took it away in between

    def _remove(self, descriptor: int) -> None:
        if sys.platform == "win32":  # an open file cannot be deleted there
            os.close(descriptor)
            return
        if _is_at(self.path, descriptor):
            self.path.unlink()
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a place."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
