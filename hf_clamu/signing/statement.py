"""In-toto statements: what is said of which bytes.

Source: https://github.com/in-toto/attestation, Statement v1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_clamu.exact import canonical_json
from hf_clamu.signing.envelope import IN_TOTO, Envelope
from hf_clamu.storage import parse_json

__all__ = ["Statement"]

_TYPE = "https://in-toto.io/Statement/v1"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What is said of something.

    Args:
        name (`str`): of what it is about.
        sha256 (`str`): its digest, 64 hexadecimal digits.
        predicate_type (`str`): URI of what the predicate says.
        predicate (*mapping*): what is said.
    """

    name: str
    sha256: str
    predicate_type: str
    predicate: Mapping[str, Any]

    def envelope(self) -> Envelope:
        """Return it as bytes that can be signed; the same statement gives the same ones."""
        return Envelope(
            canonical_json(
                {
                    "_type": _TYPE,
                    "subject": [{"name": self.name, "digest": {"sha256": self.sha256}}],
                    "predicateType": self.predicate_type,
                    "predicate": dict(self.predicate),
                }
            )
        )

    @classmethod
    def of(cls, envelope: Envelope) -> Statement:
        """Return what an envelope holds.

        Raises:
            ValueError: if that is no in-toto statement of version 1 about one thing.
        """
        if envelope.payload_type != IN_TOTO:
            raise ValueError(f"it holds {envelope.payload_type!r}, expected {IN_TOTO!r}")
        value = parse_json(envelope.payload)
        if not isinstance(value, dict) or value.get("_type") != _TYPE:
            raise ValueError("it holds no in-toto statement of version 1")
        subjects, kind, predicate = (value.get(key) for key in ("subject", "predicateType", "predicate"))
        if not isinstance(kind, str) or not isinstance(predicate, dict):
            raise ValueError("its statement has no predicate")
        if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
            raise ValueError("its statement is not about one thing")
        name, digests = subjects[0].get("name"), subjects[0].get("digest")
        sha256 = digests.get("sha256") if isinstance(digests, dict) else None
        if not isinstance(name, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError("its statement does not say what it is about by SHA-256")
        return cls(name=name, sha256=sha256, predicate_type=kind, predicate=predicate)
