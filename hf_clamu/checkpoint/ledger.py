"""The ledger: who is merged, with digests, and the digests of all files of a saved model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.membership.tasks_tree import sealed_digest
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.merging import MergedState, TaskRecord

__all__ = [
    "LEDGER_NAME",
    "FileEntry",
    "ledger_digest",
    "ledger_entries",
    "listed_files",
    "read_json",
    "read_ledger",
    "records_of",
    "require_sealed",
    "sealed",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Bytes, and depth of nested lists and objects: more than any model needs, and within what Python can parse.
_LARGEST_JSON = 2**30
_DEEPEST_JSON = 64
_NESTING = {dict, list}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a ledger says of a file.

    Args:
        sha256 (`str`): digest of its bytes.
        size (`int`): number of its bytes.
    """

    sha256: str
    size: int


def ledger_entries(state: MergedState) -> dict[str, Any]:
    """Return the merged tasks as the ledger shows them.

    Args:
        state (`MergedState`): the merged state.

    Returns:
        *dict*: `parameters`, the names that take part, and `tasks`, per id the digests, example counts, cluster and
        `bounds` (`max |n_t|` in grid steps, in the order of `parameters`).
    """
    names = sorted(state.delta)
    cluster = state.cluster_numbers()
    tasks = {task_id: {**record.to_dict(), "cluster": cluster[task_id]} for task_id, record in state.records.items()}
    return {"parameters": names, "tasks": tasks}


def records_of(ledger: Mapping[str, Any]) -> tuple[dict[str, TaskRecord], tuple[tuple[str, ...], ...]]:
    """Return the records and the clusters that a ledger holds.

    Raises:
        CheckpointFormatError: if an entry is missing or of the wrong kind.
    """
    try:
        names = ledger["parameters"]
        for entry in ledger["tasks"].values():
            _check_entry(entry)
        records = {task_id: TaskRecord.from_dict(entry, names) for task_id, entry in sorted(ledger["tasks"].items())}
        members: dict[int, list[str]] = {}
        for task_id in records:
            members.setdefault(ledger["tasks"][task_id]["cluster"], []).append(task_id)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(
            f"{LEDGER_NAME} lacks an entry or has one of the wrong kind ({error!r}). Take an undamaged copy."
        ) from error
    if sorted(members) != list(range(len(members))):
        raise CheckpointFormatError(f"{LEDGER_NAME} numbers its clusters {sorted(members)}, expected 0, 1, 2, ….")
    return records, tuple(tuple(members[number]) for number in sorted(members))


def _check_entry(entry: Mapping[str, Any]) -> None:
    counts = [entry["num_train"], entry["num_validation"], entry["cluster"], *entry["bounds"]]
    if set(map(type, counts)) != {int} or min(counts) < 0:
        raise ValueError("a count, a bound or a cluster is no whole number from 0 on")
    digests = [entry["vector_digest"], *([] if entry["data_digest"] is None else [entry["data_digest"]])]
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError("a digest is not 64 hexadecimal digits")
    if not isinstance(entry["cluster_key"], str | None):
        raise ValueError("a cluster_key is no text")


def listed_files(folder: Path, ledger: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Return the files that a ledger lists, sorted by name.

    Args:
        folder (`Path`): where the ledger is.
        ledger (*mapping*): its content.

    Raises:
        CheckpointFormatError: if there is no such list, or an entry is of the wrong kind.
    """
    files = ledger.get("files")
    if not isinstance(files, dict):
        raise CheckpointFormatError(f"{folder / LEDGER_NAME} lists no files. Take an undamaged copy.")
    entries = {}
    for name, entry in sorted(files.items()):
        digest, size = (entry.get("sha256"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise CheckpointFormatError(
                f"{folder / LEDGER_NAME} has no SHA-256 or no size of {name!r}. Take an undamaged copy."
            )
        entries[name] = FileEntry(digest, size)
    return entries


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger with the digest of its own content, so that damage shows on reading."""
    return {**content, "digest": sealed_digest(content)}


def ledger_digest(folder: Path) -> str:
    """Return the digest that a saved model's ledger says it has: of everything in it but the card.

    Raises:
        CheckpointFormatError: if there is no ledger, or it cannot be read.
    """
    return str(read_json(folder / LEDGER_NAME).get("digest"))


def read_ledger(folder: Path) -> dict[str, Any]:
    """Return the content of a saved model's ledger, with its `digest`, which is checked.

    Args:
        folder (`Path`): of the saved model.

    Raises:
        CheckpointFormatError: if it is missing, not JSON, or changed.
    """
    path = folder / LEDGER_NAME
    ledger = read_json(path)
    require_sealed(path, ledger)
    return ledger


def require_sealed(path: Path, ledger: Mapping[str, Any]) -> None:
    """Check that a ledger has the digest of its own content.

    Args:
        path (`Path`): where it was read, for the message.
        ledger (*mapping*): its content.

    Raises:
        CheckpointFormatError: if it was changed.
    """
    content = {key: value for key, value in ledger.items() if key != "digest"}
    try:
        digest = sealed_digest(content)
    except (ValueError, RecursionError) as error:  # NaN, or half of a surrogate pair
        raise CheckpointFormatError(f"{path} holds what no ledger has ({error}). Take an undamaged copy.") from error
    if ledger.get("digest") != digest:
        raise CheckpointFormatError(
            f"{path} was changed after it was written (its own digest does not match). Take an undamaged copy."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object with suspicion: it may be huge, deeply nested, or no JSON at all.

    Raises:
        CheckpointFormatError: if the file is missing or holds something else.
    """
    if not path.is_file():
        raise CheckpointFormatError(
            f"{path} is missing. Expected a folder that ClamuModel.save_pretrained or `clamu train` wrote."
        )
    try:
        with path.open("rb") as file:
            if path.stat().st_size > _LARGEST_JSON or not _is_braced(file):
                raise ValueError("it is no JSON object, or too large for one")
            value = json.loads(file.read(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        depth = _depth(value)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{path} cannot be read as JSON ({error}). Take an undamaged copy.") from error
    if not isinstance(value, dict) or depth > _DEEPEST_JSON:
        raise CheckpointFormatError(
            f"{path} holds a {type(value).__name__} of depth {depth}, expected a JSON object. Take an undamaged copy."
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers differ in which of them they take
        raise ValueError("it has a key twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_braced(file: BinaryIO) -> bool:
    """Whether a file starts and ends as a JSON object does; one with a hole at its end does not."""
    start = file.read(64)
    file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
    end = file.read()
    file.seek(0)
    return start.lstrip()[:1] in (b"{", b"[") and end.rstrip()[-1:] in (b"}", b"]")


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested."""
    level, depth = [value] if type(value) in _NESTING else [], 0
    while level and depth <= _DEEPEST_JSON:
        held = [outer.values() if type(outer) is dict else outer for outer in level]
        # Most lists are long and hold numbers alone.
        level = [inner for one in held if _NESTING & set(map(type, one)) for inner in one if type(inner) in _NESTING]
        depth += 1
    return depth
