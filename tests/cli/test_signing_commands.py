"""`clamu sign`, `clamu receipts`, and `--key` of the commands that change or read a model."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def signed(clamu, work, keys):
    """The model `text`, signed."""
    assert clamu("sign", "text", "--key", keys / "p256.pem").code == 0
    return work / "text"


def _statements(work):
    return sorted(path.name for path in (work / "receipts").glob("*.dsse"))


def test_a_model_is_signed_beside_its_folder(clamu, work, keys, tiny):
    before = tiny.digests(work / "text")
    found = clamu("sign", "text", "--key", keys / "p256.pem", "--json").json
    assert found["signature"] == str(work / "text.sig")
    assert (found["statements"], found["new_statements"]) == (0, [])
    assert tiny.digests(work / "text") == before
    info = clamu("info", "text", "--key", keys / "p256.pub", "--json").json["signature"]
    assert info == {"file": str(work / "text.sig"), "key_id": found["key_id"], "checked": True, "statements": 0}
    assert clamu("verify", "text", "--key", keys / "p256.pub", "--json").json["identical"]
    pytest.importorskip("model_signing", reason="the stock program is not installed: pip install -e .[dev]")
    stock = [sys.executable, "-W", "ignore", "-m", "model_signing", "verify", "key", "text"]
    stock += ["--signature", "text.sig", "--public_key", str(keys / "p256.pub")]
    assert subprocess.run(stock, capture_output=True, text=True, cwd=work).returncode == 0


def test_receipts_of_a_model_that_has_none(clamu, work, signed, keys):
    text = clamu("receipts", "text", "--key", keys / "p256.pub").out
    assert "0 receipts in" in text
    assert "by its signature the model, which is as it was signed, has none." in text
    assert "0 receipts in" in clamu("receipts", "text").out
    for place in ("nothing", "rows.jsonl"):
        found = clamu("receipts", "text", "--receipts", place)
        assert (found.code, found.error.startswith(f"clamu: There is no folder {place}.")) == (2, True)


def test_requests_with_a_key_sign_receipt_and_model(clamu, work, signed, keys):
    assert clamu("unmerge", "text", "user_1", "--key", keys / "p256.pem").err.count("Signed with the key") == 1
    assert clamu("add", "text", "user_1", "--new", "rows.jsonl", "--key", keys / "p256.pem").code == 0
    again = clamu("add", "text", "user_1", "--new", "rows.jsonl", "--key", keys / "p256.pem")
    assert (again.code, again.out.startswith("Nothing to do")) == (0, True)
    assert len(_statements(work)) == 2
    found = clamu("receipts", "text", "--key", keys / "p256.pub", "--json").json
    assert [entry["request"] for entry in found["receipts"]] == ["unmerge", "add"]
    assert found["receipts"][1]["digests"]["after"] == found["state_digest"]
    text = clamu("receipts", "text", "--key", keys / "p256.pub").out
    assert "2 receipts in" in text
    assert "None is missing between them" in text
    assert "2 statements of receipts" in clamu("info", "text", "--key", keys / "p256.pub").out
    assert "not checked (--key PEM)" in clamu("info", "text").out


def test_the_key_comes_from_the_environment(clamu, work, signed, keys, monkeypatch):
    monkeypatch.setenv("CLAMU_SIGNING_KEY", str(keys / "p256.pem"))
    assert clamu("unmerge", "text", "user_1").code == 0
    assert clamu("sign", "text").code == 0
    assert clamu("receipts", "text", "--key", keys / "p256.pub").code == 0


def test_unsigned_is_said_to_be_so(clamu, work, keys):
    assert clamu("unmerge", "text", "user_1").code == 0
    assert "signature: none (clamu sign)" in clamu("info", "text").out
    assert "1 receipt in" in (text := clamu("receipts", "text").out)
    assert "1 of them unsigned" in text
    refused = clamu("receipts", "text", "--key", keys / "p256.pub")
    assert refused.code == 1
    assert "is not signed: there is no" in refused.error
    found = clamu("sign", "text", "--key", keys / "p256.pem", "--json").json
    assert found["statements"] == len(found["new_statements"]) == 1
    assert clamu("receipts", "text", "--key", keys / "p256.pub").code == 0
    assert "which were not checked" in clamu("receipts", "text").out


@pytest.mark.parametrize("command", ["info", "verify", "receipts"])
def test_what_does_not_fit_ends_with_one_sentence(clamu, work, signed, keys, command):
    refused = clamu(command, "text", "--key", keys / "other.pub")
    assert refused.code == 1
    assert "is not signed with a trusted key" in refused.error
    assert clamu(command, "text", "--key", keys / "other.pub", "--key", keys / "p256.pub").code == 0
    card = work / "text/README.md"
    card.write_bytes(card.read_bytes() + b"\n")
    refused = clamu(command, "text", "--key", keys / "p256.pub", "--json")
    assert (refused.code, refused.json["error"]["type"]) == (1, "SignatureError")
    assert "README.md was changed after it was signed" in refused.json["error"]["message"]


@pytest.mark.parametrize("command", ["info", "verify", "receipts"])
def test_a_missing_receipt_ends_with_one_sentence(clamu, work, signed, keys, command):
    for task in ("user_1", "user_2"):
        assert clamu("unmerge", "text", task, "--key", keys / "p256.pem").code == 0
    (work / "receipts" / _statements(work)[0]).unlink()
    refused = clamu(command, "text", "--key", keys / "p256.pub")
    assert refused.code == 1
    assert "A receipt is missing" in refused.error


def test_a_change_without_a_key_leaves_a_signature_that_does_not_fit(clamu, work, signed, keys):
    assert clamu("unmerge", "text", "user_1").code == 0
    refused = clamu("info", "text", "--key", keys / "p256.pub")
    assert refused.code == 1
    assert "sign it again if the change is yours" in refused.error
    assert clamu("sign", "text", "--key", keys / "p256.pem").code == 0
    assert clamu("receipts", "text", "--key", keys / "p256.pub").code == 0


def test_a_result_elsewhere_has_a_signature_of_its_own(clamu, work, signed, keys):
    done = clamu("unmerge", "text", "user_1", "--output", "less", "--key", keys / "p256.pem")
    assert done.code == 0
    assert (work / "less.sig").is_file()
    for folder, count in (("text", 0), ("less", 1)):
        found = clamu("receipts", folder, "--key", keys / "p256.pub", "--json").json
        assert len(found["receipts"]) == count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rsa.pem", "is a key of another kind (RSA)"),
        ("p256.pub", "is a public key, and signing needs a private one"),
        ("encrypted.pem", "is encrypted: set CLAMU_SIGNING_PASSWORD"),
        ("missing.pem", "cannot be read (No such file or directory)"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_before_anything_is_done(clamu, work, keys, name, message, tiny):
    before = tiny.digests(work)
    for command in (["sign", "text"], ["unmerge", "text", "user_1"], ["unmerge", "text", "user_1", "--dry-run"]):
        refused = clamu(*command, "--key", keys / name)
        assert refused.code == 2
        assert message in refused.error
    assert tiny.digests(work) == before


@pytest.mark.parametrize("line", ["unmerge text user_1", "add text user_1 --new rows.jsonl"])
def test_a_key_that_did_not_sign_the_model_is_refused_before_anything_is_done(clamu, work, signed, keys, line, tiny):
    before = tiny.digests(work / "text")
    found = clamu(*line.split(), "--key", keys / "other.pem")
    assert found.code == 1
    assert "was signed with another key" in found.error
    assert tiny.digests(work / "text") == before
    assert not (work / "receipts").exists()


def test_signing_needs_a_key_and_a_folder(clamu, work, keys):
    assert "--key PEM, or CLAMU_SIGNING_KEY" in clamu("sign", "text").error
    assert "is no folder here" in clamu("sign", "org/name", "--key", keys / "p256.pem").error
    assert "is a private key" in clamu("info", "text", "--key", keys / "p256.pem").error


def test_a_run_that_died_before_it_signed_is_signed_by_the_next_one(clamu, work, signed, keys):
    shutil.copy(work / "text.sig", work / "kept.sig")
    assert clamu("unmerge", "text", "user_1", "--key", keys / "p256.pem").code == 0
    whole = _statements(work)
    shutil.move(work / "kept.sig", work / "text.sig")  # the statement was written, and the model not signed
    done = clamu("unmerge", "text", "user_1", "--key", keys / "p256.pem")
    assert done.out.startswith("Nothing to do")
    assert _statements(work) == whole
    assert clamu("receipts", "text", "--key", keys / "p256.pub").code == 0
