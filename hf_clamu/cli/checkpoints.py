"""How a command line names checkpoints that were finetuned elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_clamu.checkpoint.layout import CONFIG_NAME
from hf_clamu.errors import TaskDataError

__all__ = ["checkpoints_of"]


def checkpoints_of(words: Sequence[str]) -> dict[str, str]:
    """Return the folders or Hub ids that words of a command line name, by task id.

    A word is ID=FOLDER, FOLDER (its name is the id), or a folder of such folders.

    Raises:
        TaskDataError: if two have the same id.
    """
    checkpoints: dict[str, str] = {}
    for word in words:
        for task_id, folder in _expanded(word).items():
            if task_id in checkpoints:
                raise TaskDataError(
                    f"Two checkpoints are to be task {task_id!r}: {checkpoints[task_id]} and {folder}. Give one "
                    "another id (ID=FOLDER)."
                )
            checkpoints[task_id] = folder
    return checkpoints


def _expanded(word: str) -> dict[str, str]:
    task_id, equals, folder = word.partition("=")
    # A path may have the sign in it.
    if equals and not Path(word).is_dir():
        if not task_id or not folder:
            raise TaskDataError(f"A checkpoint is named ID=FOLDER or FOLDER; found {word!r}.")
        return {task_id: folder}
    if _is_parent(word):
        return {path.parent.name: str(path.parent) for path in sorted(Path(word).glob("*/config.json"))}
    name = Path(word).name or Path(word).absolute().name
    return {Path(word).absolute().name if name in (".", "..") else name: word}


def _is_parent(word: str) -> bool:
    """Whether a word names a folder that holds no checkpoint but folders of them."""
    folder = Path(word)
    return folder.is_dir() and not (folder / CONFIG_NAME).exists() and any(folder.glob(f"*/{CONFIG_NAME}"))
