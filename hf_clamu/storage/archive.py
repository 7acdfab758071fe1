"""An archive of integer task vectors: what a request subtracts without retraining, and destroys afterwards.

A folder of the user's, outside the saved model and unknown to it, with one safetensors file for each merged task. Its
tensors are bytes: of each parameter the steps, so that small ones of either sign have small codes, cut into planes
(the lowest byte of every weight, then the next), so that zlib finds the planes that hold little.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hf_clamu.errors import ArchiveError
from hf_clamu.exact import LEAST_BITS, TaskVector, digest_json, narrowest_dtype
from hf_clamu.storage.destroy import destroy_file, destroy_folder
from hf_clamu.storage.durable import is_plain_file, move_into_place, sync_folder
from hf_clamu.storage.tensors import opened_tensors, save_tensors

__all__ = ["ARCHIVE_SUFFIX", "Archive", "HeldArchive", "is_archive_name", "scratch_of"]

ARCHIVE_SUFFIX = ".safetensors"
_VERSION = "1"
_KEY = "clamu_archive"
_WAYS_OUT = (
    "Nothing was changed. Bring back an undamaged file, leave the archive out to retrain the task, or rebuild from "
    "the retained tasks (on_mismatch='rebuild', --on-mismatch rebuild)."
)


class Archive:
    """A folder of integer task vectors.

    Args:
        folder (`Path`): made when it is first written to.
        retains_forgotten (`bool`): keep the vectors of forgotten tasks, for another copy of the model that has them.
    """

    def __init__(self, folder: Path, *, retains_forgotten: bool = False) -> None:
        self.folder = folder
        self.retains_forgotten = retains_forgotten

    @property
    def uri(self) -> str:
        """Where it is: a folder, or a place on the Hub (`hf://...`), as another process can open it."""
        return str(self.folder.absolute())

    def open(self, *, may_create: bool) -> None:
        """Check, before anything is computed, that it can be used; the main process calls it.

        Args:
            may_create (`bool`): whether vectors come in, so that it may be a new one.
        """

    def flush(self) -> None:
        """Bring what was written to its place; every process calls it, one after the other."""

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Give the path of a file while it is read; the path does not exist if the archive has no such file."""
        yield self.folder / name

    @staticmethod
    def file_name(task_id: str, vector_digest: str) -> str:
        """Return the name of a vector's file, a hash: another vector of the same task has another."""
        return digest_json(["archive", task_id, vector_digest]) + ARCHIVE_SUFFIX

    def write(self, task_id: str, vector: TaskVector) -> None:
        """Keep a task's vector; its file is there as a whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.file_name(task_id, vector.digest)
        codes = {name: _encoded(steps) for name, steps in vector.steps.items()}
        scratch = scratch_of(path)
        destroy_folder(scratch)
        scratch.mkdir(mode=0o700)
        try:
            partial = scratch / path.name
            save_tensors(partial, codes, (_KEY, _VERSION))
            move_into_place(partial, path)
        finally:
            destroy_folder(scratch)

    def holds(self, task_id: str, vector_digest: str) -> bool:
        """Whether there is a file for a task's vector."""
        return (self.folder / self.file_name(task_id, vector_digest)).is_file()

    def require(self, task_id: str, vector_digest: str) -> None:
        """Check that there is a file for a task's vector.

        Raises:
            ArchiveError: if there is none.
        """
        if not self.holds(task_id, vector_digest):
            raise self._missing(task_id, self.file_name(task_id, vector_digest))

    def _missing(self, task_id: str, name: str) -> ArchiveError:
        return ArchiveError(
            f"The archive has no vector of task {task_id!r} as it was merged ({self.uri}/{name}). {_WAYS_OUT}"
        )

    def read(
        self,
        task_id: str,
        vector_digest: str,
        bounds: Mapping[str, int],
        shapes: Mapping[str, torch.Size],
        *,
        least_bits: int = LEAST_BITS,
    ) -> TaskVector:
        """Return a task's vector, if every bit of it is the one that was merged.

        Args:
            task_id (`str`): the task.
            vector_digest (`str`): of its vector, as the ledger has it.
            bounds (*mapping* of `str` to `int`): `max |n_t|` per parameter, as the ledger has it.
            shapes (*mapping* of `str` to `torch.Size`): of the parameters that take part.
            least_bits (`int`): of its integers, as in `narrowest_dtype`.

        Raises:
            ArchiveError: if the file is missing, damaged, or holds other bits.
        """
        name = self.file_name(task_id, vector_digest)
        where = f"{self.uri}/{name}"
        with self.fetched(name) as path:
            if not path.is_file():
                raise self._missing(task_id, name)
            try:
                dtypes = {name: narrowest_dtype(bounds[name], least_bits) for name in shapes}
                vector = TaskVector.of(_decoded(path, dtypes, shapes), least_bits)
            except (OSError, KeyError, ValueError, TypeError, zlib.error) as error:
                raise ArchiveError(
                    f"The vector of task {task_id!r} in {where} is damaged ({error}). {_WAYS_OUT}"
                ) from error
        if vector.digest != vector_digest or vector.bounds != dict(bounds):
            raise ArchiveError(
                f"The vector of task {task_id!r} in {where} is not the one that was merged: its SHA-256 is "
                f"{vector.digest[:16]}…, the ledger says {vector_digest[:16]}…. {_WAYS_OUT}"
            )
        return vector

    def destroy(self, name: str) -> None:
        """Overwrite a vector's file with zeros and delete it; no file is fine.

        Raises:
            OSError: if it cannot be overwritten or deleted, or is no file of an archive; then it stays as it is.
        """
        path = self.folder / name
        if not is_archive_name(name):
            raise OSError(f"{name!r} is no name that a file of an archive has, so it is not overwritten")
        if path.is_symlink() or (path.exists() and not _is_vector(path)):
            raise OSError(f"{path} is no file of an archive, so it is not overwritten: look at it and move it away")
        destroy_file(path)
        destroy_folder(scratch_of(path))
        if self.folder.is_dir():
            sync_folder(self.folder)

    def destroy_all(self, names: Sequence[str]) -> None:
        """Destroy several files; those that are not there are fine.

        Raises:
            OSError: if one cannot be overwritten or deleted, or is no file of an archive.
        """
        for name in names:
            try:
                self.destroy(name)
            except OSError as error:
                raise OSError(f"{self.folder / name}: {error}") from error


class HeldArchive(Archive):
    """An archive that gets nothing before it is told to: new vectors wait in memory.

    Args:
        archive (`Archive`): the archive that it is read from.
    """

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive.folder, retains_forgotten=archive.retains_forgotten)
        self._archive = archive
        self._held: dict[str, tuple[str, TaskVector]] = {}

    @property
    def uri(self) -> str:
        """Where the archive is."""
        return self._archive.uri

    def open(self, *, may_create: bool) -> None:
        """Check that it can be used, unless it may be a new one, which only a write makes."""
        if not may_create:
            self._archive.open(may_create=False)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Give the path of a file of the archive while it is read."""
        with self._archive.fetched(name) as path:
            yield path

    def write(self, task_id: str, vector: TaskVector) -> None:
        """Hold a task's vector."""
        # It is lent, so it is copied.
        held = replace(vector, steps={name: steps.clone() for name, steps in vector.steps.items()})
        self._held[self.file_name(task_id, vector.digest)] = (task_id, held)

    def holds(self, task_id: str, vector_digest: str) -> bool:
        """Whether a task's vector is held, or in the archive."""
        return self.file_name(task_id, vector_digest) in self._held or self._archive.holds(task_id, vector_digest)

    def read(
        self,
        task_id: str,
        vector_digest: str,
        bounds: Mapping[str, int],
        shapes: Mapping[str, torch.Size],
        *,
        least_bits: int = LEAST_BITS,
    ) -> TaskVector:
        """Return a task's vector, as `Archive.read`."""
        held = self._held.get(self.file_name(task_id, vector_digest))
        if held is not None:
            return held[1]
        return self._archive.read(task_id, vector_digest, bounds, shapes, least_bits=least_bits)

    def write_held(self) -> None:
        """Bring the held vectors into the archive; every process calls it, one after the other.

        Raises:
            OSError: if one cannot be written.
        """
        if self._held:
            self._archive.open(may_create=True)
        for task_id, vector in self._held.values():
            self._archive.write(task_id, vector)
        self._archive.flush()
        self._held.clear()


def is_archive_name(name: str) -> bool:
    """Whether a name is one that a file of an archive has."""
    return re.fullmatch(rf"[0-9a-f]{{64}}{re.escape(ARCHIVE_SUFFIX)}", name) is not None


def _is_vector(path: Path) -> bool:
    """Whether a file is one that an archive wrote, or what is left of one whose destruction was interrupted."""
    if not is_plain_file(path):
        return False
    with path.open("rb") as file:
        # safetensors begins with the length of its header, which is never zero.
        if file.read(8) in (b"", bytes(8)):
            return True
    try:
        with opened_tensors(path) as file:
            return _KEY in (file.metadata() or {})
    except OSError:
        return False


def scratch_of(path: Path) -> Path:
    """Return the folder that a file is written in, before it comes to its place.

    safetensors writes beside a file, under a name that only it knows. In a folder of its own, whose name follows from
    the file's, what a killed writer leaves is found by the next writer and by `destroy`.
    """
    return path.with_name(f".{path.name}.partial")


def _encoded(steps: torch.Tensor) -> torch.Tensor:
    """Return integers as compressed bytes.

    Args:
        steps (`torch.Tensor` of any shape, int8 to int64): grid steps.
    """
    n = steps.reshape(-1)
    # 0, -1, 1, -2, … become 0, 1, 2, 3, …: otherwise the sign fills the high bytes.
    codes = n.bitwise_left_shift(1).bitwise_xor(n.bitwise_right_shift(8 * n.element_size() - 1)).numpy()
    width = n.element_size()
    planes = codes.astype(f"<i{width}").view(np.uint8).reshape(len(codes), width).T
    # Runs and frequencies are all there is to find in a plane; a search for repetitions is slower and finds less.
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    data = packer.compress(planes.tobytes()) + packer.flush()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decoded(
    path: Path, dtypes: Mapping[str, torch.dtype], shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, torch.Tensor]]:
    with opened_tensors(path) as file:
        if (file.metadata() or {}).get(_KEY) != _VERSION:
            raise ValueError("it is no file of an archive that this release reads")
        if sorted(file.keys()) != sorted(shapes):
            raise ValueError("it has other parameters than the model")
        for name in sorted(shapes):
            width, size = dtypes[name].itemsize, shapes[name].numel()
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(file.get_tensor(name).numpy().tobytes(), width * size + 1)
            if len(data) != width * size or not unpacker.eof:
                raise ValueError(f"{name} has another size than the model's")
            planes = np.frombuffer(data, dtype=np.uint8).reshape(width, size)
            codes = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(-1)
            # The lowest bit says the sign.
            steps = (codes >> 1) ^ (0 - (codes & 1))
            yield name, torch.from_numpy(steps.astype(f"u{width}").view(f"i{width}")).view(shapes[name])
