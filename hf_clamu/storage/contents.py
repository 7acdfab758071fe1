"""The files below a folder: listing them, moving new ones in, bringing them to the disk."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

from hf_clamu.storage.durable import sync_folder

__all__ = ["STAGE_INSIDE", "files_below", "is_stage_name", "move_files_in", "sync_tree"]

# The name of a stage inside the folder that it replaces.
STAGE_INSIDE = "clamu"


def move_files_in(model: Path, target: Path, deleted: list[str]) -> None:
    """Move staged files to their places and delete old ones; what an earlier call has done is skipped."""
    for name in files_below(model):
        destination = target / name
        _make_folders(target, PurePosixPath(name).parent, model)
        if destination.is_dir() and not destination.is_symlink():
            shutil.rmtree(destination)
        (model / name).replace(destination)
    folders = set()
    for name in deleted:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or _leads_out(target, path):
            continue
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            (target / path).unlink()
        folders |= {target / parent for parent in path.parents if parent.name}
    for folder in sorted(folders, reverse=True):
        with suppress(OSError):  # of others, if something is left in it
            folder.rmdir()
    for walked, names, _ in os.walk(target):
        names[:] = [name for name in names if not is_stage_name(name)]
        sync_folder(Path(walked))


def _make_folders(target: Path, inside: PurePosixPath, model: Path) -> None:
    for parent in [*reversed(inside.parents), inside]:
        folder = target / parent
        if parent.name and (folder.is_symlink() or not folder.is_dir()):
            if folder.is_symlink() or folder.exists():
                folder.unlink()
            folder.mkdir()
            folder.chmod(stat.S_IMODE((model / parent).stat().st_mode))


def _leads_out(target: Path, inside: PurePosixPath) -> bool:
    return any((target / parent).is_symlink() for parent in inside.parents if parent.name)


def is_stage_name(name: str) -> bool:
    """Whether a name inside a folder is of a stage that replaces the folder's files one by one."""
    return name.startswith(f".{STAGE_INSIDE}.") and name.partition("/")[0].endswith(".new")


def files_below(folder: Path) -> list[str]:
    """Return the names of files and links below a folder, without those inside linked folders."""
    listed = []
    for walked, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(walked) / name).is_symlink()]
        listed += [(Path(walked) / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(listed)


def sync_tree(folder: Path) -> None:
    """Bring all files below a folder, and their names, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for walked, _, _ in os.walk(folder):
        sync_folder(Path(walked))
    sync_folder(folder.parent)
