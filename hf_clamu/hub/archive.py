"""An archive of integer task vectors in a private repository on the Hub."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

from hf_clamu.checkpoint.layout import CARD_NAME
from hf_clamu.errors import ArchiveError, HubError
from hf_clamu.hub.erase import erase_history
from hf_clamu.hub.errors import translate_hub_errors
from hf_clamu.hub.repository import repo_files
from hf_clamu.storage import ARCHIVE_SUFFIX, Archive, destroy_folder, is_archive_name, scratch_of

__all__ = ["HubArchive", "archive_at", "is_on_hub"]

_SCHEME = "hf://"
# What the Hub itself puts into a repository, or its owner to explain it.
_OTHERS = (".gitattributes", CARD_NAME)
_FILES_IN_A_COMMIT = 500


def is_on_hub(place: object) -> bool:
    """Whether an archive is named as one on the Hub: `hf://ORG/NAME`, which no folder is called."""
    return isinstance(place, str) and place.startswith(_SCHEME)


@overload
def archive_at(place: str | Path | Archive, *, retains_forgotten: bool = False) -> Archive: ...
@overload
def archive_at(place: str | Path | Archive | None, *, retains_forgotten: bool = False) -> Archive | None: ...
def archive_at(place: str | Path | Archive | None, *, retains_forgotten: bool = False) -> Archive | None:
    """Return the archive at a place, without looking there.

    Args:
        place (`str` or `Path`, *optional*): a folder, or `"hf://ORG/NAME"`. An `Archive` is returned as it is.
        retains_forgotten (`bool`): keep the vectors of forgotten tasks, for another copy of the model that has them.

    Raises:
        ArchiveError: if it looks like a repository on the Hub but is not written as one.
    """
    if place is None or isinstance(place, Archive):
        return place
    if is_on_hub(place):
        return HubArchive(str(place).removeprefix(_SCHEME), retains_forgotten=retains_forgotten)
    if re.match("hf:", str(place)):
        raise ArchiveError(f"{place} is no place of an archive: one on the Hub is the string 'hf://ORG/NAME'.")
    return Archive(Path(place), retains_forgotten=retains_forgotten)


class HubArchive(Archive):
    """A private repository of its own, with the files that a folder would have.

    Vectors are written into a folder of this machine, below the home of `huggingface_hub`, and uploaded at the end of
    a run; what is read comes alone and is destroyed here after it. The token in use (`hf auth login`, `HF_TOKEN`)
    must allow writing. One run at a time.

    Args:
        repo_id (`str`): `ORG/NAME`.
        retains_forgotten (`bool`): keep the vectors of forgotten tasks.
    """

    def __init__(self, repo_id: str, *, retains_forgotten: bool = False) -> None:
        from huggingface_hub import constants

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
            raise ArchiveError(f"{_SCHEME}{repo_id} is no place of an archive: write it as hf://ORG/NAME.")
        super().__init__(
            Path(constants.HF_HOME) / "clamu-archives" / repo_id.replace("/", "--"),
            retains_forgotten=retains_forgotten,
        )
        self.repo_id = repo_id
        self._wanted: set[str] = set()
        self._listed: set[str] | None = None

    @property
    def uri(self) -> str:
        """Where it is, as another process can open it."""
        return _SCHEME + self.repo_id

    def open(self, *, may_create: bool) -> None:
        """Check that the repository is private and holds nothing but an archive.

        Raises:
            HubError: if it is public, holds other files, is missing and may not be made, or cannot be reached.
        """
        api = self._api()
        with translate_hub_errors(f"open the archive {self.uri}"):
            if may_create:
                api.create_repo(self.repo_id, private=True, exist_ok=True)
            is_private = bool(api.model_info(self.repo_id).private)
        if not is_private:
            raise HubError(
                f"{self.repo_id} is public, and an archive holds what each task was trained to. Nothing was changed. "
                "Make it private in its settings on the Hub, or name another repository."
            )
        self._listed = None
        others = sorted(name for name in self._names() if name not in _OTHERS and not is_archive_name(name))
        if others:
            raise HubError(
                f"{self.repo_id} holds more than an archive ({others[0]}), and the history of an archive is erased "
                "with every task that is forgotten. Nothing was changed. Name a repository of its own."
            )

    def write(self, task_id: str, vector: Any) -> None:
        """Keep a task's vector here until it is uploaded."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().write(task_id, vector)
        self._wanted.add(self.file_name(task_id, vector.digest))

    def holds(self, task_id: str, vector_digest: str) -> bool:
        """Whether there is a file for a task's vector, here or on the Hub."""
        name = self.file_name(task_id, vector_digest)
        if super().holds(task_id, vector_digest):
            self._wanted.add(name)
            return True
        return name in self._names()

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Download a file for as long as it is read."""
        from huggingface_hub import hf_hub_download

        path = self.folder / name
        if path.is_file() or name not in self._names():
            yield path
            return
        scratch = scratch_of(path)
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Processes may read the same vector; what a killed one leaves is found by the name of its file.
        own = Path(tempfile.mkdtemp(dir=scratch))
        try:
            with translate_hub_errors(f"read {name} of the archive {self.uri}"):
                found = hf_hub_download(self.repo_id, name, local_dir=own)
            yield Path(found)
        finally:
            destroy_folder(own)
            with suppress(OSError):
                scratch.rmdir()

    def flush(self) -> None:
        """Upload what this run wrote and destroy it here, together with what an earlier one left.

        Raises:
            HubError: if the Hub refuses; the files stay for another start.
        """
        from huggingface_hub import CommitOperationAdd

        staged = sorted(path.name for path in self.folder.glob(f"*{ARCHIVE_SUFFIX}") if is_archive_name(path.name))
        # Not all that is staged: what another machine has destroyed meanwhile must not come back.
        wanted = [name for name in staged if name in self._wanted]
        if wanted:
            self._listed = None
            new = iter([name for name in wanted if name not in self._names()])
            while part := list(itertools.islice(new, _FILES_IN_A_COMMIT)):
                with translate_hub_errors(f"write to the archive {self.uri}"):
                    self._api().create_commit(
                        self.repo_id,
                        [CommitOperationAdd(path_in_repo=one, path_or_fileobj=self.folder / one) for one in part],
                        commit_message="Add vectors",
                    )
            self._listed = None
            lost = [name for name in wanted if name not in self._names()]
            if lost:
                raise HubError(f"{self.repo_id} did not take {lost[0]}: delete its .gitignore on the Hub, and repeat.")
        for name in staged:
            self.destroy(name)
        self._wanted.clear()

    def destroy_all(self, names: Sequence[str]) -> None:
        """Delete files in one commit, then all history and every object that no file needs any more.

        Raises:
            HubError: if not all of it could be done; doing it again goes on.
        """
        from huggingface_hub import CommitOperationDelete

        self.open(may_create=False)  # nothing but an archive, and private: its history goes, too
        super().destroy_all(names)
        api, self._listed = self._api(), None
        found = sorted(set(names) & self._names())
        if found:
            with translate_hub_errors(f"delete from the archive {self.uri}"):
                operations = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in found]
                api.create_commit(self.repo_id, operations, commit_message="Remove vectors")
            self._listed = None
        report = erase_history(self.repo_id, keep_pull_requests=False)
        if report.steps_failed:
            first = report.steps_failed[0]
            raise HubError(f"Cannot erase the history of {self.uri}: {first['step']}: {first['reason']}")
        left = [one for one in report.still_reachable if any(name in one["url"] for name in names)]
        if left:
            raise HubError(f"{left[0]['url']} still answers: {left[0]['why']}.")

    def _names(self) -> set[str]:
        if self._listed is None:
            with translate_hub_errors(f"list the archive {self.uri}"):
                self._listed = set(repo_files(self._api(), self.repo_id, "main"))
        return self._listed

    @staticmethod
    def _api() -> Any:
        from huggingface_hub import HfApi

        return HfApi()
