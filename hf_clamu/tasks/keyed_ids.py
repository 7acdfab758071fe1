"""Keyed commitments to task ids, so that a ledger holds no names."""

from __future__ import annotations

import hmac

from hf_clamu.errors import RecipeError

__all__ = ["keyed_id"]


def keyed_id(key: str, task_id: str) -> str:
    """Return the keyed commitment to a task id: HMAC-SHA256, 64 hexadecimal digits.

    Raises:
        RecipeError: if the key is empty: everyone could compute such a commitment.
    """
    if not key:
        raise RecipeError("task_id_key is empty, so anybody could tell whose commitment is whose. Give a secret.")
    return hmac.new(key.encode("utf-8"), task_id.encode("utf-8"), "sha256").hexdigest()
