"""Tensor files of a model that is being written: hashed and brought to the disk while the next ones are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hf_clamu.exact import sha256_file, sha256_files

__all__ = ["WrittenFiles"]


class WrittenFiles:
    """Digests of files that are complete.

    Both hashing and waiting for the disk let go of Python's lock, so each goes on in a thread beside what comes next.
    Leaving the block waits for what has begun.
    """

    def __init__(self) -> None:
        self._hashing = ThreadPoolExecutor(1, "clamu-hash")
        self._syncing = ThreadPoolExecutor(1, "clamu-sync")
        self._digests: dict[Path, Future[str]] = {}
        self._synced: list[Future[None]] = []

    def __enter__(self) -> WrittenFiles:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._hashing, self._syncing):
            pool.shutdown(cancel_futures=True)

    def begin(self, folder: Path) -> None:
        """Begin with the tensor files below a folder that are new there; none of them may change from now on."""
        for path in sorted(folder.rglob("*.safetensors")):
            if path not in self._digests:
                self._digests[path] = self._hashing.submit(sha256_file, path)
                self._synced.append(self._syncing.submit(_sync, path))

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Return the SHA-256 of files, of those that have begun and of others.

        Raises:
            OSError: if one cannot be read, or not be brought to the disk.
        """
        late = [path for path in paths if path not in self._digests]
        found = dict(zip(late, sha256_files(late), strict=True))
        found |= {path: digest.result() for path, digest in self._digests.items()}
        for synced in self._synced:
            synced.result()
        return [found[path] for path in paths]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
