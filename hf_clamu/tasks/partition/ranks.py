"""Orders drawn by SHA-256, so that no random number generator's version can change a partition.

A rank depends on the row's number: the same rows in another order are cut otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_clamu.exact.digest import canonical_json, sha256_hex

__all__ = ["rank", "ranked", "task_names"]


def rank(value: Any, *salt: Any) -> str:
    return sha256_hex(canonical_json([*salt, value]))


def ranked(values: Sequence[Any], *salt: Any) -> list[Any]:
    return sorted(values, key=lambda value: rank(value, *salt))


def task_names(prefix: str, count: int) -> list[str]:
    width = max(2, len(str(count - 1)))
    return [f"{prefix}_{number:0{width}d}" for number in range(count)]
