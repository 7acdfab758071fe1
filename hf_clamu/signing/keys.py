"""Keys in PEM files: Ed25519, and ECDSA on the curves P-256 and P-384.

They come from the package `cryptography`, an extra that is imported where a key is first needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError

__all__ = [
    "PASSWORD_VARIABLE",
    "KeySource",
    "PublicKey",
    "SigningKey",
    "load_public_key",
    "load_public_keys",
    "load_signing_key",
]

PASSWORD_VARIABLE = "CLAMU_SIGNING_PASSWORD"
_CURVES = {"secp256r1": "ECDSA P-256", "secp384r1": "ECDSA P-384"}
_KINDS = "Ed25519, or ECDSA on P-256 or P-384"
_BEGIN = "-----BEGIN"
_MOST_BYTES = 1 << 16

# A file, or the text of one.
KeySource = str | Path | bytes


@dataclass(frozen=True)
class PublicKey:
    """A key that tells whether its owner signed something.

    Args:
        key: a public key of `cryptography`.
    """

    key: Any

    @cached_property
    def pem(self) -> bytes:
        """The key as a PEM file has it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        pem: bytes = self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    @cached_property
    def key_id(self) -> str:
        """SHA-256 of the PEM file, 64 hexadecimal digits: the hint that OpenSSF Model Signing writes."""
        return hashlib.sha256(self.pem).hexdigest()

    @property
    def kind(self) -> str:
        """The algorithm, as people call it."""
        return _kind(self.key)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the owner of this key signed these bytes.

        Args:
            signature (`bytes`): 64 of them for Ed25519, DER for ECDSA.
            data (`bytes`): what was signed.
        """
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, data, *_algorithm(self.key))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A key that signs.

    Args:
        key: a private key of `cryptography`.
    """

    key: Any

    @cached_property
    def public(self) -> PublicKey:
        """What others check its signatures with."""
        return PublicKey(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of bytes."""
        signature: bytes = self.key.sign(data, *_algorithm(self.key))
        return signature


def load_signing_key(source: KeySource) -> SigningKey:
    """Return a private key; the password of an encrypted file comes from `CLAMU_SIGNING_PASSWORD`.

    Args:
        source (`str`, `Path` or `bytes`): a PEM file, or its text.

    Raises:
        RecipeError: if it cannot be read, is a public key or of another kind, or `cryptography` is not installed.
    """
    return SigningKey(_loaded(source, is_private=True))


def load_public_key(source: KeySource) -> PublicKey:
    """Return a public key.

    Args:
        source (`str`, `Path` or `bytes`): a PEM file, or its text.

    Raises:
        RecipeError: if it cannot be read, is a private key or of another kind, or `cryptography` is not installed.
    """
    return PublicKey(_loaded(source, is_private=False))


def load_public_keys(sources: Iterable[KeySource] | KeySource) -> tuple[PublicKey, ...]:
    """Return public keys.

    Raises:
        RecipeError: as `load_public_key`, or if there is none.
    """
    if isinstance(sources, (str, bytes, Path)):
        sources = [sources]
    keys = tuple(map(load_public_key, sources))
    if not keys:
        raise RecipeError("No key is trusted, so nothing could be accepted: give a PEM file of a public key.")
    return keys


def require_cryptography() -> None:
    """Refuse to go on without the package `cryptography`.

    Raises:
        RecipeError: if it is not installed.
    """
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401 - is it there?
    except ImportError:
        raise RecipeError(
            "Signatures need the package cryptography, which is not installed: pip install 'hf-clamu[proof]'."
        ) from None


def _loaded(source: KeySource, *, is_private: bool) -> Any:
    """Return a key of `cryptography` of the half that is asked for."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    name, data = _read(source)
    has_private = b"PRIVATE KEY-----" in data
    if has_private and not is_private:
        raise RecipeError(
            f"{name} is a private key, and checking needs the public one. Write it with `openssl pkey -in {name} "
            "-pubout -out key.pub`, and give the private key to nobody."
        )
    if is_private and not has_private:
        what = "a public key" if b"PUBLIC KEY-----" in data else "no PEM file of a private key"
        raise RecipeError(
            f"{name} is {what}, and signing needs a private one. Make one with `openssl ecparam -name prime256v1 "
            "-genkey -noout -out key.pem`, and keep it away from the model."
        )
    key: Any
    try:
        try:
            key = load_pem_private_key(data, None) if is_private else load_pem_public_key(data)
        except TypeError:  # it is encrypted
            if not is_private:
                raise
            key = load_pem_private_key(data, _password(name))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        half, also = "public", ""
        if is_private:
            half, also = "private", f", and its own password in {PASSWORD_VARIABLE} if it is encrypted"
        raise RecipeError(
            f"The {half} key {name} cannot be read ({_one_line(error)}): expected an undamaged PEM file{also}."
        ) from error
    _require_kind(key.public_key() if is_private else key, name)
    return key


def _read(source: KeySource) -> tuple[str, bytes]:
    """Return what a key is called in messages, and its PEM text."""
    if isinstance(source, bytes):
        return "the given key", source
    if isinstance(source, str) and source.lstrip().startswith(_BEGIN):
        return "the given key", source.encode()
    path = Path(source)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path} is no key: expected a PEM file of a few hundred bytes.")
        return str(path), path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"The key {path} cannot be read ({error.strerror or error}): give the name of a PEM file."
        ) from error


def _password(name: str) -> bytes:
    given = os.environ.get(PASSWORD_VARIABLE, "")
    if not given:
        raise RecipeError(
            f"The private key {name} is encrypted: set {PASSWORD_VARIABLE} to its password, and repeat the command."
        )
    return given.encode()


def _kind(key: Any) -> str:
    """Return what a public key is called; "" for one of a kind that is not used here."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(key, Ed25519PublicKey):
        return "Ed25519"
    return _CURVES.get(key.curve.name, "") if isinstance(key, EllipticCurvePublicKey) else ""


def _require_kind(key: Any, name: str) -> None:
    if not _kind(key):
        curve = getattr(getattr(key, "curve", None), "name", None)
        found = type(key).__name__.lstrip("_").removesuffix("PublicKey") + (f" on {curve}" if curve else "")
        raise RecipeError(f"{name} is a key of another kind ({found}): expected {_KINDS}.")


def _algorithm(key: Any) -> tuple[Any, ...]:
    """Return what `sign` and `verify` of an ECDSA key take besides the data; Ed25519 has it built in."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384

    if not hasattr(key, "curve"):
        return ()
    return (ECDSA(SHA256() if key.curve.key_size == 256 else SHA384()),)


def _one_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
