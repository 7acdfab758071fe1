"""What a run has finished, on disk, so that the next start goes on from there and ends in the same bytes.

A journal is a folder of parts. A part is one safetensors file: the entries of some tasks or clusters (JSON in its only
metadata key) and tensors, such as the integer sum of these tasks' vectors. It is written beside its place, synced and
renamed; it names the run that it belongs to and carries its own digest. Whatever is damaged or belongs to another run
is not used, and its work is done again.
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
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_clamu.errors import RecipeError, RunInProgressError
from hf_clamu.exact import canonical_json, digest_json, digest_tensors

__all__ = ["Journal", "Part"]

_LOCK_NAME = "lock"
_NOTE_NAME = "note.json"
_SUFFIX = ".part"
_METADATA_KEY = "part"


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
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}


class Journal:
    """A folder that keeps what a run has finished.

    Args:
        folder (`Path`): made when it is first written to.
        interval (`float`, *optional*): seconds between two writes of the same kind of work; by default those of the
            environment variable `CLAMU_JOURNAL_SECONDS`, or 30. Writing takes at most a twentieth of the time: if one
            write is slow, the next ones come later.
    """

    def __init__(self, folder: Path, interval: float | None = None) -> None:
        self.folder = folder
        self.interval = _default_interval() if interval is None else interval
        self._run = ""
        self._last, self._took = time.monotonic(), 0.0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out while a block runs; the lock goes with the process, however it ends.

        A block that runs inside another one of the same process and folder is let in. If the journal is empty at the
        end, its folder goes.

        Raises:
            RunInProgressError: if another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # One object per path: whoever holds it in this process may take it again.
        lock = FileLock(self.folder / _LOCK_NAME, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunInProgressError(
                f"Another run works on this output at the moment ({self.folder} is locked). Wait for it, stop it, or "
                "choose another output."
            ) from None
        try:
            yield
        finally:
            if lock.lock_counter == 1 and not any(self._files()):
                self.clear()
            lock.release()

    def open(self, run: str) -> None:
        """Say which run the journal is for; parts of other runs are left alone and not used.

        Args:
            run (`str`): digest of everything that the bits depend on besides the tasks' data.
        """
        self._run = run
        self._last, self._took = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time to write what is finished."""
        return time.monotonic() - self._last > max(self.interval, 20 * self._took)

    def write(
        self, stage: str, entries: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, is_timed: bool = True
    ) -> Part:
        """Write a part; it is there as a whole or not at all.

        Args:
            stage (`str`): the kind of work, for `parts`.
            entries (*mapping*): JSON-able values by task or cluster.
            tensors (*mapping* of `str` to `torch.Tensor`): contiguous, on the CPU.
            is_timed (`bool`): `is_due` counts the time from this write.

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
        path = self.folder / f"{digest[:32]}{_SUFFIX}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own: safetensors writes beside the file, under a name that only it knows.
        scratch = Path(tempfile.mkdtemp(prefix=".part.", dir=self.folder))
        try:
            partial = scratch / path.name
            text = json.dumps({**content, "digest": digest}, sort_keys=True)
            try:
                save_file(dict(tensors), partial, metadata={_METADATA_KEY: text})
            except SafetensorError as error:  # a full disk comes as one
                raise OSError(f"{partial} cannot be written: {error}") from error
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if is_timed:
            self._last = time.monotonic()
            self._took = self._last - started
        return Part(path=path, entries=dict(entries))

    def parts(self, stage: str) -> list[Part]:
        """Return the sound parts of this run and stage, sorted by name."""
        found = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            content = _read(path)
            if content is not None and (content["run"], content["stage"]) == (self._run, stage):
                found.append(Part(path=path, entries=content["entries"]))
        return found

    def remove(self, parts: list[Part]) -> None:
        """Delete parts that another one holds as well."""
        for part in parts:
            part.path.unlink(missing_ok=True)

    def note(self, value: Any) -> None:
        """Keep one JSON-able value, which `noted` returns until the journal is cleared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".part.{_NOTE_NAME}"
        with partial.open("wb") as file:
            file.write(canonical_json(value))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / _NOTE_NAME)

    def noted(self) -> Any:
        """Return what was noted last; None if nothing was."""
        try:
            return json.loads((self.folder / _NOTE_NAME).read_bytes())
        except (OSError, ValueError):
            return None

    def forget_note(self) -> None:
        """Delete what was noted, and nothing else."""
        (self.folder / _NOTE_NAME).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything: the result is saved, or nobody wants it any more."""
        # The note last: if this is interrupted, the next run still knows what is to be cleared.
        for path in [*self._files(), self.folder / _NOTE_NAME, self.folder / _LOCK_NAME]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or somebody begins anew
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        note = self.folder / _NOTE_NAME
        found = [*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(".part.*")]
        return [*found, note] if note.exists() else found


def _default_interval() -> float:
    given = os.environ.get("CLAMU_JOURNAL_SECONDS", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise RecipeError(f"CLAMU_JOURNAL_SECONDS must be a number of seconds, 0 or more; found {given!r}.")
    return seconds


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a part, or None if any of its bytes are not those that were written."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[_METADATA_KEY])
            digest = content.pop("digest")
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        sound = digest == digest_json(content) and content["tensors"] == digest_tensors(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return dict(content) if sound and path.name == f"{digest[:32]}{_SUFFIX}" else None
