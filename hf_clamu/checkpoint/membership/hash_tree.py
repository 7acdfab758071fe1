"""The Merkle tree of RFC 6962, section 2.1, with SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["audit_path", "leaf_hash", "path_root", "tree_root"]

_EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the 32 bytes that a leaf has in the tree."""
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """Return the largest power of two below a number of leaves, of which there are at least two."""
    power: int = 1 << ((count - 1).bit_length() - 1)
    return power


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of leaves (`MTH`); with none, the SHA-256 of nothing."""
    if not leaves:
        return _EMPTY
    # From the leaves up, pair by pair. Whatever has no partner goes up as it is: that gives the splits of the RFC.
    level = list(leaves)
    while len(level) > 1:
        pairs = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + ([level[-1]] if len(level) % 2 else [])
    return level[0]


def audit_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes that lead from a leaf to the root (`PATH`), the lowest first.

    Args:
        leaves (*sequence* of `bytes`): the hashes of all leaves.
        index (`int`): of the leaf, from 0.
    """
    path: list[bytes] = []
    start, end = 0, len(leaves)
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(tree_root(leaves[middle:end]))
            end = middle
        else:
            path.append(tree_root(leaves[start:middle]))
            start = middle
    return path[::-1]


def path_root(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that a path leads to; `None` if a tree of this size has no such path.

    Args:
        leaf (`bytes`): hash of the leaf.
        index (`int`): of the leaf, from 0.
        count (`int`): leaves of the tree.
        path (*sequence* of `bytes`): as `audit_path` returns it.
    """
    if not 0 <= index < count:
        return None
    is_left = []
    start, end = 0, count
    while end - start > 1:
        middle = start + _split(end - start)
        is_left.append(index < middle)
        start, end = (start, middle) if index < middle else (middle, end)
    if len(is_left) != len(path):
        return None
    root = leaf
    for left, other in zip(reversed(is_left), path, strict=True):
        root = _node(root, other) if left else _node(other, root)
    return root
