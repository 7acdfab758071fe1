"""SHA-256 digests of JSON and tensors whose value depends on the content alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "TensorsDigest",
    "canonical_json",
    "contents_of",
    "digest_json",
    "digest_tensor",
    "digest_tensors",
    "sha256_file",
    "sha256_files",
    "sha256_hex",
]

_CHUNK_BYTES = 1 << 24
# Beyond this, memory is what they wait for.
_MOST_THREADS = 8
# From here on a tensor is worth a thread.
_BESIDE_BYTES = 1 << 18


def canonical_json(value: Any) -> bytes:
    """Write JSON that is the same bytes for the same value, in every process.

    Args:
        value (*JSON-able object*): NaN and infinities are refused, keys must be strings.

    Returns:
        `bytes`: UTF-8, keys sorted, two-space indent, one newline at the end.

    Example:

    ```python
    >>> canonical_json({"b": 1, "a": [0.25]}) == canonical_json({"a": [0.25], "b": 1})
    True

    ```
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)`."""
    return sha256_hex(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file, several at a time.

    Raises:
        OSError: if one cannot be read.
    """
    every = list(paths)
    with _threads(len(every)) as threads:
        return list(threads.map(sha256_file, every))


def _threads(most: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(most, os.cpu_count() or 1, _MOST_THREADS)), "clamu-digest")


def contents_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's values alone, computed several at a time."""
    with TensorsDigest() as digest:
        for name, tensor in tensors.items():
            digest.put(name, tensor)
        return digest.contents()


def digest_tensor(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of one tensor: dtype, shape and little-endian bytes.

    Args:
        tensor (`torch.Tensor` of any shape, dtype and device):
            Strides and device do not show in the digest.
    """
    return digest_tensors({"": tensor})


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of named tensors, whatever the order of the mapping.

    Args:
        tensors (*mapping* of `str` to `torch.Tensor` of any shape):
            Names, dtypes, shapes and values all count.

    Example:

    ```python
    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> digest_tensors({"a": a, "b": b}) == digest_tensors({"b": b, "a": a})
    True
    >>> digest_tensors({"a": a, "b": b}) == digest_tensors({"a": b, "b": a})
    False

    ```
    """
    with TensorsDigest() as digest:
        for name, tensor in tensors.items():
            digest.put(name, tensor)
        return digest.hexdigest()


class TensorsDigest:
    """The digest of named tensors that come one by one, see `digest_tensors`.

    It is the SHA-256 of a list: the header of each tensor and the SHA-256 of its values. So large tensors are read by
    other threads, several at a time and while the caller computes the next.
    """

    def __init__(self) -> None:
        self._headers: dict[str, bytes] = {}
        self._contents: dict[str, bytes | Future[bytes]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> TensorsDigest:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            # What has not begun is only left if somebody else has failed.
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, in any order; it must stay as it is until `hexdigest` has returned."""
        self._headers[name] = _header(name, tensor)
        if tensor.nbytes < _BESIDE_BYTES:
            self._contents[name] = _content(tensor)
            return
        self._threads = self._threads or _threads(_MOST_THREADS)
        self._contents[name] = self._threads.submit(_content, tensor)

    def contents(self) -> dict[str, str]:
        """Wait for what is still read, and return the SHA-256 of each tensor's values."""
        return {name: self._content_of(name).hex() for name in self._contents}

    def hexdigest(self) -> str:
        """Wait for what is still read, and return 64 hexadecimal digits."""
        parts = (self._headers[name] + self._content_of(name) for name in sorted(self._headers))
        return sha256_hex(b"".join(parts))

    def _content_of(self, name: str) -> bytes:
        found = self._contents[name]
        return found if isinstance(found, bytes) else found.result()


def _header(name: str, tensor: torch.Tensor) -> bytes:
    # The header is length-prefixed JSON, so no name or shape can imitate the bytes of a neighbour.
    header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode("utf-8")
    return len(header).to_bytes(8, "little") + header


def _content(tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256()
    for chunk in _raw_chunks(tensor):
        digest.update(chunk)
    return digest.digest()


def _raw_chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().reshape(-1)
    # Complex and quantised tensors do not occur; every other dtype has a byte view.
    step = max(1, _CHUNK_BYTES // tensor.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].cpu().contiguous()
        yield part.view(torch.uint8).numpy().data
