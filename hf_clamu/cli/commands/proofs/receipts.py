"""`clamu receipts`: what was done to a model, and whether it was signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.cli.options import Json, KeysToTrust, ModelToRead, Receipts
from hf_clamu.cli.output import emit, table
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.operations.signed.chain import Statements
    from hf_clamu.operations.signed.links import Link

__all__ = ["receipts"]


def receipts(folder: ModelToRead, key: KeysToTrust = None, receipts: Receipts = None, as_json: Json = False) -> None:
    """List the receipts that led to a saved model, and with --key check that all are signed and none is missing."""
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.hub.pull import resolve_folder
    from hf_clamu.operations.lifecycle.target import receipts_of
    from hf_clamu.operations.signed.chain import Statements
    from hf_clamu.operations.signed.checking import require_trusted
    from hf_clamu.signing import load_public_keys

    if receipts is not None and not receipts.is_dir():
        raise RecipeError(f"There is no folder {receipts}. Give the one that has the receipts (--receipts).")
    keys = load_public_keys(key) if key else ()
    model, place = resolve_folder(folder), receipts or receipts_of(folder)
    trusted = require_trusted(model, keys) if keys else None
    state = read_checkpoint(model).state_digest
    values: dict[str, Any] = {"model": folder, "state_digest": state, "receipt_dir": str(place), "checked": bool(keys)}
    if trusted is None:
        entries = _unchecked(Statements.read(place), state)
    else:
        path = trusted.check_receipts(state, place, keys, required=True) or []
        entries = [_entry(link.receipt, place / link.file_name, link) for link in path if link.is_request]
        values |= {"signature": str(trusted.signature), "key_id": trusted.key_id}
    values["receipts"] = entries
    emit(as_json, values, lambda: _text(values), quiet=[entry["file"] for entry in entries])


def _unchecked(statements: Statements, state: str) -> list[dict[str, Any]]:
    """Return what receipts say that lead to a state; anybody may have written them."""
    from hf_clamu.exact import digest_json
    from hf_clamu.operations.signed.chain import in_order
    from hf_clamu.operations.signed.links import core_of

    links = {link.core: link for link in statements.links.values() if link.is_request}
    found = [(path, statements.receipts[path]) for path in in_order(statements.receipts, state, ())]
    return [_entry(receipt, path, links.get(digest_json(core_of(receipt)))) for path, receipt in found]


def _entry(receipt: Mapping[str, Any], path: Path, link: Link | None) -> dict[str, Any]:
    signers = [] if link is None else [key_id for key_id, _ in link.envelope.signatures]
    return {
        "file": str(path),
        "time": receipt["time"],
        "request": receipt["request"],
        "id": receipt.get("id"),
        "num_commitments": len(receipt["tasks"]),
        "num_tasks": receipt["num_tasks"],
        "digests": receipt["digests"],
        "how": receipt["how"],
        "signed_by": signers,
    }


def _text(values: Mapping[str, Any]) -> str:
    entries = values["receipts"]
    count = f"{len(entries)} receipt{'s' * (len(entries) != 1)}"
    head = f"{values['model']}: {count} in {values['receipt_dir']}"
    unsigned = sum(not entry["signed_by"] for entry in entries)
    if values["checked"] and not entries:
        lines = [f"{head}; by its signature the model, which is as it was signed, has none."]
    elif values["checked"]:
        lines = [
            f"{head}, all signed with the key {values['key_id'][:16]}… or another trusted one.",
            "None is missing between them, and the last one leads to this model, which is as it was signed.",
        ]
    elif not entries:
        lines = [f"{head} lead to this model."]
    elif unsigned:
        lines = [f"{head}, {unsigned} of them unsigned: whoever can write the folder can write them (clamu sign)."]
    else:
        lines = [f"{head}. They have signatures, which were not checked: give a public key (--key)."]
    return "\n".join([*lines, f"state {values['state_digest']}", *_rows(entries)])


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            entry["time"][:19].replace("T", " "),
            entry["request"],
            str(entry["num_commitments"]),
            f"{entry['num_tasks']['before']} to {entry['num_tasks']['after']}",
            entry["digests"]["after"][:16],
            ", ".join(key_id[:8] for key_id in entry["signed_by"]) or "nobody",
        )
        for entry in entries
    ]
    columns = ("time (UTC)", "request", "named", "tasks", "leads to the state", "signed by")
    return ["", table(columns, rows, left=(0, 1, 3, 4, 5))] if rows else []
