"""Proofs that a task is, or is not, in a ledger; they show no other task.

A proof leads from a leaf to the ledger's digest. That a task is not there is shown by the two leaves between which it
would stand. A leaf shows two digests: of an id and of an entry.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from hf_clamu.checkpoint.membership.hash_tree import audit_path, path_root
from hf_clamu.checkpoint.membership.tasks_tree import (
    id_hash,
    ledger_digest_of,
    rest_digest,
    task_leaf,
    task_leaves,
    tasks_summary,
)
from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.exact import canonical_json

__all__ = ["check_membership", "prove_membership"]

_KIND = "hf_clamu task membership 1"
_HEX = re.compile(r"[0-9a-f]{64}")
_KEYS = {"proof", "task", "is_merged", "ledger_digest", "rest", "tasks", "leaves"}


def prove_membership(ledger: Mapping[str, Any], task_id: str, *, keyed: bool) -> dict[str, Any]:
    """Return a proof that a task is in a ledger, or that it is not.

    Args:
        ledger (*mapping*): its content with its `digest`, as `read_ledger` returns it.
        task_id (`str`): the id as the ledger has it; where ids are keyed, the keyed one.
        keyed (`bool`): whether ids are keyed. Digests of plain ids can be guessed, so a proof that a task is absent,
            which shows those of two others, is made with keyed ids alone.

    Returns:
        *dict*: JSON-able. `entry` is the task's own, if it is there.

    Raises:
        CheckpointFormatError: if the ledger is of format 1 to 3, whose digests rest on no tree.
        RecipeError: if ids are plain and the task is absent.
    """
    if int(ledger["format_version"]) < 4:
        raise CheckpointFormatError(
            f"This ledger is of format {ledger['format_version']}, and a proof for one task needs format 4. Save the "
            "model again: ClamuModel.from_pretrained(DIR).save_pretrained(DIR)."
        )
    tasks, wanted = ledger["tasks"], id_hash(task_id)
    pairs = task_leaves(tasks)
    place = bisect_left(pairs, (wanted, b""))
    if task_id not in tasks and not keyed:
        raise RecipeError(
            f"No merged task is called {task_id!r}. A proof of that would show digests of two other ids, which can be "
            "guessed: it is made for models with keyed ids alone (see keyed task ids in the docs). `clamu info` and "
            "the ledger itself show who is merged."
        )
    shown = [place] if task_id in tasks else [at for at in (place - 1, place) if 0 <= at < len(pairs)]
    leaves = [task_leaf(*pair) for pair in pairs]
    proof = {
        "proof": _KIND,
        "task": task_id,
        "is_merged": task_id in tasks,
        "ledger_digest": ledger["digest"],
        "rest": rest_digest(ledger),
        "tasks": tasks_summary(tasks),
        "leaves": [
            {
                "index": at,
                "id": pairs[at][0].hex(),
                "entry": pairs[at][1].hex(),
                "path": [one.hex() for one in audit_path(leaves, at)],
            }
            for at in shown
        ],
    }
    return {**proof, "entry": tasks[task_id]} if task_id in tasks else proof


def check_membership(proof: Mapping[str, Any], ledger_digest: str | None = None) -> bool:
    """Check a proof, and return whether it shows that the task is merged.

    Args:
        proof (*mapping*): of any origin.
        ledger_digest (`str`, *optional*): that the proof must lead to, from a source that is trusted. Without it only
            the proof's own is compared.

    Raises:
        CheckpointFormatError: if it is no sound proof, or one for another ledger.
    """
    if not _is_formed(proof):
        raise _unsound("it is not what `clamu prove` writes")
    if ledger_digest_of(proof["rest"], proof["tasks"]) != proof["ledger_digest"]:
        raise _unsound("its parts do not give the digest of the ledger that it names")
    if ledger_digest is not None and proof["ledger_digest"] != ledger_digest:
        raise _unsound(f"it is for the ledger {proof['ledger_digest'][:16]}…, not for {ledger_digest[:16]}…")
    count, root = proof["tasks"]["count"], bytes.fromhex(proof["tasks"]["root"])
    for leaf in proof["leaves"]:
        path = [bytes.fromhex(one) for one in leaf["path"]]
        hashed = task_leaf(bytes.fromhex(leaf["id"]), bytes.fromhex(leaf["entry"]))
        if path_root(hashed, leaf["index"], count, path) != root:
            raise _unsound("a path in it does not lead to the root of the ledger's tasks")
    is_shown = _shows_entry(proof) if proof["is_merged"] else _shows_gap(proof)
    if not is_shown:
        raise _unsound(f"its leaves do not show that the task is {'' if proof['is_merged'] else 'not '}merged")
    return bool(proof["is_merged"])


def _shows_entry(proof: Mapping[str, Any]) -> bool:
    if len(proof["leaves"]) != 1 or not isinstance(proof.get("entry"), dict):
        return False
    (leaf,) = proof["leaves"]
    try:
        entry = hashlib.sha256(canonical_json(proof["entry"])).hexdigest()
    except (ValueError, RecursionError):  # nested more deeply than any entry is
        return False
    return bool(leaf["id"] == id_hash(proof["task"]).hex() and leaf["entry"] == entry)


def _shows_gap(proof: Mapping[str, Any]) -> bool:
    """Whether the leaves are neighbours in the tree, or at its end, and the task would stand between them."""
    count, wanted = proof["tasks"]["count"], id_hash(proof["task"]).hex()
    lower = [leaf for leaf in proof["leaves"] if leaf["id"] < wanted]
    upper = [leaf for leaf in proof["leaves"] if leaf["id"] > wanted]
    if len(lower) > 1 or len(upper) > 1 or len(lower) + len(upper) != len(proof["leaves"]):
        return False
    place = lower[0]["index"] + 1 if lower else 0
    return bool(upper[0]["index"] == place) if upper else place == count


def _is_formed(proof: Any) -> bool:
    if not isinstance(proof, Mapping) or not _KEYS <= proof.keys() <= _KEYS | {"entry"} or proof["proof"] != _KIND:
        return False
    tasks, leaves = proof["tasks"], proof["leaves"]
    if not isinstance(tasks, dict) or tasks.keys() != {"count", "root"} or not _is_count(tasks["count"]):
        return False
    if not isinstance(leaves, list) or not all(map(_is_leaf, leaves)) or not isinstance(proof["task"], str):
        return False
    return isinstance(proof["is_merged"], bool) and all(
        map(_is_hex, (proof["ledger_digest"], proof["rest"], tasks["root"]))
    )


def _is_leaf(leaf: Any) -> bool:
    if not isinstance(leaf, dict) or leaf.keys() != {"index", "id", "entry", "path"} or not _is_count(leaf["index"]):
        return False
    path = leaf["path"]
    return isinstance(path, list) and all(map(_is_hex, (leaf["id"], leaf["entry"], *path)))


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _unsound(reason: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"The proof shows nothing: {reason}. Ask for one that `clamu prove` makes.")
