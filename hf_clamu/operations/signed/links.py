"""A receipt as an in-toto statement in a DSSE envelope, and the file that has it.

What is known at once, and never changes, is the statement of the request. What is settled later (a vector destroyed in
an archive, rows in a snapshot, the history of a repository erased) is a statement of its own that follows it. So a
receipt may be amended, and no statement is ever replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_clamu.exact import canonical_json, digest_json
from hf_clamu.operations.lifecycle.receipts import is_receipt, receipt_stamp
from hf_clamu.signing import Envelope, Statement
from hf_clamu.storage import parse_json, read_bounded, write_atomically

__all__ = ["ENDING", "Link", "core_of", "facts_of"]

ENDING = ".dsse"
_MOST_BYTES = 1 << 26
_SUBJECT = "clamu-state"
_REQUEST, _SETTLED = "https://hf_clamu/receipt/v1", "https://hf_clamu/settled/v1"
# Fields of a receipt that are written after the request was carried out, or change then.
_LATER = ("archive", "snapshot", "erasure")
_DIGEST = re.compile("[0-9a-f]{64}")


def core_of(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is signed of a receipt at once: everything that is public and final."""
    return {key: value for key, value in receipt.items() if key not in (*_LATER, "private")}


def facts_of(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a receipt says that was settled after the request."""
    return {key: receipt[key] for key in _LATER if key in receipt}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A signed statement about a request, one of a chain.

    Args:
        receipt (*mapping*): the receipt without its private part and what is settled later; of a settling statement,
            of the request that it belongs to.
        previous (`str`, *optional*): digest of the statement before it; `None` for the first.
        facts (*mapping*, *optional*): what was settled; `None` for the statement of the request itself.
        keeps_source (`bool`): the model that was changed stays as it was, and the result is another copy.
        envelope (`Envelope`): the statement with its signatures.
    """

    receipt: Mapping[str, Any]
    previous: str | None
    facts: Mapping[str, Any] | None
    keeps_source: bool
    envelope: Envelope

    @classmethod
    def of_request(cls, receipt: Mapping[str, Any], previous: str | None, *, keeps_source: bool) -> Link:
        """Return the unsigned statement of a request."""
        core = core_of(receipt)
        predicate = {"receipt": core, "previous": previous, "source": "kept" if keeps_source else "replaced"}
        return cls._made(_REQUEST, core, predicate)

    @classmethod
    def of_facts(cls, receipt: Mapping[str, Any], previous: str | None) -> Link:
        """Return the unsigned statement of what a receipt says that was settled later."""
        core = core_of(receipt)
        return cls._made(_SETTLED, core, {"receipt": core, "previous": previous, "settled": facts_of(receipt)})

    @classmethod
    def _made(cls, kind: str, core: Mapping[str, Any], predicate: Mapping[str, Any]) -> Link:
        after = core["digests"]["after"]
        statement = Statement(name=_SUBJECT, sha256=after, predicate_type=kind, predicate=predicate)
        return cls.read(statement.envelope())

    @classmethod
    def read(cls, envelope: Envelope) -> Link:
        """Return the link that an envelope holds, whoever signed it.

        Raises:
            ValueError: if it holds none.
        """
        statement = Statement.of(envelope)
        kind, predicate = statement.predicate_type, statement.predicate
        receipt, previous = predicate.get("receipt"), predicate.get("previous")
        own = {_REQUEST: "source", _SETTLED: "settled"}.get(kind)
        if own is None or predicate.keys() != {"receipt", "previous", own}:
            raise ValueError("it is no statement about a request")
        facts = predicate["settled"] if own == "settled" else None
        if not isinstance(receipt, dict) or not isinstance(facts, dict | None):
            raise ValueError("it holds no receipt")
        if not is_receipt({**receipt, **(facts or {})}) or receipt != core_of(receipt):
            raise ValueError("it holds no receipt as it was written")
        if facts is None and predicate["source"] not in ("kept", "replaced"):
            raise ValueError("it does not say what became of the model before")
        if previous is not None and not (isinstance(previous, str) and _DIGEST.fullmatch(previous)):
            raise ValueError("it names no statement before it")
        if statement.sha256 != receipt["digests"]["after"]:
            raise ValueError("it is about another state than its receipt leads to")
        keeps_source = facts is None and predicate["source"] == "kept"
        return cls(receipt=receipt, previous=previous, facts=facts, keeps_source=keeps_source, envelope=envelope)

    @property
    def digest(self) -> str:
        """SHA-256 of the statement, by which the next one names it."""
        return self.envelope.digest

    @cached_property
    def core(self) -> str:
        """Digest of the receipt, without what is settled later."""
        return digest_json(dict(self.receipt))

    @property
    def is_request(self) -> bool:
        """Whether it is the statement of the request itself."""
        return self.facts is None

    @property
    def before(self) -> str:
        """State digest of the model that the request started from."""
        return str(self.receipt["digests"]["before"])

    @property
    def after(self) -> str:
        """State digest of the model that it led to."""
        return str(self.receipt["digests"]["after"])

    @property
    def file_name(self) -> str:
        """The name of its file, which comes from the statement."""
        kind = self.receipt["request"] if self.is_request else "settled"
        return f"{receipt_stamp(self.receipt)}-{kind}-{self.digest[:16]}{ENDING}"

    def write(self, folder: Path) -> Path:
        """Write its file and return the path; the same statement goes to the same file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        write_atomically(path, canonical_json(self.envelope.to_dict()))
        return path

    @classmethod
    def from_file(cls, path: Path) -> Link:
        """Return the link in a file.

        Raises:
            ValueError: if it is not, byte for byte, as `write` wrote it under this name.
            OSError: if it cannot be read.
        """
        data = read_bounded(path, _MOST_BYTES)
        envelope = Envelope.from_dict(parse_json(data))
        if canonical_json(envelope.to_dict()) != data:
            raise ValueError("its JSON is not as it was written")
        link = cls.read(envelope)
        if link.file_name != path.name:
            raise ValueError(f"it holds the statement of {link.file_name}")
        return link
