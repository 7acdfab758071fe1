"""SHA-256 digests of JSON and tensors whose value depends on the content alone."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_clamu.exact.threads import SizedThreadPool

__all__ = [
    "canonical_json",
    "digest_json",
    "digest_tensors",
    "sha256_file",
    "sha256_files",
    "sha256_hex",
    "value_digest",
    "value_digests",
]

CHUNK_BYTES = 1 << 24
_PLAIN = {str, int, float, bool, type(None)}


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
    return (_indented(value, "\n") + "\n").encode("utf-8")


def _indented(value: Any, newline: str) -> str:
    """Return what `json.dumps` returns with an indent of two spaces, several times as fast.

    With an indent the standard library writes each number by itself, in Python. Here its C encoder writes whatever
    holds no lists or objects, with line breaks as separators.
    """
    is_object = isinstance(value, dict)
    if not value or not (is_object or isinstance(value, list | tuple)):
        return _encoder().encode(value)
    if is_object and set(map(type, value)) != {str}:
        return _encoder(indent=2).encode(value).replace("\n", newline)
    inner = f"{newline}  "
    if set(map(type, value.values() if is_object else value)) <= _PLAIN:
        text = _encoder(f",{inner}").encode(value)
        return f"{text[0]}{inner}{text[1:-1]}{newline}{text[-1]}"
    if is_object:
        parts = (f"{_encoder().encode(key)}: {_indented(value[key], inner)}" for key in sorted(value))
        return f"{{{inner}{f',{inner}'.join(parts)}{newline}}}"
    return f"[{inner}{f',{inner}'.join(_indented(one, inner) for one in value)}{newline}]"


@functools.cache
def _encoder(separator: str = ",", indent: int | None = None) -> json.JSONEncoder:
    separators = None if indent else (separator, ": ")
    return json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


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
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file, several at a time.

    Raises:
        OSError: if one cannot be read.
    """
    with SizedThreadPool() as pool:
        results = [pool.submit(path.stat().st_size, sha256_file, path) for path in paths]
        return [result() for result in results]


def value_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Return the `value_digest` of each tensor, computed several at a time."""
    with SizedThreadPool() as pool:
        results = {name: pool.submit(tensor.nbytes, value_digest, tensor) for name, tensor in tensors.items()}
        return {name: result() for name, result in results.items()}


def digest_tensors(tensors: Mapping[str, torch.Tensor], digests: Mapping[str, bytes] | None = None) -> str:
    """Return the SHA-256 of named tensors, whatever the order of the mapping.

    It is the SHA-256 of a list: the header of each tensor and the SHA-256 of its values. So tensors can be read
    several at a time.

    Args:
        tensors (*mapping* of `str` to `torch.Tensor` of any shape): names, dtypes, shapes and values (as little-endian
            bytes) count; strides and devices do not.
        digests (*mapping* of `str` to `bytes`, *optional*): the `value_digest` of each, to avoid hashing twice.

    Example:

    ```python
    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> digest_tensors({"a": a, "b": b}) == digest_tensors({"b": b, "a": a})
    True
    >>> digest_tensors({"a": a, "b": b}) == digest_tensors({"a": b, "b": a})
    False

    ```
    """
    digests = value_digests(tensors) if digests is None else digests
    return sha256_hex(b"".join(_header(name, tensors[name]) + digests[name] for name in sorted(tensors)))


def value_digest(tensor: torch.Tensor) -> bytes:
    """Return the 32 bytes of the SHA-256 of a tensor's values alone."""
    digest = hashlib.sha256()
    for chunk in _raw_chunks(tensor):
        digest.update(chunk)
    return digest.digest()


def _header(name: str, tensor: torch.Tensor) -> bytes:
    # The header is length-prefixed JSON, so no name or shape can imitate the bytes of a neighbour.
    header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode("utf-8")
    return len(header).to_bytes(8, "little") + header


def _raw_chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().reshape(-1)
    # Complex and quantised tensors do not occur; every other dtype has a byte view.
    step = max(1, CHUNK_BYTES // tensor.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].cpu().contiguous()
        yield part.view(torch.uint8).numpy().data
