"""What a run has finished, on disk, so that the next start goes on from there and ends in the same bytes.

A journal is a folder of parts. A part is one safetensors file: the entries of some tasks or clusters (JSON in its only
metadata key) and tensors, such as the integer sum of these tasks' vectors. It is written beside its place, synced and
renamed; its name says which run and which kind of work it belongs to, and it carries its own digest. Whatever is
damaged or belongs to another run is not used, and its work is done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import canonical_json, digest_json, digest_tensors
from hf_clamu.storage.destroy import destroy_file
from hf_clamu.storage.durable import (
    is_plain_file,
    move_into_place,
    parse_json,
    private_folder,
    read_json,
    sync_folder,
    write_atomically,
)
from hf_clamu.storage.locking import FileLock
from hf_clamu.storage.tensors import opened_tensors, read_tensors, save_tensors

__all__ = ["Journal", "Part"]

_NOTE_NAME = "note.json"
_SUFFIX = ".part"
# Of a part with sums of vectors, which is overwritten before it is deleted. Masks are not: they are mapped from their
# parts for as long as the model is served.
_SUM = ".sum"
_METADATA_KEY = "part"
_MOST_NOTE_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Part:
    """Finished work on disk.

    Args:
        path (`Path`): the file; its name carries the digest of its content.
        entries (*dict*): JSON-able values by task or cluster.
    """

    path: Path
    entries: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors, mapped from the file."""
        return read_tensors(self.path)


class Journal:
    """A folder that keeps what a run has finished; its owner alone can read it.

    Args:
        folder (`Path`): made when it is first written to. The file `FOLDER.lock` beside it keeps other runs out.
        interval (`float`, *optional*): seconds between two writes of the same kind of work; by default those of the
            environment variable `CLAMU_JOURNAL_SECONDS`, or 30. Writing takes at most a twentieth of the time: if one
            write is slow, the next ones come later.
    """

    def __init__(self, folder: Path, interval: float | None = None) -> None:
        self.folder = folder
        self.interval = _default_interval() if interval is None else interval
        self._run = ""
        self._names: dict[str, set[str]] | None = None
        self._last, self._took = time.monotonic(), 0.0
        self._is_locked = False

    @classmethod
    def at(cls, place: str | Path | Journal | None) -> Journal | None:
        """Return the journal in a folder; a `Journal`, which may be locked already, is returned as it is."""
        return cls(Path(place)) if isinstance(place, str | Path) else place

    @property
    def is_locked(self) -> bool:
        """Whether this run has locked it through this object, in whichever of its processes."""
        return self._is_locked

    @property
    def lock(self) -> FileLock:
        """What keeps other runs away from the output."""
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"))

    @contextlib.contextmanager
    def locked(self, *, is_main: bool = True) -> Iterator[None]:
        """Keep other runs out while a block runs; the lock goes with the process, however it ends.

        Re-entrant within a thread. If the journal is empty at the end, its folder is deleted.

        Args:
            is_main (`bool`): of several processes of a run the main one takes the lock, for all of them.

        Raises:
            RecipeError: if there is a link or a file at the place of the folder.
            RunInProgressError: if another run holds it.
        """
        before = self._is_locked
        with self._kept_alone() if is_main else contextlib.nullcontext():
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = before

    @contextlib.contextmanager
    def _kept_alone(self) -> Iterator[None]:
        if self.folder.is_symlink() or self.folder.exists():
            self.make()
        with self.lock.held() as is_outermost:
            try:
                yield
            finally:
                if is_outermost and self._is_there():
                    with contextlib.suppress(OSError):  # it holds something
                        self.folder.rmdir()

    def open(self, run: str) -> None:
        """Name the run that the journal is for; parts of other runs are neither used nor deleted.

        Args:
            run (`str`): digest of everything that the bits depend on besides the tasks' data.
        """
        self._run, self._names = run, None
        self._last, self._took = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time to write what is finished."""
        return time.monotonic() - self._last > max(self.interval, 20 * self._took)

    def write(
        self,
        stage: str,
        entries: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        *,
        is_timed: bool = True,
        is_sum: bool = False,
    ) -> Part:
        """Write a part; it is there as a whole or not at all.

        Args:
            stage (`str`): the kind of work, for `parts`.
            entries (*mapping*): JSON-able values by task or cluster.
            tensors (*mapping* of `str` to `torch.Tensor`): contiguous, on the CPU.
            is_timed (`bool`): `is_due` counts the time from this write.
            is_sum (`bool`): the tensors are sums of vectors, which are overwritten before they are deleted. The
                tensors of the part must not be in use by then.

        Raises:
            OSError: if it cannot be written; earlier parts are as they were.
        """
        started = time.monotonic()
        content = {
            "run": self._run,
            "stage": stage,
            "entries": dict(entries),
            "tensors": digest_tensors(tensors),
        }
        digest = digest_json(content)
        path = self.folder / f"{self._head(stage)}{digest[:32]}{_SUM if is_sum else ''}{_SUFFIX}"
        self.make()
        # A folder of its own: safetensors writes beside the file, under a name that only it knows.
        scratch = Path(tempfile.mkdtemp(prefix=".part.", dir=self.folder))
        try:
            partial = scratch / path.name
            text = json.dumps({**content, "digest": digest}, sort_keys=True)
            save_tensors(partial, tensors, (_METADATA_KEY, text))
            move_into_place(partial, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self._names is not None:
            self._names.setdefault(self._head(stage), set()).add(path.name)
        if is_timed:
            self._last = time.monotonic()
            self._took = self._last - started
        return Part(path=path, entries=dict(entries))

    def parts(self, stage: str) -> list[Part]:
        """Return the sound parts of this run and stage, sorted by name; no others are read.

        Those are known that were there when the first were asked for, and that were written through this object since.
        """
        if self._names is None:
            # Once: a run asks for the parts of each of its clusters, of which there may be thousands.
            self._names = {}
            for name in os.listdir(self.folder) if self._is_there() else []:
                if name.endswith(_SUFFIX):
                    self._names.setdefault(name[: len(self._head(stage))], set()).add(name)
        found = []
        for name in sorted(self._names.get(self._head(stage), ())) if self._is_there() else []:
            path = self.folder / name
            content = _read(path, self._run, stage) if is_plain_file(path) else None
            if content is not None:
                found.append(Part(path=path, entries=content["entries"]))
        return found

    def remove(self, parts: list[Part]) -> None:
        """Delete parts that another one holds as well."""
        for part in parts:
            _delete(part.path)

    def make(self) -> None:
        """Make the folder.

        Raises:
            RecipeError: if there is a link or a file at its place.
        """
        private_folder(self.folder, "a journal")

    def write_note(self, value: Any) -> None:
        """Keep one JSON-able value, which `read_note` returns until the journal is cleared."""
        self.make()
        write_atomically(self.folder / _NOTE_NAME, canonical_json(value))

    @property
    def has_note(self) -> bool:
        """Whether anything was noted, even if it cannot be read."""
        return self._is_there() and (self.folder / _NOTE_NAME).exists()

    def read_note(self) -> Any:
        """Return what was noted last; None if nothing was, or nothing that can be read."""
        path = self.folder / _NOTE_NAME
        try:
            return read_json(path, _MOST_NOTE_BYTES) if self._is_there() else None
        except (OSError, ValueError):
            return None

    def delete_note(self) -> None:
        """Delete what was noted, and nothing else."""
        if self._is_there():
            (self.folder / _NOTE_NAME).unlink(missing_ok=True)
            sync_folder(self.folder)

    def clear(self, *, keep_note: bool = False) -> None:
        """Delete everything, or all but the note, once the result is saved or abandoned.

        Sums of vectors are overwritten before, as far as a file system lets one.
        """
        self._names = None
        if not self._is_there():
            return
        for path in [*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(".part.*"), *self.folder.glob(".*.partial")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                _delete(path)
        # The note last: if this is interrupted, the next run still knows what is to be cleared.
        if not keep_note:
            self.delete_note()
        with contextlib.suppress(OSError):  # it holds files of the user
            self.folder.rmdir()

    def _is_there(self) -> bool:
        return self.folder.is_dir() and not self.folder.is_symlink()

    def _head(self, stage: str) -> str:
        return f"{digest_json([self._run, stage])[:16]}-"


def _delete(path: Path) -> None:
    if path.name.endswith(f"{_SUM}{_SUFFIX}"):
        destroy_file(path)
    path.unlink(missing_ok=True)


def _default_interval() -> float:
    given = os.environ.get("CLAMU_JOURNAL_SECONDS", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise RecipeError(f"CLAMU_JOURNAL_SECONDS must be a number of seconds, 0 or more; found {given!r}.")
    return seconds


def _read(path: Path, run: str, stage: str) -> dict[str, Any] | None:
    """Return the content of a part of a run and stage, or None if any of its bytes are not those that were written."""
    try:
        with opened_tensors(path) as file:
            content = parse_json((file.metadata() or {})[_METADATA_KEY])
            digest = content.pop("digest")
            if (content["run"], content["stage"]) != (run, stage) or digest != digest_json(content):
                return None
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        is_sound = content["tensors"] == digest_tensors(tensors)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    name = path.name.removesuffix(_SUFFIX).removesuffix(_SUM)
    return dict(content) if is_sound and name.endswith(f"-{digest[:32]}") else None
