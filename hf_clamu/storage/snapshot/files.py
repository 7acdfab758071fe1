"""A folder of encoded rows, a file for each merged task, whose name comes from what the ledger has of the task.

A file is safetensors with one metadata key, or the same bytes encrypted. The caller checks what is in it with the
ledger's digest of the task's data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hf_clamu.errors import SnapshotError
from hf_clamu.exact import digest_json
from hf_clamu.storage.destroy import destroy_file
from hf_clamu.storage.durable import is_plain_file, private_folder, sync_folder, write_atomically
from hf_clamu.storage.snapshot.encryption import KEY_VARIABLE, MAGIC, decrypted, encrypted, environment_key
from hf_clamu.storage.staging import hidden_name

__all__ = ["Snapshot", "snapshot_beside"]

_VERSION = "1"
_METADATA_KEY = "clamu_snapshot"
_HEAD_BYTES = 64
_PLAIN, _ENCRYPTED = ".safetensors", ".encrypted"
# Also of a file that a killed process did not finish (`write_atomically`).
_FORM = re.compile(rf"\.?([0-9a-f]{{64}})({re.escape(_PLAIN)}|{re.escape(_ENCRYPTED)})(\.partial)?")
_WAYS_OUT = (
    "Nothing was changed. Bring back an undamaged file; or delete it and give the data as it was merged (data=, "
    "--data FILE), from which it is written again."
)


def snapshot_beside(model: Path) -> Path:
    """Return the folder of the snapshot of a saved model; a link and its target have the same."""
    folder = model.resolve()
    # A long name is cut as hidden ones are, but nothing of the owner's is hidden.
    return folder.parent / hidden_name(folder.name, ".snapshot").removeprefix(".")


class Snapshot:
    """A folder of encoded rows; its owner alone can read it.

    With `CLAMU_SNAPSHOT_KEY` in the environment, what is written is encrypted before it reaches the disk.

    Args:
        folder (`Path`): made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_there(self) -> bool:
        """Whether there is such a folder; a link to one does not count."""
        return self.folder.is_dir() and not self.folder.is_symlink()

    @staticmethod
    def name(task_id: str, data_digest: str, cluster_key: str | None) -> str:
        """Return the name of a task's file without its ending: a hash, so that other rows have another name."""
        return digest_json(["snapshot", _VERSION, task_id, data_digest, cluster_key])

    def holds(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(name) is not None

    def is_kept(self, name: str) -> bool:
        """Whether there is a file of this name that need not be written: with a key, an encrypted one."""
        path = self._path(name)
        return path is not None and (path.suffix == _ENCRYPTED or environment_key() is None)

    def read(self, name: str, task_id: str) -> dict[str, torch.Tensor]:
        """Return what was written under a name.

        Args:
            name (`str`): of the file.
            task_id (`str`): whose rows they are, for the message.

        Raises:
            SnapshotError: if it is missing, damaged, or encrypted with another key.
        """
        path = self._required(name, task_id)
        try:
            return load(self._content(path))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self.unusable(name, task_id, str(error)) from error

    def unusable(self, name: str, task_id: str, reason: str) -> SnapshotError:
        """Return the error that says why a file cannot be used."""
        path = self._path(name) or self.folder / name
        return SnapshotError(f"The rows of task {task_id!r} in {path} cannot be used: {reason}. {_WAYS_OUT}")

    def write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a file; it is there as a whole or not at all.

        Raises:
            RecipeError: if the key cannot be used, or there is a link or a file at the place of the folder.
            SnapshotError: if other files are encrypted and there is no key.
            OSError: if it cannot be written.
        """
        contiguous = {key: tensors[key].contiguous() for key in sorted(tensors)}
        self._write(name, save(contiguous, metadata={_METADATA_KEY: _VERSION}))

    def copy_from(self, other: Snapshot, name: str, task_id: str) -> None:
        """Write a file that another snapshot has, or this one unencrypted; an encrypted one needs no key for that.

        Raises:
            OSError, RecipeError, SnapshotError: as `write`, or if it is missing.
        """
        path = other._required(name, task_id)
        data = path.read_bytes()
        if path.suffix == _ENCRYPTED:
            self.make()
            write_atomically(self.folder / path.name, data)
        else:
            self._write(name, data)

    def require_writable(self) -> None:
        """Check, before anything is computed, that files can be added.

        Raises:
            RecipeError, SnapshotError: as `write`.
        """
        if environment_key() is None and self.is_there and any(p.suffix == _ENCRYPTED for p, _ in self._files()):
            raise SnapshotError(
                f"The snapshot {self.folder} is encrypted, and {KEY_VARIABLE} is not set: rows would be written as "
                "they are. Nothing was changed. Set the key."
            )
        if self.folder.is_symlink() or self.folder.exists():
            self.make()

    def make(self) -> None:
        """Make the folder, which says that the model beside it has a snapshot.

        Raises:
            RecipeError: if there is a link or a file at its place.
        """
        private_folder(self.folder, "a snapshot")

    def destroy_others(self, names: Collection[str]) -> int:
        """Overwrite and delete every file but those of some names, and what killed processes left; return how many.

        Raises:
            OSError: if one cannot be overwritten or deleted, or is none of a snapshot; then it stays as it is.
        """
        if not self.is_there:
            return 0
        doomed = [path for path, name in self._files() if name not in names or self._is_spent(path, name)]
        for path in doomed:
            if not _is_ours(path):
                raise OSError(f"{path} is no file of a snapshot, so it is not overwritten: move it away")
            destroy_file(path)
        if doomed:
            sync_folder(self.folder)
        return len(doomed)

    # -- inside --------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path | None:
        paths = (self.folder / f"{name}{ending}" for ending in (_ENCRYPTED, _PLAIN))
        return next((path for path in paths if self.is_there and is_plain_file(path)), None)

    def _required(self, name: str, task_id: str) -> Path:
        path = self._path(name)
        if path is None:
            raise SnapshotError(
                f"The snapshot {self.folder} has no rows of task {task_id!r} as it was merged ({name}). {_WAYS_OUT}"
            )
        return path

    def _files(self) -> Iterator[tuple[Path, str]]:
        for path in sorted(self.folder.iterdir()):
            found = _FORM.fullmatch(path.name)
            if found is not None:
                yield path, found[1]

    def _is_spent(self, path: Path, name: str) -> bool:
        """Whether a file is an unfinished one, or the plain one that an encrypted one replaces."""
        return path.suffix == ".partial" or path != self._path(name)

    def _content(self, path: Path) -> bytes:
        data = path.read_bytes()
        if path.suffix == _PLAIN:
            return data
        key = environment_key()
        if key is None:
            raise SnapshotError(
                f"The snapshot {self.folder} is encrypted, and {KEY_VARIABLE} is not set. Nothing was changed. Set it "
                "to the key that it was written with."
            )
        return decrypted(data, path.name, key)

    def _write(self, name: str, data: bytes) -> None:
        self.require_writable()
        key = environment_key()
        self.make()
        file_name = f"{name}{_PLAIN if key is None else _ENCRYPTED}"
        # Encrypted here, so that nothing of the rows reaches the disk, an unfinished file included.
        write_atomically(self.folder / file_name, data if key is None else encrypted(data, file_name, key))


def _is_ours(path: Path) -> bool:
    """Whether a file is one that a snapshot wrote, or what is left of one whose destruction was interrupted."""
    if not is_plain_file(path):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # safetensors begins with the length of its header, which is never zero, and then its metadata. Of a damaged file,
    # too, that much is often left.
    return (
        path.suffix == ".partial" or head.startswith((MAGIC, bytes(8))) or not head or _METADATA_KEY.encode() in head
    )
