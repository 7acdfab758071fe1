"""Files of our own beside a model: private, and there as a whole or not at all.

Nothing here follows a symbolic link. A model from elsewhere may come with files beside it, and a link among them would
lead out of the folder that was named.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError

__all__ = [
    "is_plain_file",
    "move_into_place",
    "parse_json",
    "partial_name",
    "private_folder",
    "read_bounded",
    "read_json",
    "sync_folder",
    "write_atomically",
    "write_together",
]


def private_folder(folder: Path, what: str) -> None:
    """Make a folder that only its owner can read; an existing one gets these rights.

    Args:
        folder (`Path`): its parents are made with the usual rights.
        what (`str`): what it is for, for the message.

    Raises:
        RecipeError: if there is a link or a file at its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "a file"
        raise RecipeError(f"{folder} is {kind}, and {what} is a folder of its own: remove it, or name another place.")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def is_plain_file(path: Path) -> bool:
    """Whether there is a file itself, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, as a whole or not at all.

    Raises:
        OSError: if it cannot be written; then the file is as it was.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        _write_new(partial, data)
        move_into_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a folder that only their owner can read, each as a whole or not at all.

    The first comes to its place when all are on the disk, and their names are brought there once: a process that dies
    before leaves none of them, and thousands take a fraction of the time.

    Args:
        folder (`Path`): where they go.
        files (*mapping* of `str` to `bytes`): by name.

    Raises:
        OSError: if one cannot be written; then all are as they were. If one cannot be moved, the ones before it are
            at their places.
    """
    partials = {name: folder / partial_name(name) for name in files}
    try:
        for name, data in files.items():
            _write_new(partials[name], data)
        for partial in partials.values():
            _sync_file(partial)
        for name, partial in partials.items():
            partial.replace(folder / name)
        sync_folder(folder)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def partial_name(name: str) -> str:
    """Return what a file is called while it is written.

    No random name: what a killed writer leaves goes when the file is written after all.
    """
    return f".{name}.partial"


def move_into_place(written: Path, path: Path) -> None:
    """Bring a file that is complete to its place, private and as a whole, and to the disk.

    Args:
        written (`Path`): on the same file system.
        path (`Path`): its place; what is there is replaced.

    Raises:
        OSError: if it cannot be moved; then its place is as it was.
    """
    written.chmod(0o600)  # some releases of safetensors leave that to the umask
    _sync_file(written)
    written.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a power cut does not undo a rename or a deletion."""
    if sys.platform == "win32":
        return  # there, a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, most_bytes: int, *, may_link: bool = False) -> bytes:
    """Return the bytes of a file of untrusted origin, all of one moment.

    Args:
        path (`Path`): of a plain file.
        most_bytes (`int`): how many it may have.
        may_link (`bool`): it may be a link to one, because somebody named it, or a cache has it so.

    Raises:
        ValueError: if it is something else, too large, or written to meanwhile; the message follows a name and "it".
        OSError: if there is none, or it cannot be read.
    """
    found = path.stat() if may_link else path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ValueError("it is a symbolic link")
    _require_file(found)
    # What came to its place meanwhile is not followed, nor waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if may_link else getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        before = os.fstat(file.fileno())
        _require_file(before)
        if before.st_size > most_bytes:
            raise ValueError(f"it is too large: it has {before.st_size:,} bytes, and at most {most_bytes:,} are read")
        data = file.read(most_bytes + 1)
        after = os.fstat(file.fileno())
    if len(data) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ValueError("it was changed while it was read; read it once more")
    return data


def _require_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no plain file")


def read_json(path: Path, most_bytes: int, *, may_link: bool = False) -> Any:
    """Return the JSON value in a file of untrusted origin.

    Args:
        path, most_bytes, may_link: as in `read_bounded`.

    Raises:
        ValueError: as `read_bounded` and `parse_json`.
        OSError: if there is no file, or it cannot be read.
    """
    return parse_json(read_bounded(path, most_bytes, may_link=may_link))


def parse_json(data: str | bytes) -> Any:
    """Return a JSON value of untrusted origin.

    Raises:
        ValueError: if it is no JSON, nested too deeply, or has a key twice, NaN, or text that UTF-8 cannot hold; the
            message follows a name and "it", or stands in parentheses.
    """
    try:
        value = json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise error if data.strip() else ValueError("it is empty") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8, as its byte {error.start + 1:,} shows") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which UTF-8 cannot hold") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
