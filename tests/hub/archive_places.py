"""The places on the double that an archive may be in, alike for tests: a private repository and a private bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client, ClientError
from hub_double import HubDouble

from hf_clamu.storage import Archive

__all__ = ["ArchivePlace", "BucketPlace", "RepositoryPlace", "is_bare", "vector_name", "vector_names"]


class ArchivePlace:
    """A place of an archive.

    Args:
        double (`HubDouble`): where it is.
    """

    name: str
    uri: str
    missing: str  # what is said of a place that is not there
    risk: str  # what requests would do to other files there
    reads: str  # the request that reads a vector
    writes: str  # the request that writes all of them
    upload_faults: tuple[tuple[str, int], ...]  # requests of an upload, and statuses that they fail with
    destruction_faults: tuple[tuple[str, int], ...]  # requests of a destruction, and how many go well before

    def __init__(self, double: HubDouble) -> None:
        self.double = double

    @property
    def owner(self) -> Any:
        """What the double has at this place."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The names of all such places on the double."""
        raise NotImplementedError

    @property
    def vectors(self) -> dict[str, str]:
        """Digests of the vectors by the names of their files."""
        raise NotImplementedError

    def put(self, name: str, like: str) -> None:
        """Put a file there that has the content of a vector."""
        raise NotImplementedError

    def remember(self, client: Client, name: str, folder: Path) -> Any:
        """Keep all that leads to a vector."""
        raise NotImplementedError

    def require_gone(self, client: Client, remembered: Any, home: Path) -> None:
        """Check that nothing leads to a vector any more."""
        raise NotImplementedError


class RepositoryPlace(ArchivePlace):
    """A private repository: what its history holds counts, too."""

    name = "org/private-archive"
    uri = f"hf://{name}"
    missing = "there is no such model on the Hub"
    risk = "the history of an archive is erased"
    reads, writes = "storage", "commit"
    upload_faults = (("commit", 403),)
    destruction_faults = (("commit", 0), ("squash", 0), ("lfs_delete", 0))

    @property
    def owner(self):
        return self.double.repos[self.name]

    @property
    def names(self):
        return list(self.double.repos)

    @property
    def vectors(self):
        if self.name not in self.double.repos:
            return {}
        files = self.owner.commits[self.owner.branches["main"]].files
        return {name: entry.lfs for name, entry in files.items() if name.endswith(".safetensors")}

    def put(self, name, like):
        self.double.push(self.name, {name: self.double.content(self.name, like)})

    def remember(self, client, name, folder):
        return self.vectors[name], self.owner.branches["main"]

    def require_gone(self, client, remembered, home):
        content, commit = remembered
        repo = self.owner
        assert repo.history(repo.branches["main"]) == [repo.branches["main"]] != [commit]
        assert content not in repo.lfs
        assert set(repo.lfs) == set(self.vectors.values())


class BucketPlace(ArchivePlace):
    """A private bucket, which has no history, through the real hf_xet."""

    name = "org/vectors"
    uri = f"hf://buckets/{name}"
    missing = "there is no such bucket on the Hub"
    risk = "requests delete files"
    reads, writes = "reconstruction", "bucket_batch"
    upload_faults = (("xet_token", 403), ("shard_put", 400), ("bucket_batch", 403))
    destruction_faults = (("bucket_batch", 0), ("bucket_paths", 1))  # the first one is asked to read

    @property
    def owner(self):
        return self.double.buckets[self.name]

    @property
    def names(self):
        return list(self.double.buckets)

    @property
    def vectors(self):
        return dict(self.owner.files)

    def put(self, name, like):
        self.owner.files[name] = self.owner.files[like]

    def remember(self, client, name, folder):
        client(f"globals().__setitem__('known', [*api.get_bucket_paths_info({self.name!r}, [{name!r}])])")
        content = folder / "content"
        read = f"api.download_bucket_files({self.name!r}, [(known[0], {str(content)!r})])"
        client(read)
        return read, content.read_bytes()

    def require_gone(self, client, remembered, home):
        read, vector = remembered
        # Who remembers its hash gets nothing either.
        with pytest.raises(ClientError, match="404"):
            client(read)
        # No part of it is left on this machine: neither where it waited nor in what hf_xet keeps.
        middle = vector[len(vector) // 2 :][:64]
        assert len(middle) == 64
        assert [path for path in home.parent.rglob("*") if path.is_file() and middle in path.read_bytes()] == []


def vector_name(model: Path, task_id: str) -> str:
    """Return the name of the file that an archive has of a task of a saved model."""
    entry = json.loads((model / "ledger.json").read_bytes())["tasks"][task_id]
    return Archive.file_name(task_id, entry["vector_digest"])


def vector_names(model: Path) -> set[str]:
    """Return the names of the files that an archive has of a saved model."""
    return {vector_name(model, task_id) for task_id in json.loads((model / "ledger.json").read_bytes())["tasks"]}


def is_bare(home: Path) -> bool:
    """Whether no vector waits on this machine."""
    return [path for path in home.rglob("*") if path.is_file()] == []
