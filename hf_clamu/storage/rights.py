"""Rights and owners of files that replace others."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hf_clamu.storage.contents import files_below, is_stage_name

__all__ = ["inherit_rights"]


def inherit_rights(new: Path, old: Path | None, is_ours: Callable[[str], bool]) -> None:
    """Give new files the rights of those that they replace; without any, those that a new file gets here."""
    probe = new.parent / "probe"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    for_files = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for_folders: int | None = None
    if old is not None:
        replaced = [old / name for name in files_below(old) if is_ours(name) and not is_stage_name(name)]
        for path in replaced:
            if path.is_file():
                for_files &= stat.S_IMODE(path.stat().st_mode)
        for_folders = stat.S_IMODE(old.stat().st_mode)
    for path in [new, *new.rglob("*")]:
        if path.is_symlink():
            continue
        before = None if old is None else old / path.relative_to(new)
        if before is not None and (before.is_dir() if path.is_dir() else before.is_file()):
            like: Path | None = before
            mode: int | None = stat.S_IMODE(before.stat().st_mode)
        else:
            like, mode = old, for_folders if path.is_dir() else for_files
        _give_owner(path, None if like is None else like.stat())
        if mode is not None:
            path.chmod(mode)


def _give_owner(path: Path, like: os.stat_result | None) -> None:
    """Give a file the owner and group of another, where this user may."""
    if like is None or sys.platform == "win32":
        return
    found = path.stat()
    if (found.st_uid, found.st_gid) != (like.st_uid, like.st_gid):
        with suppress(OSError):
            os.chown(path, like.st_uid, like.st_gid)
