"""What ties tensors to the files that hold them, recorded at a save: so a load hashes each byte once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_clamu.checkpoint.layout import BASE_FOLDER, DELTA_INDEX_NAME, DELTA_NAME, rule_of
from hf_clamu.exact import digest_json

__all__ = ["PROOFS_KEY", "base_values_of", "is_proven_delta", "proofs"]

# In the ledger.
PROOFS_KEY = "tensors"


def proofs(
    digests: Mapping[str, str], delta_digest: str, base_values: Mapping[str, bytes] | None
) -> dict[str, dict[str, Any]]:
    """Return what the ledger says of the tensors in files.

    Args:
        digests (*mapping* of `str` to `str`): the SHA-256 of each file of the model.
        delta_digest (`str`): of the merged delta.
        base_values (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the values of each weight of an
            embedded base model, as it was loaded from the files.
    """
    found: dict[str, dict[str, Any]] = {"delta": {"digest": delta_digest, "files": _delta_files(digests)}}
    if base_values is not None:
        values = {name: value.hex() for name, value in base_values.items()}
        found["base_model"] = {"files": _base_files(digests), "values": values}
    return found


def is_proven_delta(ledger: Mapping[str, Any], digests: Mapping[str, str], delta_digest: str) -> bool:
    """Whether the files of the delta are those that were recorded to hold tensors of this digest.

    Args:
        ledger (*mapping*): content of the ledger.
        digests (*mapping* of `str` to `str`): the SHA-256 of each file that it lists.
        delta_digest (`str`): that the configuration names.
    """
    recorded = _recorded(ledger, "delta")
    return recorded.get("digest") == delta_digest and recorded.get("files") == _delta_files(digests)


def base_values_of(ledger: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, bytes] | None:
    """Return the SHA-256 of each weight of an embedded base model, if its files are those that were recorded.

    Args:
        ledger, digests: as above.
    """
    recorded = _recorded(ledger, "base_model")
    values = recorded.get("values")
    if not isinstance(values, dict) or recorded.get("files") != _base_files(digests):
        return None
    try:
        return {name: bytes.fromhex(value) for name, value in values.items()}
    except (TypeError, ValueError):
        return None


def _recorded(ledger: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Return an entry of a ledger; without a sound one the tensors are hashed."""
    entries = ledger.get(PROOFS_KEY)
    entry = entries.get(what) if isinstance(entries, dict) else None
    return entry if isinstance(entry, dict) else {}


def _delta_files(digests: Mapping[str, str]) -> str:
    rule = rule_of(DELTA_INDEX_NAME)
    return digest_json({name: digests[name] for name in digests if name == DELTA_NAME or rule_of(name) is rule})


def _base_files(digests: Mapping[str, str]) -> str:
    return digest_json({name: digests[name] for name in digests if name.startswith(f"{BASE_FOLDER}/")})
