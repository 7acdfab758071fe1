"""Receipts: what an auditor gets of a request, kept outside the saved model."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.exact import canonical_json, digest_json

__all__ = ["commitment", "lineage", "make_receipt", "read_receipts", "receipt_path", "write_receipt"]

_KINDS = ("unmerge", "add", "update")


def commitment(salt: str, task_id: str) -> str:
    """Return the SHA-256 that commits to a task id without showing it.

    Args:
        salt (`str`): 32 hexadecimal digits, drawn for each receipt and task.
        task_id (`str`): the id.
    """
    return hashlib.sha256(bytes.fromhex(salt) + task_id.encode("utf-8")).hexdigest()


def make_receipt(
    request: str,
    task_ids: Sequence[str],
    *,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    request_id: str | None = None,
) -> dict[str, Any]:
    """Make the receipt of a request that was carried out.

    Args:
        request (`str`): `"unmerge"`, `"add"` or `"update"`.
        task_ids (*sequence* of `str`): the tasks it named.
        recipe (*mapping*): the settings of the build.
        facts (*mapping*): digests before and after, environment, durations in seconds.
        request_id (`str`, *optional*): what the request is called.

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
        **({} if request_id is None else {"id": request_id}),
        **facts,
        "private": {"salts": salts},
    }


def receipt_path(folder: Path, receipt: Mapping[str, Any]) -> Path:
    """Return the file that a receipt is written to: its name comes from its content."""
    stamp = str(receipt["time"]).replace(":", "").replace("-", "")[:15]
    return folder / f"{stamp}-{receipt['request']}-{hashlib.sha256(canonical_json(receipt)).hexdigest()[:8]}.json"


def write_receipt(folder: Path, receipt: Mapping[str, Any], *, ending: str = "") -> Path:
    """Write a receipt to a file of its own and return its path; the same receipt goes to the same file.

    Args:
        folder (`Path`): made if there is none.
        receipt (*mapping*): the receipt.
        ending (`str`, *optional*): added to the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = receipt_path(folder, receipt)
    path = path.with_name(path.name + ending)
    # Not a random name: what a killed writer leaves is overwritten when the receipt is written after all.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(canonical_json(receipt))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def read_receipts(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the receipts in a folder by their files; files of another kind are passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_bytes())
            digests = value["digests"]
            is_receipt = value["request"] in _KINDS and isinstance(digests["before"], str) and digests["after"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_receipt:
            found[path] = value
    return found


def lineage(receipts: Mapping[Path, Mapping[str, Any]], state: str) -> dict[Path, Mapping[str, Any]]:
    """Return the receipts of the requests that led to a state, the last ones first.

    Args:
        receipts (*mapping* of `Path` to *mapping*): receipts of any models.
        state (`str`): state digest of a model.
    """
    reached, found = [state], {}
    for digest in reached:
        for path, receipt in sorted(receipts.items(), key=lambda item: str(item[1].get("time")), reverse=True):
            if path not in found and receipt["digests"]["after"] == digest:
                found[path] = receipt
                if receipt["digests"]["before"] not in reached:
                    reached.append(receipt["digests"]["before"])
    return found
