"""Receipts: what an auditor gets of a request, kept outside the saved model.

A receipt is checked in itself whenever it is read: its fields, the hash in its file's name, and its commitments
against ids and salts. That finds damage and edits by mistake. It is no signature: who can write the folder can write
receipts. Signatures are beside them, see `hf_clamu/operations/signed`.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.exact import canonical_json, digest_json
from hf_clamu.storage import read_json, write_atomically

__all__ = [
    "PENDING",
    "amended",
    "amending_marker",
    "amendments",
    "commitment",
    "forgotten_in",
    "is_receipt",
    "lineage",
    "listed",
    "make_receipt",
    "read_receipt",
    "read_receipts",
    "receipt_path",
    "receipt_stamp",
    "require_no_link",
    "salted_ids",
    "write_receipt",
]

# What a receipt says of archived vectors, or rows of a snapshot, that are not destroyed yet.
PENDING = "to be destroyed"
_PRIVATE = "private"
# By how many tasks the model changes for each that is named.
_KINDS = {"unmerge": -1, "add": 1, "update": 0}
_MOST_BYTES = 1 << 26
_AMENDING = re.compile(r"\.(\d{8}T\d{6}-[a-z]+-)([0-9a-f]{8})\.([0-9a-f]{8})\.amending")


def commitment(salt: str, task_id: str) -> str:
    """Return the SHA-256 that commits to a task id without showing it.

    Args:
        salt (`str`): 32 hexadecimal digits, drawn for each receipt and task.
        task_id (`str`): the id as the ledger has it; where ids are keyed, the keyed one.
    """
    return hashlib.sha256(bytes.fromhex(salt) + task_id.encode("utf-8")).hexdigest()


def make_receipt(
    request: str,
    task_ids: Sequence[str],
    *,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    effect: Callable[[Callable[[str], str]], Mapping[str, Any]] | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Make the receipt of a request that was carried out.

    Args:
        request (`str`): `"unmerge"`, `"add"` or `"update"`.
        task_ids (*sequence* of `str`): the tasks it named.
        recipe (*mapping*): the settings of the build.
        facts (*mapping*): digests before and after, environment, durations in seconds.
        effect (*callable*, *optional*): gives what it changes for other tasks, from what stands for an id: a
            commitment under one salt of its own.
        request_id (`str`, *optional*): what the request is called.

    Returns:
        *dict*: everything under `private` (ids and salts) is to be removed before the receipt is shown to others;
        the owner of a task can check their commitment with id and salt.
    """
    salts = {task_id: secrets.token_hex(16) for task_id in task_ids}
    private: dict[str, Any] = {"salts": salts}
    if effect is not None:
        private["effect_salt"] = secrets.token_hex(16)
        facts = {**facts, "effect": dict(effect(partial(commitment, private["effect_salt"])))}
    return {
        "request": request,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tasks": sorted(commitment(salt, task_id) for task_id, salt in salts.items()),
        "recipe_digest": digest_json(dict(recipe)),
        **({} if request_id is None else {"id": request_id}),
        **facts,
        "private": private,
    }


def receipt_path(folder: Path, receipt: Mapping[str, Any]) -> Path:
    """Return the file that a receipt is written to: its name comes from its public content.

    Without its part `private`, which commitments in the public part cover, it keeps its name.
    """
    public = {key: value for key, value in receipt.items() if key != _PRIVATE}
    return folder / f"{receipt_stamp(receipt)}-{receipt['request']}-{digest_json(public)[:8]}.json"


def receipt_stamp(receipt: Mapping[str, Any]) -> str:
    """Return the time of a receipt as the names of files have it."""
    return str(receipt["time"]).replace(":", "").replace("-", "")[:15]


def require_no_link(folder: Path) -> None:
    """Refuse a folder of receipts that nobody named, if it is a link: it may have come with the model."""
    if folder.is_symlink():
        raise RecipeError(
            f"{folder} is a symbolic link, and receipts go there because it is beside the model. Name the folder that "
            "is meant with --receipts."
        )


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
    write_atomically(path, canonical_json(receipt))
    return path


def salted_ids(receipt: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return task id to salt; None if the private part was removed."""
    private = receipt.get(_PRIVATE)
    return None if private is None else private["salts"]


def forgotten_in(receipts: Mapping[Path, Mapping[str, Any]], task_id: str) -> Path | None:
    """Return the newest receipt that says that a task was forgotten, by its private part; `None` if none says so.

    Args:
        receipts (*mapping* of `Path` to *mapping*): by their files.
        task_id (`str`): the id as the ledger had it.
    """
    requests = [
        (receipt["time"], path)
        for path, receipt in receipts.items()
        if receipt["request"] == "unmerge" and task_id in (salted_ids(receipt) or ())
    ]
    return max(requests)[1] if requests else None


def read_receipts(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the receipts in a folder by their files; whatever is not a receipt as it was written is passed over.

    So is one that an amended one takes the place of, if the process that amended it did not live to delete it.
    """
    # One listing: an amendment that goes on meanwhile is seen before or after, never as two receipts.
    names = listed(folder)
    found = {}
    for name in names:
        if name.endswith(".json") and (value := read_receipt(folder / name)) is not None:
            found[folder / name] = value
    for name in amended(names, lambda name: found.get(folder / name)):
        del found[folder / name]
    return found


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Return the receipt in a file; `None` if there is none as it was written."""
    try:
        value = read_json(path, _MOST_BYTES)
    except (OSError, ValueError):
        return None
    return value if is_receipt(value) and receipt_path(path.parent, value) == path else None


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def amendments(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the amendments that are going on, or whose process died: a marker, the old file and the new one.

    Args:
        names (*iterable* of `str`): in a folder of receipts.
    """
    found = [match for match in map(_AMENDING.fullmatch, names) if match is not None]
    # None takes the place of itself: such a marker came from elsewhere, and its receipt would be deleted.
    found = [match for match in found if match[2] != match[3]]
    return [(match[0], f"{match[1]}{match[2]}.json", f"{match[1]}{match[3]}.json") for match in found]


def amended(names: Iterable[str], read: Callable[[str], Mapping[str, Any] | None]) -> set[str]:
    """Return the files of receipts that others took the place of.

    Args:
        names (*iterable* of `str`): in a folder of receipts.
        read (*callable*): gives the receipt in a file; `None` if there is none.
    """

    def is_replaced(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
        # They are of one request, as commitments have salts of their own.
        return old is not None and new is not None and bool(old["tasks"] == new["tasks"])

    return {old for _, old, new in amendments(names) if is_replaced(read(old), read(new))}


def amending_marker(old: Path, new: Path) -> Path:
    """Return the file that says that one receipt takes the place of another, which differs in its digest."""
    return old.with_name(f".{old.stem}.{new.stem[-8:]}.amending")


def is_receipt(value: Any) -> bool:
    """Whether a JSON value has the fields of a receipt, each of its kind, and commitments that fit ids and salts."""
    if not isinstance(value, dict) or not value.keys() >= _REQUIRED or not value.keys() <= _CHECKS.keys():
        return False
    if not all(_CHECKS[key](field) for key, field in value.items()):
        return False
    salts, tasks, count = salted_ids(value), value["tasks"], value["num_tasks"]
    if salts is not None and sorted(commitment(salt, task_id) for task_id, salt in salts.items()) != tasks:
        return False
    grown = count["after"] - count["before"]
    return bool(value["num_requests"] > 1) or bool(grown == _KINDS[value["request"]] * len(tasks))


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 1 << 63


def _is_time(value: Any) -> bool:
    if not _matches(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+00:00")(value):
        return False
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:  # such as a 13th month
        return False
    return True


def _has(value: Any, keys: Sequence[str], check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and sorted(value) == sorted(keys) and all(map(check, value.values()))


def _is_private(value: Any) -> bool:
    if not isinstance(value, dict) or not {"salts"} <= value.keys() <= {"salts", "effect_salt"}:
        return False
    salts, effect_salt = value["salts"], value.get("effect_salt", _NO_SALT)
    return isinstance(salts, dict) and all(map(_is_salt, (*salts.values(), effect_salt)))


def _is_effect(value: Any) -> bool:
    """Whether it has the counts that are shown, and names nobody."""
    if not isinstance(value, dict) or not all(_is_count(value.get(key)) for key in _EFFECT_COUNTS):
        return False
    entries = (value.get("tasks"), "task"), (value.get("clusters"), "cluster")
    return _has(value.get("num_bytes"), ("before", "after"), _is_count) and all(
        isinstance(found, list) and all(isinstance(one, dict) and _is_digest(one.get(key)) for one in found)
        for found, key in entries
    )


# Of receipts from before there were effects.
_NO_SALT = "0" * 32
_EFFECT_COUNTS = ("num_retained", "num_changed", "num_moved", "num_scored", "num_unscored")
_is_digest, _is_salt, _is_word = _matches("[0-9a-f]{64}"), _matches("[0-9a-f]{32}"), _matches("[a-z_]+")
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "request": lambda value: isinstance(value, str) and value in _KINDS,
    "time": _is_time,
    "tasks": lambda value: isinstance(value, list) and all(map(_is_digest, value)) and value == sorted(set(value)),
    "recipe_digest": _is_digest,
    "id": lambda value: isinstance(value, str) and value != "",
    "digests": lambda value: _has(value, ("before", "after"), _is_digest),
    "environment": lambda value: value is None or isinstance(value, dict),
    "localized_in": lambda value: isinstance(value, dict),
    "how": _is_word,
    "num_requests": lambda value: _is_count(value, 1),
    "num_tasks": lambda value: _has(value, ("before", "after"), _is_count),
    "seconds": lambda value: isinstance(value, dict) and all(type(one) in (int, float) for one in value.values()),
    "vectors_from": lambda value: value == "archive",
    "archive": lambda value: value in (PENDING, "destroyed", "kept", "written"),
    "snapshot": lambda value: value in (PENDING, "destroyed", "kept", "written"),
    "erasure": lambda value: isinstance(value, dict),
    "effect": _is_effect,
    _PRIVATE: _is_private,
}
# Receipts are kept for years, and those of today lack what comes later: a new field is never required.
_REQUIRED = frozenset(
    (
        "request",
        "time",
        "tasks",
        "recipe_digest",
        "digests",
        "environment",
        "how",
        "num_requests",
        "num_tasks",
        "seconds",
    )
)


def lineage(receipts: Mapping[Path, Mapping[str, Any]], state: str) -> dict[Path, Mapping[str, Any]]:
    """Return the receipts of the requests that led to a state, the last ones first.

    Args:
        receipts (*mapping* of `Path` to *mapping*): receipts of any models.
        state (`str`): state digest of a model.
    """
    leading: dict[str, list[Path]] = {}
    for path, receipt in sorted(receipts.items(), key=lambda item: str(item[1].get("time")), reverse=True):
        leading.setdefault(receipt["digests"]["after"], []).append(path)
    reached, seen, found = [state], {state}, {}
    for digest in reached:
        for path in leading.get(digest, ()):
            found[path] = receipts[path]
            before = receipts[path]["digests"]["before"]
            if before not in seen:
                seen.add(before)
                reached.append(before)
    return found
