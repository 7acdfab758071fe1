"""The files of a folder, compared with what its ledger lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hf_clamu.checkpoint.files.unchanged import FileStamps
from hf_clamu.checkpoint.layout import is_processor_file, refuse_unlisted, require_data_names
from hf_clamu.checkpoint.ledger import FileEntry
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import sha256_file, sha256_hex
from hf_clamu.exact.threads import MIN_BYTES_FOR_A_THREAD, SizedThreadPool

__all__ = ["checked_files", "file_digest"]

_SHA256 = "sha256"
# Bytes. Files that a processor's own `save_pretrained` wrote again have another size than the recorded one.
_LARGEST_PROCESSOR_FILE = 2**28


@contextmanager
def checked_files(folder: Path, listed: Mapping[str, FileEntry], *, strict: bool) -> Iterator[frozenset[str]]:
    """Compare a folder with the files that its ledger lists; large ones are hashed while a block works.

    What the block makes of the files counts for nothing before it has ended: only then are all of them compared.

    Args:
        folder (`Path`): of a saved model.
        listed (*mapping* of `str` to `FileEntry`): by name.
        strict (`bool`): read all files, also those that this process has read and that are unchanged since.

    Yields:
        *frozenset* of `str`: names of those that their processor has written again.

    Raises:
        CheckpointFormatError: if one is missing or another one, or there is one too many.
    """
    _check_sizes(folder, listed)
    refuse_unlisted(folder, listed)
    with SizedThreadPool() as pool:
        largest_first = sorted(listed, key=lambda name: -listed[name].size)
        digests = {name: pool.submit(listed[name].size, file_digest, folder / name, strict) for name in largest_first}
        # Small files are read already.
        waits = {name for name, entry in listed.items() if entry.size >= MIN_BYTES_FOR_A_THREAD}
        waits -= {name for name in waits if is_processor_file(name)}
        rewritten = frozenset(_changed(folder, listed, {name: digests[name] for name in listed if name not in waits}))
        large = {name: digests[name] for name in listed if name in waits}
        try:
            yield rewritten
        except Exception:
            _changed(folder, listed, large)  # a changed file is the reason of whatever went wrong with it
            raise
        _changed(folder, listed, large)


def _check_sizes(folder: Path, listed: Mapping[str, FileEntry]) -> None:
    require_data_names(listed)
    for name, entry in listed.items():
        path = folder / name
        # The files of a Hub cache are links to blobs elsewhere, so they are not resolved.
        if not path.is_file():
            raise CheckpointFormatError(f"{path} is missing: the ledger lists it. Take an undamaged copy.")
        size = path.stat().st_size
        # First the sizes: a file of zeros may have any size and takes no space, but hashing it takes hours.
        if size != entry.size and not (is_processor_file(name) and size <= _LARGEST_PROCESSOR_FILE):
            raise CheckpointFormatError(
                f"{path} has {size} bytes, the ledger says {entry.size}: it is truncated or was changed. Take an "
                "undamaged copy."
            )


def file_digest(path: Path, strict: bool = False) -> str:
    """Return the SHA-256 of a file, which is not read again while it is unchanged, unless `strict`."""
    stamps = FileStamps.of([path])
    known: str | None = None if strict else stamps.recall(_SHA256)
    if known is None:
        known = sha256_file(path)
        stamps.remember(_SHA256, known)
    return known


def _changed(
    folder: Path, listed: Mapping[str, FileEntry], digests: Mapping[str, Callable[[], str]]
) -> dict[str, str]:
    """Return the files whose digest is another one, all of them written again by their processor."""
    changed = {name: found for name, digest in digests.items() if (found := digest()) != listed[name].sha256}
    for name, digest in changed.items():
        path, expected = folder / name, listed[name].sha256
        if not _is_processor_with(path, name, expected):
            raise CheckpointFormatError(
                f"{path} has SHA-256 {digest[:16]}…, the ledger says {expected[:16]}…: it is truncated or was "
                "changed. Take an undamaged copy."
                + (" Another tokenizer or processor is not saved over a model's own." * is_processor_file(name))
            )
    return changed


def _is_processor_with(path: Path, name: str, digest: str) -> bool:
    """Whether a file has the content that was saved, and was only written again by its own `save_pretrained`."""
    if not is_processor_file(name) or path.suffix != ".json":
        return False
    try:
        return bool(sha256_hex(normalized_bytes(path)) == digest)
    except Exception:  # tokenizers raises nothing more special; what cannot be read is another file
        return False
