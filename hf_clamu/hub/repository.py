"""The files of a commit on the Hub, and how long to wait for an answer."""

from __future__ import annotations

from typing import Any

__all__ = ["TIMEOUT_SECONDS", "content_digest", "repo_files"]

TIMEOUT_SECONDS = 60.0


def repo_files(api: Any, repo_id: str, revision: str) -> dict[str, Any]:
    """Return the files of a commit by name, without folders."""
    found = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in found if hasattr(entry, "blob_id")}


def content_digest(entry: Any) -> str:
    """Return what tells the content of a file from any other: its SHA-256 in LFS, otherwise git's."""
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
