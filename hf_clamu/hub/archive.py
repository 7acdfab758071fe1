"""An archive of integer task vectors in a private repository or bucket on the Hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

from hf_clamu.errors import ArchiveError, HubError
from hf_clamu.hub.errors import translate_hub_errors
from hf_clamu.hub.vector_places import BucketPlace, RepoPlace, VectorPlace
from hf_clamu.storage import ARCHIVE_SUFFIX, Archive, destroy_folder, is_archive_name, scratch_of

__all__ = ["HubArchive", "archive_at", "is_on_hub"]

_SCHEME = "hf://"
_BUCKETS = "buckets/"


def is_on_hub(place: object) -> bool:
    """Whether an archive is named as one on the Hub: `hf://...`, which no folder is called."""
    return isinstance(place, str) and place.startswith(_SCHEME)


@overload
def archive_at(place: str | Path | Archive, *, retains_forgotten: bool = False) -> Archive: ...
@overload
def archive_at(place: str | Path | Archive | None, *, retains_forgotten: bool = False) -> Archive | None: ...
def archive_at(place: str | Path | Archive | None, *, retains_forgotten: bool = False) -> Archive | None:
    """Return the archive at a place, without looking there.

    Args:
        place (`str` or `Path`, *optional*): a folder, a repository `"hf://ORG/NAME"`, or a bucket
            `"hf://buckets/ORG/NAME"`. An `Archive` is returned as it is.
        retains_forgotten (`bool`): keep the vectors of forgotten tasks, for another copy of the model that has them.

    Raises:
        ArchiveError: if it looks like a place on the Hub but is not written as one, or if it is a bucket and the
            installed `huggingface_hub` knows none.
    """
    if place is None or isinstance(place, Archive):
        return place
    if is_on_hub(place):
        return HubArchive(str(place).removeprefix(_SCHEME), retains_forgotten=retains_forgotten)
    if re.match("hf:", str(place)):
        raise ArchiveError(
            f"{place} is no place of an archive: one on the Hub is the string 'hf://ORG/NAME' or "
            "'hf://buckets/ORG/NAME'."
        )
    return Archive(Path(place), retains_forgotten=retains_forgotten)


class HubArchive(Archive):
    """A private repository or bucket of its own, with the files that a folder would have.

    Vectors are written into a folder of this machine, below the home of `huggingface_hub`, and uploaded at the end of
    a run; what is read comes alone and is destroyed here after it. The token in use (`hf auth login`, `HF_TOKEN`)
    must allow writing. One run at a time.

    Args:
        name (`str`): `ORG/NAME` of a repository, or `buckets/ORG/NAME`.
        retains_forgotten (`bool`): keep the vectors of forgotten tasks.

    Raises:
        ArchiveError: if it is no such name, or a bucket, and the installed `huggingface_hub` knows none.
    """

    def __init__(self, name: str, *, retains_forgotten: bool = False) -> None:
        from huggingface_hub import constants

        match = re.fullmatch(rf"({_BUCKETS})?([\w.-]+/[\w.-]+)", name)
        if match is None or (match[1] is None and name.startswith(_BUCKETS)):
            raise ArchiveError(
                f"{_SCHEME}{name} is no place of an archive: write it as hf://ORG/NAME, or as hf://buckets/ORG/NAME."
            )
        super().__init__(
            Path(constants.HF_HOME) / "clamu-archives" / name.replace("/", "--"), retains_forgotten=retains_forgotten
        )
        self._uri = _SCHEME + name
        self._place: VectorPlace = RepoPlace(match[2]) if match[1] is None else BucketPlace(match[2])
        self._wanted: set[str] = set()
        self._listed: set[str] | None = None

    @property
    def uri(self) -> str:
        """Where it is, as another process can open it."""
        return self._uri

    def open(self, *, may_create: bool) -> None:
        """Check that the place is private and holds nothing but an archive.

        Raises:
            HubError: if it is public, holds other files, is missing and may not be made, or cannot be reached.
        """
        with translate_hub_errors(f"open the archive {self.uri}"):
            if may_create:
                self._place.create()
            is_private = self._place.is_private()
        if not is_private:
            raise HubError(
                f"{self._place.name} is public, and an archive holds what each task was trained to. Nothing was "
                f"changed. Make it private in its settings on the Hub, or name another {self._place.kind}."
            )
        self._listed = None
        others = sorted(name for name in self._names() - self._place.own_files if not is_archive_name(name))
        if others:
            raise HubError(
                f"{self._place.name} holds more than an archive ({others[0]}), and {self._place.why_alone}. Nothing "
                f"was changed. Name a {self._place.kind} of its own."
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
                found = self._place.download(name, own)
            yield found
        finally:
            destroy_folder(own)
            with suppress(OSError):
                scratch.rmdir()

    def flush(self) -> None:
        """Upload what this run wrote and destroy it here, together with what an earlier one left.

        Raises:
            HubError: if the Hub refuses; the files stay for another start.
        """
        staged = sorted(path.name for path in self.folder.glob(f"*{ARCHIVE_SUFFIX}") if is_archive_name(path.name))
        # Not all that is staged: what another machine has destroyed meanwhile must not come back.
        wanted = [name for name in staged if name in self._wanted]
        if wanted:
            self._listed = None
            new = [self.folder / name for name in wanted if name not in self._names()]
            if new:
                with translate_hub_errors(f"write to the archive {self.uri}"):
                    self._place.upload(new)
            self._listed = None
            lost = [name for name in wanted if name not in self._names()]
            if lost:
                raise HubError(f"{self._place.name} did not take {lost[0]}{self._place.why_lost}.")
        for name in staged:
            self.destroy(name)
        self._wanted.clear()

    def destroy_all(self, names: Sequence[str]) -> None:
        """Delete files, with all that the place still has of them.

        Raises:
            HubError: if not all of it could be done; doing it again goes on.
        """
        self.open(may_create=False)  # nothing but an archive, and private: whatever else it has had goes, too
        super().destroy_all(names)
        self._listed = None
        doomed = sorted(self._names() & set(names))
        if doomed:
            self._delete(doomed)
        self._place.forget(names)

    def _delete(self, names: Sequence[str]) -> None:
        self._listed = None
        try:
            with translate_hub_errors(f"delete from the archive {self.uri}"):
                self._place.delete(names)
        except HubError:
            # An answer may be lost, and of a bucket's files some may be gone.
            if self._names() & set(names):
                raise

    def _names(self) -> set[str]:
        if self._listed is None:
            with translate_hub_errors(f"list the archive {self.uri}"):
                self._listed = self._place.names()
        return self._listed
