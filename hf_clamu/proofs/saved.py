"""Reading saved models whose every byte counts."""

from __future__ import annotations

from pathlib import Path

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.hub.pull import download, is_repo_id, resolve_folder

__all__ = ["folder_of", "read_saved"]


def folder_of(name: str) -> Path:
    """Return the folder of a saved model.

    Args:
        name (`str`): folder, Hub id, or `ORG/NAME@REVISION` for a commit that the Hub still has.
    """
    repo_id, at, revision = name.rpartition("@")
    if at and is_repo_id(repo_id) and not Path(name).exists():
        return download(repo_id, revision=revision)[0]
    return resolve_folder(name)


def read_saved(name: str) -> Checkpoint:
    """Read a saved model, every byte of it, from a folder or the Hub; names as in `folder_of`."""
    return read_checkpoint(folder_of(name), strict=True)
