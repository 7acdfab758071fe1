"""Replace a folder as a whole: readers see the old one or the new one, never a mixture that passes for a model.

On Linux the new folder is exchanged with the old one by one rename. Where that cannot be (a mount point, the working
directory, a file system or another system without that call, a parent that may not be written to), the new files are
complete in a stage inside the folder before the first of them is moved, and a marker says so: whoever comes next
finishes what a killed process began.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from hf_clamu.storage.durable import sync_folder
from hf_clamu.storage.staging import (
    Stage,
    abandoned,
    hidden_name,
    locked_folder,
    new_stage,
    remove_scratch,
    remove_stage,
)

__all__ = ["finish_replacement", "remove_abandoned", "require_replaceable", "staged_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# Of a stage inside the folder that it replaces.
_INSIDE = "clamu"


def _everything(name: str) -> bool:
    return True


@contextmanager
def staged_folder(
    target: Path, is_ours: Callable[[str], bool] = _everything, guard: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Write a folder out of sight and bring it to its place as a whole.

    If the block raises, the target is as it was and the staged files are gone. A folder that is replaced keeps its
    rights, and so do its files; what is new among them is no more public than they are.

    Args:
        target (`Path`): the folder to replace or create.
        is_ours (*callable*): whether an old file of this name goes; others stay where they are.
        guard (*callable*, *optional*): receives the staged folder just before it comes to its place, while no other
            process can bring one there. It raises if that must not be.

    Yields:
        `Path`: an empty folder.

    Raises:
        NotADirectoryError: if the target is a file.
        OSError: if something cannot be written.
    """
    # Resolved: a link to a folder stays a link, and what it points to is replaced.
    target = _resolved(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    remove_scratch()
    place, name = (target, _INSIDE) if _stays(target) else (target.parent, target.name)
    try:
        with new_stage(place, name) as stage:
            yield stage.model
            _bring(stage, target, is_ours, guard)
    except SafetensorError as error:
        # A full disk, mostly; it is not the writer's business which library noticed.
        raise OSError(f"{target} could not be written: {error}") from error


def require_replaceable(target: Path) -> None:
    """Check that a folder can be brought to a place, before hours of work and not after them.

    Raises:
        NotADirectoryError: if there is a file at its place or on the way to it.
        OSError: if nothing can be written there.
    """
    target = _resolved(target)
    place = target if target.is_dir() and _stays(target) else target.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, so {target} cannot be made. Choose another place.")
    try:
        with new_stage(place, _INSIDE if place == target else target.name):
            pass
    except OSError as error:
        raise OSError(
            f"{target} cannot be written: {place} takes no new files ({error.strerror}). Choose another place."
        ) from error


def remove_abandoned(target: Path) -> None:
    """Delete what writers that were killed left beside a folder, and finish what they began inside it.

    It may be the old model, with everything that was to be forgotten: a writer can be killed after the exchange.

    Args:
        target (`Path`): the folder that they were to replace.
    """
    target = target.resolve()
    finish_replacement(target)
    start = hidden_name(target.name, "." + "0" * 16 + ".new")[: -len("0" * 16 + ".new")]
    for folder, _ in abandoned(target.parent, lambda name: name.startswith(start)):
        with suppress(OSError):
            remove_stage(folder)


def finish_replacement(target: Path) -> None:
    """Move the rest of the files of a writer that was killed while it moved them; of one that was not so far, none.

    Args:
        target (`Path`): the folder that it replaced.

    Raises:
        OSError: if they cannot be moved.
    """
    inside = f".{_INSIDE}."
    if not target.is_dir() or not any(name.startswith(inside) for name in os.listdir(target)):
        return
    with locked_folder(target):  # one that is alive is through in a moment
        for folder, note in abandoned(target, lambda name: name.startswith(inside)):
            goes = note.get("goes")
            if isinstance(goes, list):
                _move_in(folder / "model", target, [name for name in goes if isinstance(name, str)])
            remove_stage(folder)


def _resolved(target: Path) -> Path:
    try:
        target = target.resolve()
        is_file = stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        return target
    except RuntimeError as error:  # links in a circle, before Python 3.13
        raise OSError(f"{target} is a link that leads to itself. Choose another place.") from error
    except NotADirectoryError as error:
        raise NotADirectoryError(f"{target} leads through a file. Choose another place.") from error
    except OSError as error:
        raise OSError(f"{target} cannot be written ({error.strerror}). Choose another place.") from error
    if is_file or not target.is_dir():
        raise NotADirectoryError(f"{target} is a file, expected a folder or nothing. Choose another place.")
    return target


def _stays(target: Path) -> bool:
    """Whether a folder cannot or should not be renamed: something holds on to the folder itself."""
    if not target.is_dir():
        return False
    if os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK):
        return True
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was deleted
        return False
    # Else this process, and the shell that started it, would stand in a folder that is deleted.
    return here == target or target in here.parents


def _bring(stage: Stage, target: Path, is_ours: Callable[[str], bool], guard: Callable[[Path], None] | None) -> None:
    _settle_rights(stage.model, target if target.is_dir() else None, is_ours)
    _sync(stage.model)
    while True:
        with locked_folder(target):
            if guard is not None:
                guard(stage.model)
            if not target.is_dir():
                try:
                    stage.model.rename(target)
                except OSError:
                    if not target.is_dir():
                        raise
                    continue  # another process was faster; it has a say in what comes now
            elif stage.folder.parent == target:
                _replace_inside(stage, target, is_ours)
            elif not _exchanged(stage, target, is_ours):
                with new_stage(target, _INSIDE) as inside:
                    inside.model.rmdir()
                    # Not renamed: it may look like another file system, as a mounted folder does.
                    shutil.copytree(stage.model, inside.model, symlinks=True)
                    _sync(inside.model)
                    _replace_inside(inside, target, is_ours)
        _keep_name(target)
        return


# -- exchanging ------------------------------------------------------------------------------------------------------


def _exchanged(stage: Stage, target: Path, is_ours: Callable[[str], bool]) -> bool:
    """Swap the staged folder and the target, if this system can; the stage holds the old files afterwards."""
    carried = _carry_over(target, stage.model, "", is_ours)
    if carried:
        _sync(stage.model)
    if _exchange(stage.model, target):
        return True
    for path in carried:  # in the target they are where they should be
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        else:
            path.unlink()
    return False


def _exchange(stage: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    flag = ctypes.c_uint(_RENAME_EXCHANGE)
    return bool(rename(_AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(target), flag) == 0)


def _carry_over(old: Path, new: Path, inside: str, is_ours: Callable[[str], bool]) -> list[Path]:
    """Copy files that are not ours to the folder that replaces the old one; return what was made, folders last."""
    made: list[Path] = []
    for path in sorted((old / inside).iterdir()):
        name = path.relative_to(old).as_posix()
        target = new / name
        if is_ours(name) or _is_stage(name):
            continue
        if path.is_dir() and not path.is_symlink():
            is_new = not target.exists()
            target.mkdir(exist_ok=True)
            made += _carry_over(old, new, name, is_ours)
            if is_new and any(path.iterdir()) and not any(target.iterdir()):
                target.rmdir()  # nothing of others was in there
            elif is_new:
                shutil.copystat(path, target)
                made.append(target)
        elif not target.exists() and not target.is_symlink():
            shutil.copy2(path, target, follow_symlinks=False)
            made.append(target)
    return made


# -- moving files in -------------------------------------------------------------------------------------------------


def _replace_inside(stage: Stage, target: Path, is_ours: Callable[[str], bool]) -> None:
    new = set(_files(stage.model))
    goes = [name for name in _files(target) if not _is_stage(name) and is_ours(name) and name not in new]
    # From here on there is one outcome, even if this process dies at once.
    stage.mark(goes=goes)
    _move_in(stage.model, target, goes)


def _move_in(model: Path, target: Path, goes: list[str]) -> None:
    """Move staged files to their places and delete others; what was done before is passed over."""
    for name in _files(model):
        place = target / name
        _make_folders(target, PurePosixPath(name).parent, model)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        (model / name).replace(place)
    folders = set()
    for name in goes:
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
        names[:] = [name for name in names if not _is_stage(name)]
        sync_folder(Path(walked))


def _make_folders(target: Path, inside: PurePosixPath, model: Path) -> None:
    for parent in [*reversed(inside.parents), inside]:
        place = target / parent
        if parent.name and (place.is_symlink() or not place.is_dir()):
            if place.is_symlink() or place.exists():
                place.unlink()
            place.mkdir()
            place.chmod(stat.S_IMODE((model / parent).stat().st_mode))


def _leads_out(target: Path, inside: PurePosixPath) -> bool:
    return any((target / parent).is_symlink() for parent in inside.parents if parent.name)


def _is_stage(name: str) -> bool:
    return name.startswith(f".{_INSIDE}.") and name.partition("/")[0].endswith(".new")


def _files(folder: Path) -> list[str]:
    """Return the names of files and links below a folder, without those inside linked folders."""
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


# -- rights and the disk ---------------------------------------------------------------------------------------------


def _settle_rights(new: Path, old: Path | None, is_ours: Callable[[str], bool]) -> None:
    """Give new files the rights of those that they replace; without any, those that a new file gets here."""
    probe = new.parent / "probe"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    for_files = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for_folders: int | None = None
    if old is not None:
        replaced = [old / name for name in _files(old) if is_ours(name) and not _is_stage(name)]
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
        _own(path, None if like is None else like.stat())
        if mode is not None:
            path.chmod(mode)


def _own(path: Path, like: os.stat_result | None) -> None:
    """Give a file the owner and group of another, where this user may."""
    if like is None or sys.platform == "win32":
        return
    found = path.stat()
    if (found.st_uid, found.st_gid) != (like.st_uid, like.st_gid):
        with suppress(OSError):
            os.chown(path, like.st_uid, like.st_gid)


def _keep_name(target: Path) -> None:
    """Bring to the disk which folder is at a place, before the old one is deleted."""
    sync_folder(target.parent)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for place, _, _ in os.walk(folder):
        sync_folder(Path(place))
    sync_folder(folder.parent)
