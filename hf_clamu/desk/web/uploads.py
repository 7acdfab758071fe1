"""Files that a browser sent: gradio keeps them in a folder of its own, and they are read from nowhere else.

gradio can delete what it knows of. It does not know of the parts of an upload that broke off, nor of an empty file
that each event with a file leaves. So the folder is swept here, and holds no more than it may.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from hf_clamu.desk.web.guard import refuse
from hf_clamu.errors import TaskDataError
from hf_clamu.operations.intake.reading import MOST_BYTES
from hf_clamu.storage import is_plain_file

__all__ = ["UPLOADS_VARIABLE", "BoundedUploads", "private_uploads", "read_upload", "sweep", "take_no_links"]

# Names the folder, also for gradio.
UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"
_PREFIX = "clamu-desk-"
# A user's own folder may begin so, too: what is swept for a desk that was killed has this file.
_MARKER = ".uploads-of-a-clamu-desk"
_SECONDS_KEPT, _SECONDS_KEPT_EMPTY = 3600.0, 60.0
_SECONDS_BETWEEN_SWEEPS = 60.0
_MOST_BYTES_IN_ALL, _MOST_FILES = 1 << 28, 1000

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


@contextlib.contextmanager
def private_uploads() -> Iterator[None]:
    """Give gradio a folder that only this user can read, sweep it while a block runs, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (folder / _MARKER).touch(mode=0o600)
    for left in folder.parent.glob(f"{_PREFIX}*"):  # of a desk that was killed
        with contextlib.suppress(FileNotFoundError):
            status = left.lstat()
            is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == folder.lstat().st_uid
            if is_own and is_plain_file(left / _MARKER):
                sweep(left)
    before = os.environ.get(UPLOADS_VARIABLE)
    os.environ[UPLOADS_VARIABLE] = str(folder)
    end = threading.Event()

    def sweep_until_the_end() -> None:
        while not end.wait(_SECONDS_BETWEEN_SWEEPS):
            sweep(folder)

    sweeper = threading.Thread(target=sweep_until_the_end, name="clamu-desk-sweeper", daemon=True)
    sweeper.start()
    try:
        yield
    finally:
        end.set()
        sweeper.join()
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ[UPLOADS_VARIABLE]
        else:
            os.environ[UPLOADS_VARIABLE] = before


def sweep(folder: Path) -> tuple[int, int]:
    """Delete what is older than an hour, and return how many files are left and how many bytes they have.

    Args:
        folder (`Path`): of the uploads.
    """
    num_files, num_bytes, now = 0, 0, time.time()
    for place, _, names in os.walk(folder, topdown=False):
        for path in [Path(place) / name for name in names]:
            if path == folder / _MARKER:
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                status = path.lstat()
                # Of a file of the future nobody knows how old it is: the clock was set back.
                kept = _SECONDS_KEPT if status.st_size else _SECONDS_KEPT_EMPTY
                if abs(now - status.st_mtime) > kept:
                    path.unlink()
                else:
                    num_files, num_bytes = num_files + 1, num_bytes + status.st_size
        if Path(place) != folder:
            with contextlib.suppress(OSError):  # it is empty, or it stays
                if abs(now - os.lstat(place).st_mtime) > _SECONDS_KEPT_EMPTY:
                    os.rmdir(place)
    return num_files, num_bytes


class BoundedUploads:
    """Refuses uploads when their folder is full.

    Args:
        app (*callable*): what takes them, an ASGI application.
        folder (`Path`): where they are kept.
    """

    def __init__(self, app: _App, folder: Path) -> None:
        self._app, self._folder = app, folder
        self._room = 0

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Answer or hand on."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            await self._app(scope, receive, send)
            return
        num_files, num_bytes = sweep(self._folder)
        self._room = _MOST_BYTES_IN_ALL - num_bytes
        lengths = [value for key, value in scope["headers"] if key.lower() == b"content-length"]
        if num_files >= _MOST_FILES or self._room <= max([0, *map(int, lengths)]):
            await refuse(
                send, 413, "The desk holds as many files as it may. Each goes when it is read, or in an hour."
            )
            return

        async def received() -> Any:
            message = await receive()
            # Several may come at the same time, and not all say how long they are.
            self._room -= len(message.get("body", b""))
            return message if self._room >= 0 else {"type": "http.disconnect"}

        await self._app(scope, received, send)


def read_upload(file: Any, most_bytes: int = MOST_BYTES, *, keep: bool = False) -> tuple[str, bytes]:
    """Return the name and the content of a file that was sent, and remove it.

    Args:
        file: what a file component of gradio gives; a path that lies elsewhere was made up.
        most_bytes (`int`): more is refused before it is read.
        keep (`bool`): leave it there, an hour from now at most, for the page still shows it.

    Raises:
        TaskDataError: if there is none, or it is too large.
    """
    uploads = Path(os.environ[UPLOADS_VARIABLE]).resolve()
    path = Path(str(file)).absolute() if file else None
    if path is None or not path.resolve().is_relative_to(uploads) or path.is_symlink():
        raise TaskDataError("No file came. Drop a file here.")
    if not path.is_file():
        raise TaskDataError(f"{path.name} is not here any longer: a file is kept for an hour. Drop it again.")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            keep = False
            raise TaskDataError(f"{path.name} has {size:,} bytes; at most {most_bytes:,} are read.")
        if keep:
            os.utime(path)
        return path.name, path.read_bytes()
    finally:
        if not keep:
            path.unlink(missing_ok=True)


def take_no_links(component: Any) -> None:
    """Let an event name no URL where a file is meant: the server would fetch it.

    Args:
        component: of gradio.
    """
    move: Callable[[Any], Awaitable[Any]] | None = getattr(component, "async_move_resource_to_block_cache", None)
    if move is None:
        return

    async def moved(place: Any) -> Any:
        if str(place).lower().startswith(("http:", "https:")):
            raise ValueError("a file is sent, and not named by a URL")
        return await move(place)

    component.async_move_resource_to_block_cache = moved
