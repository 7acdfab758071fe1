"""Files that a browser sent: gradio keeps them in a folder of its own, and they are read from nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.operations.intake.reading import MOST_BYTES

__all__ = ["read_upload"]


def read_upload(file: Any, most_bytes: int = MOST_BYTES) -> tuple[str, bytes]:
    """Return the name and the content of a file that was sent, and remove it.

    Args:
        file: what a file component of gradio gives; it accepts paths inside its folder of uploads alone.
        most_bytes (`int`): more is refused before it is read.

    Raises:
        TaskDataError: if there is none, or it is too large.
    """
    path = Path(str(file)) if file else None
    if path is None or path.is_symlink() or not path.is_file():
        raise TaskDataError("No file came. Drop a CSV or a file of JSON lines.")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise TaskDataError(f"{path.name} has {size:,} bytes; at most {most_bytes:,} are read.")
        return path.name, path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
