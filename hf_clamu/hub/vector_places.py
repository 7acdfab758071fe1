"""Where an archive on the Hub keeps its files: a repository, or a bucket.

A repository has a history, which is erased with every vector that goes. A bucket has none: a file that is deleted is
gone at once, but only the Xet protocol (`hf_xet`) reads and writes it.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from hf_clamu.checkpoint.layout import CARD_NAME
from hf_clamu.errors import ArchiveError, HubError
from hf_clamu.hub.erase import erase_history
from hf_clamu.hub.errors import translate_hub_errors
from hf_clamu.hub.repository import repo_files

__all__ = ["BucketPlace", "RepoPlace", "VectorPlace"]

_FILES_IN_A_COMMIT = 500


class VectorPlace(ABC):
    """What an archive asks of the Hub; errors are those of its client, if nothing else is said.

    Args:
        name (`str`): `ORG/NAME`.
    """

    kind: ClassVar[str]
    # Files that are no vectors and do no harm: what the Hub itself puts there, or its owner to explain it.
    own_files: ClassVar[frozenset[str]]
    why_alone: ClassVar[str]
    why_lost: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def create(self) -> None:
        """Make it, private, if it is not there."""

    @abstractmethod
    def is_private(self) -> bool:
        """Whether only its owners may read it."""

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of its files."""

    @abstractmethod
    def upload(self, paths: Sequence[Path]) -> None:
        """Bring files to its top; each is there as a whole or not at all."""

    @abstractmethod
    def download(self, name: str, folder: Path) -> Path:
        """Bring a file into a folder of this machine, and nowhere else on it."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Delete files that are there."""

    @abstractmethod
    def forget(self, names: Sequence[str]) -> None:
        """Remove what it may still have of files that were deleted, and check that nothing answers for them.

        Raises:
            HubError: if something is left; doing it again goes on.
        """

    @staticmethod
    def _api() -> Any:
        from huggingface_hub import HfApi

        return HfApi()


class RepoPlace(VectorPlace):
    """A model repository."""

    kind = "repository"
    own_files = frozenset({".gitattributes", CARD_NAME})
    why_alone = "the history of an archive is erased with every task that is forgotten"
    why_lost = ": delete its .gitignore on the Hub, and repeat"

    def create(self) -> None:
        self._api().create_repo(self.name, private=True, exist_ok=True)

    def is_private(self) -> bool:
        return bool(self._api().model_info(self.name).private)

    def names(self) -> set[str]:
        return set(repo_files(self._api(), self.name, "main"))

    def upload(self, paths: Sequence[Path]) -> None:
        from huggingface_hub import CommitOperationAdd

        rest = iter(paths)
        while part := list(itertools.islice(rest, _FILES_IN_A_COMMIT)):
            operations = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in part]
            self._api().create_commit(self.name, operations, commit_message="Add vectors")

    def download(self, name: str, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.name, name, local_dir=folder))

    def delete(self, names: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationDelete

        operations = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in names]
        self._api().create_commit(self.name, operations, commit_message="Remove vectors")

    def forget(self, names: Sequence[str]) -> None:
        report = erase_history(self.name, keep_pull_requests=False)
        if report.steps_failed:
            first = report.steps_failed[0]
            raise HubError(f"Cannot erase the history of hf://{self.name}: {first['step']}: {first['reason']}")
        left = [one for one in report.still_reachable if any(name in one["url"] for name in names)]
        if left:
            raise HubError(f"{left[0]['url']} still answers: {left[0]['why']}.")


class BucketPlace(VectorPlace):
    """A bucket.

    Raises:
        ArchiveError: if the installed `huggingface_hub` knows no buckets, or `hf_xet` is not installed.
    """

    kind = "bucket"
    own_files = frozenset({CARD_NAME})
    why_alone = "requests delete files in it for good"
    why_lost = ", although it said so: repeat"

    def __init__(self, name: str) -> None:
        import huggingface_hub

        super().__init__(name)
        if not hasattr(huggingface_hub.HfApi, "batch_bucket_files"):
            raise ArchiveError(
                f"hf://buckets/{name} is a bucket, and huggingface_hub {huggingface_hub.__version__} knows none: "
                "install a newer one (pip install --upgrade huggingface_hub), or name a repository (hf://ORG/NAME)."
            )
        if find_spec("hf_xet") is None:
            raise ArchiveError(
                f"hf://buckets/{name} is a bucket, which only hf_xet reads and writes: install it (pip install "
                "hf_xet), or name a repository (hf://ORG/NAME)."
            )

    def create(self) -> None:
        self._api().create_bucket(self.name, private=True, exist_ok=True)

    def is_private(self) -> bool:
        return bool(self._api().bucket_info(self.name).private)

    def names(self) -> set[str]:
        found = self._api().list_bucket_tree(self.name, recursive=True)
        return {entry.path for entry in found if entry.type == "file"}

    def upload(self, paths: Sequence[Path]) -> None:
        self._api().batch_bucket_files(self.name, add=[(str(path), path.name) for path in paths])

    def download(self, name: str, folder: Path) -> Path:
        path = folder / name
        self._api().download_bucket_files(self.name, [(name, path)], raise_on_missing_files=True)
        return path

    def delete(self, names: Sequence[str]) -> None:
        self._api().batch_bucket_files(self.name, delete=list(names))

    def forget(self, names: Sequence[str]) -> None:
        with translate_hub_errors(f"look for deleted files in hf://buckets/{self.name}"):
            left = sorted(entry.path for entry in self._api().get_bucket_paths_info(self.name, names))
        if left:
            raise HubError(f"hf://buckets/{self.name} still has {left[0]}, although it was deleted: repeat.")
