"""A signature of a folder: whatever is changed in the folder is refused, and the stock program agrees."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from signing_keys import SIGNING_KINDS

from hf_clamu import RecipeError, SignatureError
from hf_clamu.signing import checked_folder, claimed_folder, folder_bundle, load_public_key, load_signing_key

FILES = {
    "config.json": b'{"a": 1}',
    "delta.safetensors": bytes(range(256)) * 4,
    "empty.txt": b"",
    "masks/cluster_000/adapter_model.safetensors": b"\0\1\2",
    "masks-of-mine.txt": b"sorted before the folder as a text, after it as a path",
    "grüße.txt": "ü".encode(),
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "m"


@pytest.fixture
def signature(folder, keys):
    path = folder.with_name("m.sig")
    path.write_bytes(folder_bundle(folder, load_signing_key(keys / "p256.pem"), notes={"mine": {"count": 1}}))
    return path


@pytest.fixture
def trusted(keys):
    return [load_public_key(keys / "p256.pub")]


def _stock(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def stock():
    """The program of the OpenSSF; `pip install -e .[dev]` brings it."""
    pytest.importorskip("model_signing", reason="the stock program is not installed: pip install -e .[dev]")
    return _stock


def test_what_was_signed_is_accepted(folder, signature, trusted):
    found = checked_folder(folder, signature, trusted)
    assert sorted(found.files) == sorted(FILES)
    assert (found.name, found.key, found.notes) == ("m", trusted[0], {"mine": {"count": 1}})
    assert claimed_folder(signature) == claimed_folder(signature, [])
    assert claimed_folder(signature).key is None


def test_the_same_folder_gives_the_same_signature_with_ed25519(folder, keys):
    key = load_signing_key(keys / "ed25519.pem")
    assert folder_bundle(folder, key) == folder_bundle(folder, key)
    assert str(folder.parent).encode() not in folder_bundle(folder, key)


@pytest.mark.parametrize("kind", ["p256", "p384"])
def test_the_stock_program_accepts_it(stock, folder, keys, kind):
    signature = folder.with_name("m.sig")
    signature.write_bytes(folder_bundle(folder, load_signing_key(keys / f"{kind}.pem"), notes={"mine": {"count": 1}}))
    asked = ("verify", "key", folder, "--signature", signature, "--public_key", keys / f"{kind}.pub")
    accepted = stock(*asked)
    assert accepted.returncode == 0, accepted.stderr
    assert "Verification succeeded" in accepted.stdout
    # On the Hub it is inside, and a client that fetches a folder leaves notes there.
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/config.json.metadata").write_text("etag")
    shutil.copy(signature, folder / "model.sig")
    assert stock(*asked).returncode == 0
    (folder / "config.json").write_bytes(b'{"a": 2}')
    refused = stock(*asked)
    assert refused.returncode == 1
    assert "config.json" in refused.stderr


def test_the_stock_program_knows_no_ed25519(stock, folder, keys):
    signature = folder.with_name("m.sig")
    signature.write_bytes(folder_bundle(folder, load_signing_key(keys / "ed25519.pem")))
    refused = stock("verify", "key", folder, "--signature", signature, "--public_key", keys / "ed25519.pub")
    assert refused.returncode == 1


def test_what_the_stock_program_signed_is_accepted(stock, folder, keys, trusted):
    signature = folder.with_name("stock.sig")
    done = stock("sign", "key", folder, "--signature", signature, "--private_key", keys / "p256.pem")
    assert done.returncode == 0, done.stderr
    found = checked_folder(folder, signature, trusted)
    ours = folder.with_name("m.sig")
    ours.write_bytes(folder_bundle(folder, load_signing_key(keys / "p256.pem")))
    assert list(found.files.items()) == list(claimed_folder(ours).files.items())  # in the same order
    (folder / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(SignatureError, match=r"config\.json was changed"):
        checked_folder(folder, signature, trusted)


def test_changes_of_one_byte_are_refused(folder, signature, trusted):
    draw = random.Random(0)
    names = [name for name, data in FILES.items() if data]
    for number in range(200):
        name = draw.choice(names)
        data = bytearray(FILES[name])
        position = draw.randrange(len(data))
        kind = number % 4
        if kind < 2:
            data[position] ^= draw.randrange(1, 256)
        elif kind == 2:
            del data[position]
        else:
            data.insert(position, draw.randrange(256))
        if bytes(data) == FILES[name]:  # no byte of it is different
            data.append(0)
        (folder / name).write_bytes(data)
        with pytest.raises(SignatureError, match="was changed after it was signed"):
            checked_folder(folder, signature, trusted)
        (folder / name).write_bytes(FILES[name])
    assert checked_folder(folder, signature, trusted).key == trusted[0]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder, signature, trusted, name):
    (folder / name).unlink()
    with pytest.raises(SignatureError, match="is missing"):
        checked_folder(folder, signature, trusted)


@pytest.mark.parametrize("name", ["more.txt", "masks/more.json", "masks/cluster_000/.hidden", ".github.py", "new/a"])
def test_an_added_file_is_refused(folder, signature, trusted, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(SignatureError, match="is not signed"):
        checked_folder(folder, signature, trusted)


def test_files_that_are_exchanged_or_renamed_are_refused(folder, signature, trusted):
    (folder / "config.json").rename(folder / "config.JSON")
    with pytest.raises(SignatureError, match=r"config\.json is missing"):
        checked_folder(folder, signature, trusted)
    (folder / "config.JSON").rename(folder / "config.json")
    shutil.copy(folder / "config.json", folder / "empty.txt")
    with pytest.raises(SignatureError, match=r"empty\.txt was changed"):
        checked_folder(folder, signature, trusted)


def test_links_are_read_when_checking_and_refused_when_signing(folder, signature, trusted, keys, tmp_path):
    shutil.move(folder / "config.json", tmp_path / "blob")
    (folder / "config.json").symlink_to(tmp_path / "blob")  # as in a cache of the Hub
    assert checked_folder(folder, signature, trusted).key == trusted[0]
    with pytest.raises(RecipeError, match=r"config\.json' is a link"):
        folder_bundle(folder, load_signing_key(keys / "p256.pem"))
    (tmp_path / "blob").write_bytes(b'{"a": 2}')
    with pytest.raises(SignatureError, match=r"config\.json was changed"):
        checked_folder(folder, signature, trusted)
    (tmp_path / "blob").unlink()
    with pytest.raises(SignatureError, match=r"config\.json' is a link"):
        checked_folder(folder, signature, trusted)


def test_linked_folders_and_pipes_are_refused(folder, signature, trusted, tmp_path):
    shutil.move(folder / "masks", tmp_path / "masks")
    (folder / "masks").symlink_to(tmp_path / "masks")
    with pytest.raises(SignatureError, match="masks' is a link"):
        checked_folder(folder, signature, trusted)
    (folder / "masks").unlink()
    shutil.move(tmp_path / "masks", folder / "masks")
    os.mkfifo(folder / "pipe")
    with pytest.raises(SignatureError, match="pipe' is a link, no plain file"):
        checked_folder(folder, signature, trusted)


def test_other_keys_are_refused(folder, signature, keys):
    for name in ("other", "p384", "ed25519"):
        with pytest.raises(SignatureError, match="is not signed with a trusted key"):
            checked_folder(folder, signature, [load_public_key(keys / f"{name}.pub")])
    several = [load_public_key(keys / f"{name}.pub") for name in ("other", "p256")]
    assert checked_folder(folder, signature, several).key == several[1]


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_what_is_signed_cannot_be_edited(folder, keys, kind):
    signature, public = folder.with_name("m.sig"), load_public_key(keys / f"{kind}.pub")
    signature.write_bytes(folder_bundle(folder, load_signing_key(keys / f"{kind}.pem")))
    good = json.loads(signature.read_bytes())
    draw = random.Random(1)
    for field in ("payload", "sig"):
        holder = good["dsseEnvelope"] if field == "payload" else good["dsseEnvelope"]["signatures"][0]
        text = holder[field]
        for _ in range(50):
            position = draw.randrange(len(text) - 3)
            other = draw.choice([one for one in "ABCabc019+" if one != text[position]])
            holder[field] = text[:position] + other + text[position + 1 :]
            signature.write_text(json.dumps(good))
            with pytest.raises(SignatureError):
                checked_folder(folder, signature, [public])
        holder[field] = text


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"mediaType": "a"}'])
def test_what_is_no_signature_is_refused(folder, signature, trusted, data):
    signature.write_bytes(data)
    with pytest.raises(SignatureError, match="is no signature of OpenSSF Model Signing"):
        checked_folder(folder, signature, trusted)


def test_an_empty_folder_is_not_signed(tmp_path, keys):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("")
    with pytest.raises(RecipeError, match="has no file"):
        folder_bundle(tmp_path, load_signing_key(keys / "p256.pem"))
