"""Files that a browser sent: gradio keeps them in a folder of its own, and they are read from nowhere else."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.operations.intake.reading import MOST_BYTES

__all__ = ["UPLOADS_VARIABLE", "read_upload", "take_no_links"]

# Names the folder, also for gradio.
UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"


def read_upload(file: Any, most_bytes: int = MOST_BYTES) -> tuple[str, bytes]:
    """Return the name and the content of a file that was sent, and remove it.

    Args:
        file: what a file component of gradio gives; a path that lies elsewhere was made up.
        most_bytes (`int`): more is refused before it is read.

    Raises:
        TaskDataError: if there is none, or it is too large.
    """
    uploads = Path(os.environ[UPLOADS_VARIABLE]).resolve()
    path = Path(str(file)).absolute() if file else None
    if path is None or not path.resolve().is_relative_to(uploads) or path.is_symlink() or not path.is_file():
        raise TaskDataError("No file came. Drop a CSV or a file of JSON lines.")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise TaskDataError(f"{path.name} has {size:,} bytes; at most {most_bytes:,} are read.")
        return path.name, path.read_bytes()
    finally:
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
