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
    "digest_each",
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


def digest_each(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return `digest_tensor` of each tensor, computed several at a time."""
    with _threads(len(tensors)) as threads:
        return dict(zip(tensors, threads.map(digest_tensor, tensors.values()), strict=True))


def _threads(most: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(most, os.cpu_count() or 1, _MOST_THREADS)), "clamu-digest")


def digest_tensor(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of one tensor: dtype, shape and little-endian bytes.

    Args:
        tensor (`torch.Tensor` of any shape, dtype and device):
            Strides and device do not show in the digest.
    """
    digest = hashlib.sha256()
    digest.update(_header("", tensor))
    for chunk in _raw_chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


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
    digest = TensorsDigest(tensors)
    for name, tensor in tensors.items():
        digest.put(name, tensor)
    return digest.hexdigest()


class TensorsDigest:
    """The digest of named tensors that come one by one, see `digest_tensors`.

    Large ones are read by a thread of its own, while the caller computes the next.

    Args:
        names (*iterable* of `str`): of all tensors that will come.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._left = sorted(names, reverse=True)
        self._early: dict[str, torch.Tensor] = {}
        self._digest = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._reading: list[Future[None]] = []

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, in any order; it must stay as it is until `hexdigest` has returned."""
        self._early[name] = tensor
        while self._left and self._left[-1] in self._early:
            name = self._left.pop()
            tensor = self._early.pop(name)
            if self._thread is None and tensor.nbytes < _BESIDE_BYTES:
                self._read(name, tensor)
                continue
            self._thread = self._thread or ThreadPoolExecutor(1, "clamu-digest")
            self._reading.append(self._thread.submit(self._read, name, tensor))

    def hexdigest(self) -> str:
        """Wait for what is still read, and return 64 hexadecimal digits."""
        assert not self._left, "every tensor came"
        self.close()
        for done in self._reading:
            done.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread; what it has not begun to read is left out."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=bool(self._left))
            self._thread = None

    def _read(self, name: str, tensor: torch.Tensor) -> None:
        self._digest.update(_header(name, tensor))
        for chunk in _raw_chunks(tensor):
            self._digest.update(chunk)


def _header(name: str, tensor: torch.Tensor) -> bytes:
    # The header is length-prefixed JSON, so no name or shape can imitate the bytes of a neighbour.
    header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode("utf-8")
    return len(header).to_bytes(8, "little") + header


def _raw_chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().reshape(-1)
    # Complex and quantised tensors do not occur; every other dtype has a byte view.
    step = max(1, _CHUNK_BYTES // tensor.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].cpu().contiguous()
        yield part.view(torch.uint8).numpy().data
