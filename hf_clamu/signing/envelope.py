"""DSSE, the Dead Simple Signing Envelope: bytes, what they are, and signatures of both.

Source: https://github.com/secure-systems-lab/dsse, protocol and envelope of version 1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hf_clamu.exact import sha256_hex
from hf_clamu.signing.keys import PublicKey, SigningKey

__all__ = ["IN_TOTO", "Envelope", "pre_authentication"]

IN_TOTO = "application/vnd.in-toto+json"


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (PAE): lengths come first, so that no two pairs give the same ones."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """Bytes with signatures; who signed is known only once a key was tried.

    Args:
        payload (`bytes`): what is signed.
        signatures (*tuple* of pairs of `str` and `bytes`): each with the id of its key, which may be empty.
        payload_type (`str`): media type of the payload, which is signed, too.
    """

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...] = ()
    payload_type: str = IN_TOTO

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payload: the same whoever signs it."""
        return sha256_hex(self.payload)

    def signed(self, key: SigningKey, *, names_key: bool = True) -> Envelope:
        """Return the envelope with one more signature.

        Args:
            key (`SigningKey`): that signs.
            names_key (`bool`): write the key's id beside the signature.
        """
        signature = key.sign(pre_authentication(self.payload_type, self.payload))
        entry = (key.public.key_id if names_key else "", signature)
        return replace(self, signatures=(*self.signatures, entry))

    def signer(self, keys: Iterable[PublicKey]) -> PublicKey | None:
        """Return the first of some keys whose owner signed this; `None` if none did."""
        data = pre_authentication(self.payload_type, self.payload)
        for key in keys:
            for key_id, signature in self.signatures:
                if key_id in ("", key.key_id) and key.verifies(signature, data):
                    return key
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the envelope as JSON has it."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": key_id, "sig": base64.b64encode(signature).decode()} for key_id, signature in self.signatures
            ],
        }

    @classmethod
    def from_dict(cls, value: Any) -> Envelope:
        """Return the envelope that a JSON value is.

        Raises:
            ValueError: if it is none.
        """
        if not isinstance(value, dict) or not isinstance(value.get("payloadType"), str):
            raise ValueError("it is no DSSE envelope")
        listed = value.get("signatures")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise ValueError("its signatures are no list of objects")
        signatures = []
        for entry in listed:
            key_id = entry.get("keyid") or ""
            if not isinstance(key_id, str):
                raise ValueError("the id of a key is no text")
            signatures.append((key_id, _decoded(entry.get("sig"))))
        return cls(_decoded(value.get("payload")), tuple(signatures), value["payloadType"])


def _decoded(text: Any) -> bytes:
    """Return the bytes of Base64, of the usual or the URL-safe alphabet; each has one spelling only.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(text, str):
        raise ValueError("there is no Base64 where the envelope needs it")
    usual = text.replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(usual, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it has damaged Base64: {error}") from error
    if base64.b64encode(data).decode() != usual:
        raise ValueError("it has Base64 of another spelling than encoders write")
    return data
