"""The ledger: who is merged, with digests, and the digests of all files of a saved model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import digest_json
from hf_clamu.merging import MergedState, TaskRecord

__all__ = ["LEDGER_NAME", "ledger_entries", "read_ledger", "records_of", "sealed"]

LEDGER_NAME = "ledger.json"


def ledger_entries(state: MergedState) -> dict[str, Any]:
    """Return the merged tasks as the ledger shows them.

    Args:
        state (`MergedState`): the merged state.

    Returns:
        *dict*: `parameters`, the names that take part, and `tasks`, per id the digests, example counts, cluster and
        `bounds` (`max |n_t|` in grid steps, in the order of `parameters`).
    """
    names = sorted(state.delta)
    cluster = {task_id: number for number, members in enumerate(state.clusters) for task_id in members}
    tasks = {task_id: {**record.to_dict(), "cluster": cluster[task_id]} for task_id, record in state.records.items()}
    return {"parameters": names, "tasks": tasks}


def records_of(ledger: Mapping[str, Any]) -> tuple[dict[str, TaskRecord], tuple[tuple[str, ...], ...]]:
    """Return the records and the clusters that a ledger holds.

    Raises:
        CheckpointFormatError: if an entry is missing or of the wrong kind.
    """
    try:
        names = ledger["parameters"]
        records = {task_id: TaskRecord.from_dict(entry, names) for task_id, entry in sorted(ledger["tasks"].items())}
        members: dict[int, list[str]] = {}
        for task_id in records:
            members.setdefault(int(ledger["tasks"][task_id]["cluster"]), []).append(task_id)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(
            f"{LEDGER_NAME} lacks an entry or has one of the wrong kind ({error!r}). Take an undamaged copy."
        ) from error
    if sorted(members) != list(range(len(members))):
        raise CheckpointFormatError(f"{LEDGER_NAME} numbers its clusters {sorted(members)}, expected 0, 1, 2, ….")
    return records, tuple(tuple(members[number]) for number in sorted(members))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger with the digest of its own content, so that damage shows on reading."""
    return {**content, "digest": digest_json(content)}


def read_ledger(path: Path) -> dict[str, Any]:
    """Read a ledger and check its own digest.

    Raises:
        CheckpointFormatError: if it is missing, not JSON, or changed.
    """
    ledger = read_json(path)
    content = {key: value for key, value in ledger.items() if key != "digest"}
    if ledger.get("digest") != digest_json(content):
        raise CheckpointFormatError(
            f"{path} was changed after it was written (its own digest does not match). Take an undamaged copy."
        )
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointFormatError: if the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointFormatError(
            f"{path} is missing. Expected a folder that ClamuModel.save_pretrained or `clamu train` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointFormatError(f"{path} cannot be read as JSON ({error}). Take an undamaged copy.") from error
    if not isinstance(value, dict):
        raise CheckpointFormatError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value
