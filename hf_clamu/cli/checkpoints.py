"""How a command line names checkpoints that were finetuned elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_clamu.checkpoint.layout import CONFIG_NAME, MASK_CONFIG_NAME
from hf_clamu.errors import TaskDataError

__all__ = ["checkpoints_of", "common_base"]


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
        return {path.name: str(path) for path in sorted(Path(word).iterdir()) if _is_checkpoint(path)}
    name = Path(word).name or Path(word).absolute().name
    return {Path(word).absolute().name if name in (".", "..") else name: word}


def _is_parent(word: str) -> bool:
    """Whether a word names a folder that holds no checkpoint but folders of them."""
    folder = Path(word)
    return folder.is_dir() and not _is_checkpoint(folder) and any(map(_is_checkpoint, folder.iterdir()))


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a whole model or an adapter."""
    return (folder / CONFIG_NAME).is_file() or (folder / MASK_CONFIG_NAME).is_file()


def common_base(checkpoints: Mapping[str, str]) -> str | None:
    """Return the base model that all checkpoints name, if they are adapters in folders here and name one.

    Args:
        checkpoints (*mapping* of `str` to `str`): folders or Hub ids, by task id.
    """
    found = set()
    for where in checkpoints.values():
        try:
            values = json.loads((Path(where) / MASK_CONFIG_NAME).read_bytes())
        except (OSError, ValueError):
            return None  # a whole model, or what reading it will say
        found.add(values.get("base_model_name_or_path") if isinstance(values, dict) else None)
    (name,) = found if len(found) == 1 else (None,)
    return name if isinstance(name, str) and name else None
