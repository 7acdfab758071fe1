"""Signatures of folders, files and bytes; nothing here knows what a model or a receipt is.

keys.py         Ed25519 and ECDSA keys in PEM files
envelope.py     DSSE: bytes with signatures
statement.py    in-toto statements: what is said of which bytes
bundle.py       OpenSSF Model Signing: a signature of every file of a folder
"""

from hf_clamu.signing.bundle import (
    SIGNATURE_NAME,
    SignedFolder,
    checked_folder,
    claimed_folder,
    folder_bundle,
    require_files,
)
from hf_clamu.signing.envelope import Envelope
from hf_clamu.signing.keys import (
    PASSWORD_VARIABLE,
    KeySource,
    PublicKey,
    SigningKey,
    load_public_key,
    load_public_keys,
    load_signing_key,
)
from hf_clamu.signing.statement import Statement

__all__ = [
    "PASSWORD_VARIABLE",
    "SIGNATURE_NAME",
    "Envelope",
    "KeySource",
    "PublicKey",
    "SignedFolder",
    "SigningKey",
    "Statement",
    "checked_folder",
    "claimed_folder",
    "folder_bundle",
    "load_public_key",
    "load_public_keys",
    "load_signing_key",
    "require_files",
]
