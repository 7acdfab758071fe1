"""`clamu sign`: a signature beside a model, and a chain of its receipts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.options import Json, KeyToSign, ModelToRead, Receipts
from hf_clamu.cli.output import emit, note
from hf_clamu.cli.terminal.program import command_line
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.operations.signed.signing import Signed

__all__ = ["sign"]


def sign(
    folder: ModelToRead,
    key: KeyToSign = None,
    receipts: Receipts = None,
    trusted: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PEM",
            help="File of the public key of somebody who signed before, to sign the same once more; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a saved model and its receipts, so that others can check them without trusting who keeps them.

    The signature comes beside the folder (DIR.sig), in the format of OpenSSF Model Signing.
    """
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.operations.lifecycle.target import open_target
    from hf_clamu.operations.signed.signing import sign_model
    from hf_clamu.signing import load_public_key, load_signing_key

    if key is None:
        raise RecipeError("Give the private key that signs: --key PEM, or CLAMU_SIGNING_KEY.")
    if not Path(folder).is_dir():
        raise RecipeError(f"{folder} is no folder here: sign a folder, and push it; the signature goes with it.")
    signing_key, known = load_signing_key(key), list(map(load_public_key, trusted or ()))
    with open_target(folder, output=None, receipts=receipts, archive=None, say=note) as target:
        state = read_checkpoint(Path(folder)).state_digest
        signed = sign_model(Path(folder), state, signing_key, receipts=target.receipts, trusted=known)
    public = f"{key}.pub"
    openssl = shlex.join(["openssl", "pkey", "-in", str(key), "-pubout", "-out", public])
    place = [] if receipts is None else ["--receipts", str(receipts)]
    then = [openssl, command_line("receipts", folder, "--key", public, *place)]
    values = {"output": folder, **_values(signed)}
    emit(as_json, values, lambda: _text(folder, signed), quiet=[values["signature"]], then=then)


def _values(signed: Signed) -> dict[str, Any]:
    return {
        "signature": str(signed.signature),
        "key_id": signed.key_id,
        "statements": signed.num_statements,
        "new_statements": list(map(str, signed.new)),
    }


def _text(folder: str, signed: Signed) -> str:
    return "\n".join(
        [
            f"Signed {folder}: {signed.signature}",
            f"key {signed.key_id}",
            f"It counts {signed.num_statements} statements of receipts, {len(signed.new)} of them signed now.",
            "Give others the public key by a way of its own.",
        ]
    )
