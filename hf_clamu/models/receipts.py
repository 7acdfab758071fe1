"""Receipts: what an auditor gets of a forgetting, kept outside the saved model."""

from __future__ import annotations

import datetime
import hashlib
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.exact import canonical_json, digest_json

__all__ = ["commitment", "make_receipt", "write_receipt"]


def commitment(salt: str, task_id: str) -> str:
    """Return the SHA-256 that commits to a task id without showing it.

    Args:
        salt (`str`): 32 hexadecimal digits, drawn for each receipt and task.
        task_id (`str`): the id.
    """
    return hashlib.sha256(bytes.fromhex(salt) + task_id.encode("utf-8")).hexdigest()


def make_receipt(
    request: str, task_ids: Sequence[str], *, recipe: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the receipt of a request that was carried out.

    Args:
        request (`str`): `"unmerge"` or `"add"`.
        task_ids (*sequence* of `str`): the tasks it named.
        recipe (*mapping*): the settings of the build.
        facts (*mapping*): digests before and after, environment, durations in seconds.

    Returns:
        *dict*: everything under `private` (ids and salts) is to be removed before the receipt is shown to others;
        the owner of a task can check their commitment with id and salt.
    """
    salts = {task_id: secrets.token_hex(16) for task_id in task_ids}
    return {
        "request": request,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tasks": sorted(commitment(salt, task_id) for task_id, salt in salts.items()),
        "recipe_digest": digest_json(dict(recipe)),
        **facts,
        "private": {"salts": salts},
    }


def write_receipt(folder: Path, receipt: Mapping[str, Any]) -> Path:
    """Write a receipt to a file of its own and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = canonical_json(receipt)
    stamp = str(receipt["time"]).replace(":", "").replace("-", "")[:15]
    path = folder / f"{stamp}-{receipt['request']}-{hashlib.sha256(data).hexdigest()[:8]}.json"
    handle, partial = tempfile.mkstemp(prefix=".receipt.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path
