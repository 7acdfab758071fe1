"""Signing a saved model, and what of its receipts is not signed yet."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.layout import SIGNATURE_NAME
from hf_clamu.errors import SignatureError
from hf_clamu.exact import digest_json
from hf_clamu.operations.lifecycle.receipts import receipt_path
from hf_clamu.operations.signed.chain import Pinned, Statements, in_order, require_signed
from hf_clamu.operations.signed.links import Link, core_of, facts_of
from hf_clamu.signing import PublicKey, SigningKey, claimed_folder, folder_bundle, require_files
from hf_clamu.storage import write_atomically
from hf_clamu.storage.staging import hidden_name

__all__ = [
    "Signed",
    "Signing",
    "carry_signature",
    "require_signer",
    "sign_model",
    "signature_beside",
    "signature_of",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What was signed.

    Args:
        signature (`Path`): file of the model's signature.
        key_id (`str`): of the key.
        new (*tuple* of `Path`): files of the statements that were written now.
        num_statements (`int`): statements that the model's signature counts.
    """

    signature: Path
    key_id: str
    new: tuple[Path, ...]
    num_statements: int


def signature_beside(folder: Path) -> Path:
    """Return the place of a saved model's signature; a link and its target have the same."""
    model = folder.resolve()
    return model.parent / hidden_name(model.name, ".sig").removeprefix(".")


def signature_of(folder: Path) -> Path | None:
    """Return the file with a saved model's signature: beside it, or inside as on the Hub; `None` if it has none."""
    return next((path for path in (signature_beside(folder), folder / SIGNATURE_NAME) if path.is_file()), None)


def carry_signature(source: Path | None, copy: Path) -> None:
    """Put the signature of a saved model into a copy of it, if it signs the copy's very files; otherwise warn.

    Args:
        source (`Path`, *optional*): folder of the model; nothing is done if it is not signed.
        copy (`Path`): folder of the copy.
    """
    place = None if source is None else signature_of(source)
    if place is None:
        return
    try:
        require_files(copy, claimed_folder(place), place)
    except SignatureError as error:
        _logger.warning("What is pushed is not signed, for the signature of %s does not fit it: %s", source, error)
        return
    (copy / SIGNATURE_NAME).write_bytes(place.read_bytes())


def sign_model(
    folder: Path,
    state: str,
    key: SigningKey,
    *,
    receipts: Path,
    keeps_source: bool = False,
    trusted: Sequence[PublicKey] = (),
) -> Signed:
    """Sign the receipts that led to a saved model and are not signed yet, and then the model; again changes nothing.

    A statement is written before the model's signature names it, so a process that dies in between leaves what the
    next call goes on from.

    Args:
        folder (`Path`): of the saved model; nobody may change it meanwhile.
        state (`str`): its state digest.
        key (`SigningKey`): that signs.
        receipts (`Path`): folder of the receipts, where their statements go, too.
        keeps_source (`bool`): the receipts that are signed now are of requests that left the model they started from
            as it was, because their result went to another folder.
        trusted (*sequence* of `PublicKey`): keys of those who signed before; their statements are signed once more.

    Raises:
        SignatureError: if the receipts do not lead from what was signed before to this model, one of them is missing,
            or somebody else signed.
        RecipeError: if the folder holds something that cannot be signed.
        OSError: if something cannot be written.
    """
    signing = Signing.begun(folder, state, key, receipts=receipts, keeps_source=keeps_source, trusted=trusted)
    written = signing.write_statements()
    place = signature_beside(folder)
    signing.sign(folder, place)
    place.chmod(0o644)  # it is for others
    return Signed(
        signature=place, key_id=key.public.key_id, new=tuple(written), num_statements=len(signing.statements)
    )


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What is about to be signed. A model that is pushed gets its signature before its receipts are written.

    Args:
        key (`SigningKey`): that signs.
        receipts (`Path`): folder of receipts and statements.
        state (`str`): state digest of the model.
        statements (*tuple* of `Link`): of the requests that led to it, the first ones first.
        unwritten (*tuple* of `Link`): those that this key has not signed yet.
    """

    key: SigningKey
    receipts: Path
    state: str
    statements: tuple[Link, ...]
    unwritten: tuple[Link, ...]

    @classmethod
    def begun(
        cls,
        folder: Path | None,
        state: str,
        key: SigningKey,
        *,
        receipts: Path,
        pending: Sequence[Mapping[str, Any]] = (),
        keeps_source: bool = False,
        trusted: Sequence[PublicKey] = (),
    ) -> Signing:
        """Find out what is to be signed; nothing is written.

        Args:
            folder (`Path`, *optional*): of the model, whose present signature says what was signed before.
            pending (*sequence* of *mapping*): receipts that are written once the model is pushed.
            state, key, receipts, keeps_source, trusted: as in `sign_model`, which also says what is raised.
        """
        keys = (key.public, *trusted)
        found = Statements.read(receipts)
        found.require_sound()
        # What is settled by the push is a statement of its own after it.
        waiting = {receipt_path(receipts, receipt): core_of(receipt) for receipt in pending}
        found = replace(found, receipts={**found.receipts, **waiting})
        pinned = None if folder is None else _pinned(folder, keys)
        if pinned is not None and _is_unwritten(found, state, pinned):
            pinned = None
        path = _signed_path(found, state, pinned)
        require_signed(path, keys, receipts)
        new = _unsigned(found, path, state, pinned, keeps_source=keeps_source)
        foreign = [link for link in path if link.envelope.signer([key.public]) is None]
        return cls(key=key, receipts=receipts, state=state, statements=(*path, *new), unwritten=(*foreign, *new))

    def sign(self, folder: Path, place: Path, *, name: str | None = None) -> None:
        """Write the signature of a model.

        Args:
            folder (`Path`): of the saved model.
            place (`Path`): the file of its signature.
            name (`str`, *optional*): what the model is called; by default as the folder.
        """
        notes = Pinned.of(self.state, self.statements).to_notes()
        write_atomically(place, folder_bundle(folder, self.key, name=name, notes=notes))

    def write_statements(self) -> list[Path]:
        """Write the statements that this key signs now, and return their files."""
        return [replace(link, envelope=link.envelope.signed(self.key)).write(self.receipts) for link in self.unwritten]

    def write_settled(self) -> list[Path]:
        """Write statements of what the receipts say by now that was settled, after those that are written."""
        found = Statements.read(self.receipts)
        new = _settled(found, self.statements)
        return [replace(link, envelope=link.envelope.signed(self.key)).write(self.receipts) for link in new]


def _pinned(folder: Path, keys: Sequence[PublicKey]) -> Pinned | None:
    """Return what the model's present signature says of receipts, although the model itself may have changed since.

    Raises:
        SignatureError: if it cannot be read, or somebody else signed it.
    """
    path = signature_of(folder)
    if path is None:
        return None
    claimed = claimed_folder(path, keys)
    if claimed.key is None:
        raise SignatureError(
            f"{path} was signed with another key ({claimed.key_id[:16]}…). Take that key; or sign once more what it "
            "signs with `clamu sign DIR --key NEW --trusted OLD`, where OLD is its public key; or delete the file, to "
            "begin a chain of receipts of your own."
        )
    return Pinned.from_notes(claimed.notes)


def require_signer(folder: Path, key: SigningKey) -> None:
    """Check that a signed model was signed with a key, before anything is changed that the key is to sign.

    Args:
        folder (`Path`): of the saved model; without a signature there is nothing to check.
        key (`SigningKey`): that will sign.

    Raises:
        SignatureError: if its signature cannot be read, or somebody else signed it.
    """
    _pinned(folder, [key.public])


def _is_unwritten(statements: Statements, state: str, pinned: Pinned) -> bool:
    """Whether a push signed statements that its process did not live to write; the same receipts give them again."""
    if pinned.last is None or pinned.last in statements.links:
        return False
    path = _signed_path(statements, state, None)
    return pinned.last in {link.digest for link in _unsigned(statements, path, state, None, keeps_source=False)}


def _signed_path(statements: Statements, state: str, pinned: Pinned | None) -> list[Link]:
    """Return the signed statements of a model, those included that its signature does not count yet."""
    leading = in_order(statements.receipts, state, ())
    cores = {digest_json(core_of(statements.receipts[one])) for one in leading}
    path = [] if pinned is None else statements.path_to(pinned.last)
    return statements.extended(path, cores) if path else statements.longest_path(cores)


def _unsigned(
    statements: Statements, path: Sequence[Link], state: str, pinned: Pinned | None, *, keeps_source: bool
) -> list[Link]:
    """Return the statements that are to be signed: of requests, and of what was settled since.

    Raises:
        SignatureError: if they do not lead from what is signed to the model.
    """
    receipts = statements.receipts
    files = in_order(receipts, state, {link.core for link in path})
    start = receipts[files[0]]["digests"]["before"] if files else state
    signed = path[-1].after if path else start if pinned is None else pinned.state
    if start != signed:
        raise SignatureError(
            f"What is signed ends at the state {signed[:16]}…, and the model is {state[:16]}…, to which no receipt in "
            f"{statements.folder} leads from there. If an older copy was brought back, take the newer one; if this is "
            "another model, delete the signature beside it, to begin a new chain."
        )
    whole = list(path)
    for file in files:
        is_last = receipts[file]["digests"]["after"] == state
        link = Link.of_request(receipts[file], _end(whole), keeps_source=keeps_source and is_last)
        whole.append(link)
    return [*whole[len(path) :], *_settled(statements, whole)]


def _settled(statements: Statements, path: Sequence[Link]) -> list[Link]:
    """Return the statements of what the receipts of a path say that was settled, and no statement says yet."""
    settled = {link.core: link.facts for link in path if link.facts is not None}
    by_core = {digest_json(core_of(receipt)): receipt for receipt in statements.receipts.values()}
    new: list[Link] = []
    for link in [link for link in path if link.is_request and link.core in by_core]:
        facts = facts_of(by_core[link.core])
        if facts and settled.get(link.core) != facts:
            new.append(Link.of_facts(by_core[link.core], _end([*path, *new])))
    return new


def _end(path: Sequence[Link]) -> str | None:
    return path[-1].digest if path else None
