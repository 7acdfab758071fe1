"""What commands say of the signature of a model, and that they refuse one that a given key did not sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.errors import SignatureError

if TYPE_CHECKING:
    from hf_clamu.checkpoint.checkpoint import Checkpoint
    from hf_clamu.operations.signed.checking import TrustedModel
    from hf_clamu.signing import PublicKey

__all__ = ["Trusted", "signature_facts", "signature_line", "trusted_model"]


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """A model that is signed with one of the keys that a command was given.

    Args:
        model (`TrustedModel`): the model.
        keys (*sequence* of `PublicKey`): the keys.
    """

    model: TrustedModel
    keys: Sequence[PublicKey]


def trusted_model(folder: Path, key: Sequence[Path] | None) -> Trusted | None:
    """Check the files of a model against its signature; `None` if no key was given.

    Args:
        folder (`Path`): of the saved model.
        key (*sequence* of `Path`, *optional*): files of public keys.

    Raises:
        SignatureError: if the model is not signed with one of them, or not as it is.
    """
    if not key:
        return None
    from hf_clamu.checkpoint.files.integrity import file_digest
    from hf_clamu.operations.signed.checking import require_trusted
    from hf_clamu.signing import load_public_keys

    keys = load_public_keys(key)
    return Trusted(model=require_trusted(folder, keys, digest=file_digest), keys=keys)


def signature_facts(name: str, folder: Path, trusted: Trusted | None, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what is known of the signature of a model; `None` if it has none.

    Args:
        name (`str`): folder or Hub id.
        folder (`Path`): of the saved model.
        trusted (`Trusted`, *optional*): the model, if its files were checked.
        checkpoint (`Checkpoint`): what was read from it.

    Raises:
        SignatureError: if the signature is of another state, or a receipt beside the model is not as it was signed.
    """
    from hf_clamu.operations.lifecycle.target import receipts_of
    from hf_clamu.operations.signed.signing import signature_of
    from hf_clamu.signing import claimed_folder

    if trusted is None:
        path = signature_of(folder)
        if path is None:
            return None
        try:
            key_id = claimed_folder(path).key_id
        except SignatureError:  # nobody asked for it
            key_id = None
        return {"file": str(path), "key_id": key_id, "checked": False, "statements": None}
    model = trusted.model
    model.require_state(checkpoint)
    place = receipts_of(name)
    statements = model.check_receipts(checkpoint.state_digest, place, trusted.keys, required=False)
    return {
        "file": str(model.signature),
        "key_id": model.key_id,
        "checked": True,
        "statements": None if statements is None else len(statements),
    }


def signature_line(facts: Mapping[str, Any] | None) -> str:
    """Return one line about the signature of a model."""
    if facts is None:
        return "signature: none (clamu sign)"
    by = "nobody knows whom" if facts["key_id"] is None else f"key {facts['key_id'][:16]}…"
    if not facts["checked"]:
        return f"signature: {facts['file']}, said to be by {by}; not checked (--key PEM)"
    known = "receipts not at hand" if facts["statements"] is None else f"{facts['statements']} statements of receipts"
    return f"signature: {facts['file']} by {by}, checked, with {known}"
