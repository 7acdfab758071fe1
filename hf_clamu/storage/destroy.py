"""Overwriting and deleting files that must not stay, as far as a file system lets one."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["destroy_file", "destroy_folder"]

_CHUNK_BYTES = 1 << 24
# Windows has no links that a file could be opened through by mistake.
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def destroy_file(path: Path) -> None:
    """Overwrite a file with zeros and delete it; of a link the link goes. No file is fine.

    Raises:
        OSError: if it cannot be overwritten or deleted.
    """
    if path.is_symlink():
        path.unlink()
    if not path.exists():
        return
    with os.fdopen(os.open(path, os.O_RDWR | _NO_LINKS), "r+b") as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            left -= file.write(bytes(min(left, _CHUNK_BYTES)))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def destroy_folder(folder: Path) -> None:
    """Overwrite with zeros and delete everything in a folder, and the folder; of links the links. None is fine."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        for path in folder.iterdir():
            (destroy_folder if path.is_dir() else destroy_file)(path)
        folder.rmdir()
