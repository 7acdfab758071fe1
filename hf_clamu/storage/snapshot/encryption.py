"""Encrypting the files of a snapshot: AES-256-GCM, with a key that the environment gives and nothing keeps."""

from __future__ import annotations

import os
import re
import secrets

from hf_clamu.errors import RecipeError

__all__ = ["KEY_VARIABLE", "MAGIC", "decrypted", "encrypted", "environment_key"]

KEY_VARIABLE = "CLAMU_SNAPSHOT_KEY"
# An encrypted file is this, the nonce, then ciphertext and tag.
MAGIC = b"clamu-aes256gcm\n"
_NONCE_BYTES = 12


def environment_key() -> bytes | None:
    """Return the key that the environment gives (32 bytes), or None if it gives none.

    Raises:
        RecipeError: if it is no key, or `cryptography` is not installed.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if not given:
        return None
    if not re.fullmatch("[0-9a-fA-F]{64}", given):
        raise RecipeError(
            f"{KEY_VARIABLE} must be 64 hexadecimal digits (256 bits), found {len(given)} characters. Make a key with "
            "`openssl rand -hex 32`, and keep it away from the model."
        )
    try:
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401 - is it there?
    except ImportError:
        raise RecipeError(
            f"{KEY_VARIABLE} is set, but the package cryptography is not installed, so nothing can be encrypted. "
            'Install it (pip install ".[encryption]"), or unset the variable.'
        ) from None
    return bytes.fromhex(given)


def encrypted(data: bytes, name: str, key: bytes) -> bytes:
    """Return what is written for the content of a file.

    Args:
        data (`bytes`): the content.
        name (`str`): of the file; a file under another name does not open.
        key (`bytes`): 32 of them.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed: bytes = AESGCM(key).encrypt(nonce, data, name.encode())
    return MAGIC + nonce + sealed


def decrypted(data: bytes, name: str, key: bytes) -> bytes:
    """Return the content of a file that `encrypted` made.

    Raises:
        ValueError: if the key is another one, or a byte is not as it was written.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    start = len(MAGIC)
    nonce, sealed = data[start : start + _NONCE_BYTES], data[start + _NONCE_BYTES :]
    try:
        if not data.startswith(MAGIC) or len(nonce) < _NONCE_BYTES:
            raise InvalidTag
        content: bytes = AESGCM(key).decrypt(nonce, sealed, name.encode())
    except InvalidTag:
        raise ValueError(f"the key in {KEY_VARIABLE} does not open it: it needs another one, or is damaged") from None
    return content
