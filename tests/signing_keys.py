"""Keys of the kinds that sign, and of kinds that do not, in PEM files; made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

SIGNING_KINDS = ("ed25519", "p256", "p384")
PASSWORD = "open sesame"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `NAME.pem` and `NAME.pub`; `encrypted.pem` is `p256.pem` with a password, `other` a second P-256."""
    folder = tmp_path_factory.mktemp("keys")
    made = {
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "other": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "koblitz": ec.generate_private_key(ec.SECP256K1()),
        "dsa": dsa.generate_private_key(1024),
    }
    for name, key in made.items():
        (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    locked = BestAvailableEncryption(PASSWORD.encode())
    (folder / "encrypted.pem").write_bytes(made["p256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return folder
