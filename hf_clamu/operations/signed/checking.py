"""A saved model and its receipts, compared with what was signed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.errors import SignatureError
from hf_clamu.exact import digest_json
from hf_clamu.operations.lifecycle.receipts import lineage
from hf_clamu.operations.signed.chain import Pinned, Statements, require_signed
from hf_clamu.operations.signed.links import ENDING, Link, core_of, facts_of
from hf_clamu.operations.signed.signing import signature_beside, signature_of
from hf_clamu.signing import PublicKey, SignedFolder, checked_folder
from hf_clamu.storage.replace import finish_replacement

__all__ = ["TrustedModel", "checked_receipts", "require_trusted"]


@dataclass(frozen=True, kw_only=True)
class TrustedModel:
    """A saved model whose files are, byte for byte, what the owner of a trusted key signed.

    Args:
        folder (`Path`): of the model.
        signature (`Path`): file of its signature.
        signed (`SignedFolder`): what that says.
    """

    folder: Path
    signature: Path
    signed: SignedFolder

    @property
    def key_id(self) -> str:
        """Id of the key that signed it."""
        return "" if self.signed.key is None else self.signed.key.key_id

    def require_state(self, checkpoint: Checkpoint) -> None:
        """Check that what was read from the folder is what was signed.

        Raises:
            SignatureError: if the signature leaves out a part of the model, or is of another state.
        """
        listed = {} if checkpoint.files is None else checkpoint.files.entries
        left_out = sorted({LEDGER_NAME, *listed} - self.signed.files.keys())
        if left_out:
            raise SignatureError(
                f"{self.signature} does not sign {left_out[0]}, which is a part of the model. Do not use this copy: "
                "take one that was signed as a whole."
            )
        pinned = Pinned.from_notes(self.signed.notes)
        if pinned is not None and pinned.state != checkpoint.state_digest:
            raise SignatureError(
                f"{self.signature} says that it is of the state {pinned.state[:16]}…, and this model is "
                f"{checkpoint.state_digest[:16]}…. Do not use this copy, and ask who signed it."
            )

    def check_receipts(
        self, state: str, receipts: Path, keys: Sequence[PublicKey], *, required: bool
    ) -> list[Link] | None:
        """Compare the receipts of the model with what was signed.

        Args:
            state (`str`): state digest of the model.
            receipts (`Path`): their folder.
            keys (*sequence* of `PublicKey`): that are trusted.
            required (`bool`): refuse a folder that has none of them. A model may travel without its receipts.

        Returns:
            *list* of `Link`: the statements that led to the model, the first ones first; `None` if they are not at
            hand, or the signature says nothing of them.

        Raises:
            SignatureError: as `checked_receipts`.
        """
        pinned = Pinned.from_notes(self.signed.notes)
        if pinned is None:
            if required:
                raise SignatureError(
                    f"{self.signature} says nothing of receipts: another program wrote it. Sign the model with clamu "
                    "sign to count them, too."
                )
            return None
        statements = Statements.read(receipts)
        known = {*statements.links, *(link.previous for link in statements.links.values())}
        if not required and pinned.count and not {pinned.first, pinned.last} & known:
            return None
        return checked_receipts(statements, pinned, state, keys)


def require_trusted(
    folder: Path, keys: Sequence[PublicKey], *, digest: Callable[[Path], str] | None = None
) -> TrustedModel:
    """Check that the files of a saved model are what the owner of a trusted key signed.

    Args:
        folder (`Path`): of the model.
        keys (*sequence* of `PublicKey`): that are trusted.
        digest (*callable*, *optional*): gives the SHA-256 of a file.

    Raises:
        SignatureError: if the model is not signed, by another key, or not as it is.
    """
    finish_replacement(folder)
    path = signature_of(folder)
    if path is None:
        raise SignatureError(
            f"{folder} is not signed: there is no {signature_beside(folder)}, and no model.sig inside. Get the "
            "signature from who made the model (clamu sign writes it), or load it without trusted keys."
        )
    signed = checked_folder(folder, path, keys, **({} if digest is None else {"digest": digest}))
    return TrustedModel(folder=folder, signature=path, signed=signed)


def checked_receipts(statements: Statements, pinned: Pinned, state: str, keys: Sequence[PublicKey]) -> list[Link]:
    """Return the signed statements of the requests that led to a model, the first ones first, if nothing is amiss.

    Args:
        statements (`Statements`): what the folder of receipts holds.
        pinned (`Pinned`): what the model's signature says of them.
        state (`str`): state digest of the model.
        keys (*sequence* of `PublicKey`): that are trusted.

    Raises:
        SignatureError: if a file was edited or exchanged, a statement is missing, nobody trusted signed it, it does
            not follow the one before it or lead to this model, a newer one goes on from this model or follows one
            that is gone, or a receipt beside it was edited, replayed, dropped or added.
    """
    statements.require_sound()
    if pinned.state != state:
        raise SignatureError(
            f"The signature counts the receipts of the state {pinned.state[:16]}…, and this model is {state[:16]}…: "
            "sign the model again, or take the copy that was signed."
        )
    path = statements.path_to(pinned.last)
    whole = statements.extended(path, ())  # what was settled after the model was signed
    require_signed(whole, keys, statements.folder)
    if Pinned.of(state, path) != pinned:
        raise SignatureError(
            f"The signature counts {pinned.count} statements, and {len(path)} lead to its last one in "
            f"{statements.folder}. Ask who signed it."
        )
    _require_continuous(whole, state, statements.folder)
    _require_no_gap(statements, keys)
    _require_no_fork(statements, whole, state, keys)
    _require_same_receipts(statements, whole, state, keys)
    return whole


def _require_continuous(path: Sequence[Link], state: str, folder: Path) -> None:
    requests = [link for link in path if link.is_request]
    for earlier, later in itertools.pairwise(requests):
        together = later.receipt["num_requests"] > 1 and later.receipt["digests"] == earlier.receipt["digests"]
        if later.before != earlier.after and not together:
            raise SignatureError(
                f"{folder / later.file_name} starts from the state {later.before[:16]}…, and the receipt before it "
                f"leads to {earlier.after[:16]}…: something in between was left out. Ask who signed it."
            )
    if requests and requests[-1].after != state:
        raise SignatureError(
            f"{folder / requests[-1].file_name}, the last receipt, leads to the state {requests[-1].after[:16]}…, and "
            f"this model is {state[:16]}…: it is no receipt of this model. Ask who signed it."
        )


def _require_no_gap(statements: Statements, keys: Sequence[PublicKey]) -> None:
    """Refuse a folder in which a signed statement follows one that is gone: the gap may hide a newer model."""
    for link in statements.links.values():
        before = link.previous
        if before is not None and before not in statements.links and link.envelope.signer(keys) is not None:
            raise SignatureError(
                f"A receipt is missing in {statements.folder}: {link.file_name} follows the statement "
                f"{before[:16]}…, which is not there. Bring back its file (…{before[:16]}{ENDING}), or move out of "
                "the folder what belongs to another model."
            )


def _require_no_fork(statements: Statements, path: Sequence[Link], state: str, keys: Sequence[PublicKey]) -> None:
    """Refuse a model that an earlier state was brought back of: another request goes on from there."""
    others: list[Link] = []
    for link, own in itertools.zip_longest(path, path[1:]):
        leaves_source = own is not None and own.keeps_source
        others += [
            other
            for other in statements.following(link.digest)
            if other.is_request and other != own and not other.keeps_source and not leaves_source
        ]
    if not path:
        others = [link for link in statements.following(None) if link.before == state and not link.keeps_source]
    require_signed([link for link in others if path], keys, statements.folder)
    for other in others:
        if other.envelope.signer(keys) is not None:
            raise SignatureError(
                f"This model is older than its receipts: {statements.folder / other.file_name} goes on from a state "
                f"before it, {other.before[:16]}…, and is none of those that led to it. Take the newer model; or give "
                "a copy that was kept on purpose a folder of receipts of its own (--receipts)."
            )


def _require_same_receipts(
    statements: Statements, path: Sequence[Link], state: str, keys: Sequence[PublicKey]
) -> None:
    """Refuse receipts beside the statements that say something else, or are not signed although they lead here."""
    cores = {file: digest_json(core_of(receipt)) for file, receipt in statements.receipts.items()}
    trusted = [link for link in statements.links.values() if link.envelope.signer(keys) is not None]
    signed = {link.core for link in trusted}
    for file in lineage(statements.receipts, state):
        if cores[file] not in signed:
            raise SignatureError(
                f"{file} leads to this model and is not signed: it was edited, or added. clamu sign signs it if it is "
                "yours; otherwise move it out of the folder."
            )
    own = {link.core: link for link in path if link.is_request}
    count = Counter(core for core in cores.values() if core in own)
    for core, link in own.items():
        if count[core] > 1:
            raise SignatureError(
                f"{statements.folder} has {count[core]} receipts of the request of {link.receipt['time']}: an older "
                "one was put back. Delete those that say less."
            )
        if count and not count[core]:
            raise SignatureError(
                f"{statements.folder} lacks the receipt of {link.file_name}, and has others: it was deleted or "
                "edited. Bring it back, or show the signed statements alone."
            )
    for file, core in cores.items():
        if core in own and not _is_settled(facts_of(statements.receipts[file]), core, path, trusted):
            raise SignatureError(
                f"{file} says of archive, snapshot or erasure what the last signed statement about it does not: it "
                "was edited or put back, or amended since. clamu sign signs it if it is yours."
            )


def _is_settled(facts: object, core: str, path: Sequence[Link], trusted: Collection[Link]) -> bool:
    """Whether facts are those of the last statement about a receipt, here or in the chain of another copy."""
    last: object = {}
    for link in path:
        if link.core == core and link.facts is not None:
            last = dict(link.facts)
    here = {link.digest for link in path}
    elsewhere = [link.facts for link in trusted if link.core == core and link.digest not in here]
    return facts == last or facts in [dict(one) for one in elsewhere if one is not None]
