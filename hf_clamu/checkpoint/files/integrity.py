"""The files of a folder, compared with what its ledger lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hf_clamu.checkpoint.layout import is_processor_file, refuse_unlisted, require_data_names
from hf_clamu.checkpoint.ledger import FileEntry
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import sha256_files, sha256_hex

__all__ = ["check_files"]

# Bytes. Files that a processor's own `save_pretrained` wrote again have another size than the recorded one.
_LARGEST_PROCESSOR_FILE = 2**28


def check_files(folder: Path, listed: Mapping[str, FileEntry]) -> frozenset[str]:
    """Compare a folder with the files that its ledger lists; return those that their processor has written again."""
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
    refuse_unlisted(folder, listed)
    digests = sha256_files(folder / name for name in listed)
    changed = {name: digest for name, digest in zip(listed, digests, strict=True) if digest != listed[name].sha256}
    for name, digest in changed.items():
        path, expected = folder / name, listed[name].sha256
        if not _is_processor_with(path, name, expected):
            raise CheckpointFormatError(
                f"{path} has SHA-256 {digest[:16]}…, the ledger says {expected[:16]}…: it is truncated or was "
                "changed. Take an undamaged copy."
                + (" Another tokenizer or processor is not saved over a model's own." * is_processor_file(name))
            )
    return frozenset(changed)


def _is_processor_with(path: Path, name: str, digest: str) -> bool:
    """Whether a file has the content that was saved, and was only written again by its own `save_pretrained`."""
    if not is_processor_file(name) or path.suffix != ".json":
        return False
    try:
        return bool(sha256_hex(normalized_bytes(path)) == digest)
    except Exception:  # tokenizers raises nothing more special; what cannot be read is another file
        return False
