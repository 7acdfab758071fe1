"""Replace a folder as a whole: readers see the old one or the new one, never a mixture that passes for a model.

On Linux the new folder is exchanged with the old one by one rename. Where that cannot be (a mount point, the working
directory, a file system or another system without that call, a parent that may not be written to), the new files are
complete in a stage inside the folder before the first of them is moved, and a marker says so: the next process
finishes what a killed one began.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hf_clamu.storage.contents import STAGE_INSIDE, files_below, is_stage_name, move_files_in, sync_tree
from hf_clamu.storage.durable import sync_folder
from hf_clamu.storage.rights import inherit_rights
from hf_clamu.storage.staging import (
    Stage,
    abandoned,
    hidden_name,
    locked_folder,
    new_stage,
    remove_scratch,
    remove_stage,
)
from hf_clamu.storage.tensors import TensorFileError

__all__ = ["finish_replacement", "remove_abandoned", "require_replaceable", "staged_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


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
    parent, name = (target, STAGE_INSIDE) if _keeps_its_folder(target) else (target.parent, target.name)
    try:
        with new_stage(parent, name) as stage:
            yield stage.model
            _put_in_place(stage, target, is_ours, guard)
    except (SafetensorError, TensorFileError) as error:
        # A full disk, mostly; the caller need not know which library noticed.
        raise OSError(f"{target} could not be written: {error.__cause__ or error}") from error


def require_replaceable(target: Path) -> None:
    """Check that a folder can be brought to a place, before hours of work and not after them.

    Raises:
        NotADirectoryError: if there is a file at its place or on the way to it.
        OSError: if nothing can be written there.
    """
    target = _resolved(target)
    parent = target if target.is_dir() and _keeps_its_folder(target) else target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, so {target} cannot be made. Choose another place.")
    try:
        with new_stage(parent, STAGE_INSIDE if parent == target else target.name):
            pass
    except OSError as error:
        raise OSError(
            f"{target} cannot be written: {parent} takes no new files ({error.strerror}). Choose another place."
        ) from error


def remove_abandoned(target: Path) -> None:
    """Delete what killed writers left beside a folder, and finish what they began inside it.

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
    inside = f".{STAGE_INSIDE}."
    if not target.is_dir() or not any(name.startswith(inside) for name in os.listdir(target)):
        return
    with locked_folder(target):  # one that is alive is through in a moment
        for folder, note in abandoned(target, lambda name: name.startswith(inside)):
            goes = note.get("goes")
            if isinstance(goes, list):
                move_files_in(folder / "model", target, [name for name in goes if isinstance(name, str)])
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


def _keeps_its_folder(target: Path) -> bool:
    """Whether a folder cannot or should not be renamed: something holds on to the folder itself."""
    if not target.is_dir():
        return False
    if os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK):
        return True
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was deleted
        return False
    # Otherwise this process, and the shell that started it, would stand in a deleted folder.
    return here == target or target in here.parents


def _put_in_place(
    stage: Stage, target: Path, is_ours: Callable[[str], bool], guard: Callable[[Path], None] | None
) -> None:
    inherit_rights(stage.model, target if target.is_dir() else None, is_ours)
    sync_tree(stage.model)
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
                with new_stage(target, STAGE_INSIDE) as inside:
                    inside.model.rmdir()
                    # Not renamed: it may look like another file system, as a mounted folder does.
                    shutil.copytree(stage.model, inside.model, symlinks=True)
                    sync_tree(inside.model)
                    _replace_inside(inside, target, is_ours)
        _sync_name(target)
        return


# -- exchanging ------------------------------------------------------------------------------------------------------


def _exchanged(stage: Stage, target: Path, is_ours: Callable[[str], bool]) -> bool:
    """Swap the staged folder and the target, if this system can; the stage holds the old files afterwards."""
    carried = _carry_over(target, stage.model, "", is_ours)
    if carried:
        sync_tree(stage.model)
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
        if is_ours(name) or is_stage_name(name):
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


# -- file by file ----------------------------------------------------------------------------------------------------


def _replace_inside(stage: Stage, target: Path, is_ours: Callable[[str], bool]) -> None:
    new = set(files_below(stage.model))
    goes = [name for name in files_below(target) if not is_stage_name(name) and is_ours(name) and name not in new]
    # From here on there is one outcome, even if this process dies at once.
    stage.mark(goes=goes)
    move_files_in(stage.model, target, goes)


def _sync_name(target: Path) -> None:
    """Bring to the disk which folder is at a place, before the old one is deleted."""
    sync_folder(target.parent)
