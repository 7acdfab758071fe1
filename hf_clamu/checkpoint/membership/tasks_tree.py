"""The Merkle tree of a ledger's tasks: the ledger's digest rests on its root, so a path proves one task alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from hf_clamu.checkpoint.membership.hash_tree import leaf_hash, tree_root
from hf_clamu.exact import canonical_json, digest_json

__all__ = [
    "id_hash",
    "ledger_digest_of",
    "rest_digest",
    "sealed_digest",
    "task_leaf",
    "task_leaves",
    "tasks_summary",
]


def id_hash(task_id: str) -> bytes:
    """Return the 32 bytes by which tasks are sorted in the tree: a leaf shows neither the id nor the entry."""
    return hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).digest()


def task_leaf(id_digest: bytes, entry_digest: bytes) -> bytes:
    """Return the hash of the leaf of a task.

    Args:
        id_digest (`bytes`): see `id_hash`.
        entry_digest (`bytes`): the SHA-256 of its entry in the ledger, as canonical JSON.
    """
    return leaf_hash(id_digest + entry_digest)


def task_leaves(tasks: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the digest of the id and that of the entry of each task, in the order of the tree.

    Raises:
        ValueError: if an entry holds what no JSON can.
    """
    return sorted((id_hash(one), hashlib.sha256(canonical_json(entry)).digest()) for one, entry in tasks.items())


def tasks_summary(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands for the tasks where a ledger's digest is computed: how many there are, and their root."""
    root = tree_root([task_leaf(*pair) for pair in task_leaves(tasks)])
    return {"count": len(tasks), "root": root.hex()}


def rest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything in a ledger but its tasks and its own digest."""
    return digest_json({key: value for key, value in content.items() if key not in ("tasks", "digest")})


def ledger_digest_of(rest: str, tasks: Mapping[str, Any]) -> str:
    """Return a ledger's digest from what stands for its parts.

    Args:
        rest (`str`): see `rest_digest`.
        tasks (*mapping*): see `tasks_summary`.
    """
    return digest_json({"rest": rest, "tasks": {"count": tasks["count"], "root": tasks["root"]}})


def sealed_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a ledger: of a root over its tasks and of a digest of all else.

    So a proof of one task shows neither other tasks nor the rest. In formats 1 to 3 it is the SHA-256 of the content.

    Args:
        content (*mapping*): everything in it but its `digest`.

    Raises:
        ValueError: if it holds what no JSON can.
    """
    tasks, version = content.get("tasks"), content.get("format_version")
    if isinstance(tasks, dict) and not (type(version) is int and version < 4):
        return ledger_digest_of(rest_digest(content), tasks_summary(tasks))
    return digest_json(dict(content))
