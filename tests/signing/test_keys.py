"""Keys in PEM files: those that sign, and one sentence for each that does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from signing_keys import PASSWORD, SIGNING_KINDS

from hf_clamu import RecipeError
from hf_clamu.signing import load_public_key, load_public_keys, load_signing_key

DATA = b"what is signed"


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_a_signature_is_of_these_bytes_and_this_key(keys, kind):
    key, public = load_signing_key(keys / f"{kind}.pem"), load_public_key(keys / f"{kind}.pub")
    signature = key.sign(DATA)
    assert public.verifies(signature, DATA)
    assert not public.verifies(signature, DATA + b".")
    assert not public.verifies(bytes(len(signature)), DATA)
    assert not public.verifies(b"", DATA)
    assert key.public.key_id == public.key_id
    for other in SIGNING_KINDS:
        assert load_public_key(keys / f"{other}.pub").verifies(signature, DATA) == (other == kind)


def test_kinds_have_the_names_that_people_use(keys):
    kinds = [load_public_key(keys / f"{kind}.pub").kind for kind in SIGNING_KINDS]
    assert kinds == ["Ed25519", "ECDSA P-256", "ECDSA P-384"]


@pytest.mark.parametrize("kind", ["text", "bytes", "name"])
def test_a_key_is_a_file_or_its_text(keys, kind):
    path = keys / "p256.pub"
    source = {"text": path.read_text(), "bytes": path.read_bytes(), "name": str(path)}[kind]
    assert load_public_key(source).key_id == load_public_key(path).key_id
    assert [key.key_id for key in load_public_keys(source)] == [load_public_key(path).key_id]


def test_the_password_of_an_encrypted_key_comes_from_the_environment(keys, monkeypatch):
    monkeypatch.delenv("CLAMU_SIGNING_PASSWORD", raising=False)
    with pytest.raises(RecipeError, match="is encrypted: set CLAMU_SIGNING_PASSWORD"):
        load_signing_key(keys / "encrypted.pem")
    monkeypatch.setenv("CLAMU_SIGNING_PASSWORD", "wrong")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_signing_key(keys / "encrypted.pem")
    monkeypatch.setenv("CLAMU_SIGNING_PASSWORD", PASSWORD)
    assert load_signing_key(keys / "encrypted.pem").public.key_id == load_public_key(keys / "p256.pub").key_id
    assert load_signing_key(keys / "p256.pem").public.kind == "ECDSA P-256"  # which has none


@pytest.mark.parametrize(
    ("name", "found"),
    [("rsa", "RSA"), ("dsa", "DSA"), ("p521", "EC on secp521r1"), ("koblitz", "EC on secp256k1")],
)
def test_keys_of_other_kinds_are_named(keys, name, found):
    for load, ending in ((load_signing_key, "pem"), (load_public_key, "pub")):
        with pytest.raises(RecipeError) as caught:
            load(keys / f"{name}.{ending}")
        assert str(caught.value).endswith(
            f"{name}.{ending} is a key of another kind ({found}): expected Ed25519, or ECDSA on P-256 or P-384."
        )


def test_private_and_public_are_told_apart(keys):
    with pytest.raises(RecipeError, match="is a public key, and signing needs a private one"):
        load_signing_key(keys / "p256.pub")
    with pytest.raises(RecipeError, match="is a private key, and checking needs the public one"):
        load_public_key(keys / "p256.pem")


@pytest.mark.parametrize("data", [b"", b"not a key", b"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    for load in (load_signing_key, load_public_key):
        with pytest.raises(RecipeError) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_private_key_is_refused(keys, tmp_path):
    lines = (keys / "p256.pem").read_text().splitlines()
    (tmp_path / "key").write_text("\n".join([lines[0], lines[1][:-4], *lines[2:]]))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_signing_key(tmp_path / "key")


def test_a_missing_key_and_no_key_are_refused(tmp_path):
    for load in (load_signing_key, load_public_key):
        with pytest.raises(RecipeError, match="No such file"):
            load(tmp_path / "key")
        with pytest.raises(RecipeError, match="cannot be read"):
            load(tmp_path)
    (tmp_path / "large").write_bytes(bytes(1 << 17))
    with pytest.raises(RecipeError, match="is no key"):
        load_public_key(tmp_path / "large")
    with pytest.raises(RecipeError, match="No key is trusted"):
        load_public_keys([])


def test_without_cryptography_one_sentence_says_what_to_install(keys):
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from hf_clamu.signing import load_public_key\n"
        "from hf_clamu import RecipeError\n"
        f"try: load_public_key({str(keys / 'p256.pub')!r})\n"
        "except RecipeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "Signatures need the package cryptography, which is not installed: pip install 'hf-clamu[proof]'.\n"
    )


def test_the_layer_needs_no_cryptography_until_a_key_is_read():
    code = "import hf_clamu.signing, sys; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
