"""Signatures on the Hub: a push takes one along or makes it, in one commit, and another state takes it away."""

from __future__ import annotations

from pathlib import Path

import pytest

REPO = "org/signed"


@pytest.fixture
def local(run, recipe, tmp_path, keys):
    """A signed model in the folder `local`, and its rows."""
    run("train", recipe, "--output", "local")
    run("sign", "local", "--key", keys / "p256.pem")
    return tmp_path / "local"


def _files(double):
    repo = double.repos[REPO]
    return set(repo.commits[repo.branches["main"]].files)


def _num_commits(double):
    return len(double.repos[REPO].commits)


def test_a_signed_model_goes_to_the_hub_and_on_from_there(double, local, run, keys, tmp_path):
    trusted = ("--key", keys / "p256.pub")
    run("push", "local", REPO)
    assert double.content(REPO, "model.sig", "main") == local.with_name("local.sig").read_bytes()
    assert run("info", REPO, *trusted, "--json")["signature"]["checked"]
    assert run("verify", REPO, "--data", "rows.jsonl", *trusted, "--json")["identical"]
    # One commit has the new state and its signature.
    before = _num_commits(double)
    forget = ("unmerge", REPO, "--data", "rows.jsonl", "--keep-history")
    run(*forget, "user_1", "--key", keys / "p256.pem", "--json")
    assert _num_commits(double) == before + 1
    assert "model.sig" in _files(double)
    found = run("receipts", REPO, *trusted, "--json")
    assert [entry["request"] for entry in found["receipts"]] == ["unmerge"]
    # A run that died after its push has left the receipt alone; the next one writes what it had signed.
    (statement,) = (tmp_path / "receipts").glob("*.dsse")
    statement.unlink()
    assert "A receipt is missing" in run("receipts", REPO, *trusted, code=1)
    run(*forget, "user_1", "--key", keys / "p256.pem", "--json")
    assert statement.is_file()
    run("receipts", REPO, *trusted, "--json")
    # What the erasure settles after the push is a statement of its own.
    erasing = ("unmerge", REPO, "user_2", "--data", "rows.jsonl", "--erase-history", "--key", keys / "p256.pem")
    assert "erasure" in run(*erasing, "--json")["receipt"]
    found = run("receipts", REPO, *trusted, "--json")
    assert [entry["request"] for entry in found["receipts"]] == ["unmerge", "unmerge"]
    assert len(list((tmp_path / "receipts").glob("*-settled-*.dsse"))) == 1
    # A state that nobody signs takes the signature away.
    run(*forget, "user_3", "--json")
    assert "model.sig" not in _files(double)
    assert "is not signed" in run("info", REPO, *trusted, code=1)


def test_a_signature_that_does_not_fit_stays_at_home(double, local, run, keys):
    (local / "notes.txt").write_text("mine")
    run("sign", "local", "--key", keys / "p256.pem")
    assert "What is pushed is not signed" in run("push", "local", REPO)
    assert "model.sig" not in _files(double)


def test_a_changed_file_on_the_hub_is_refused(double, local, run, keys):
    run("push", "local", REPO)
    run("info", REPO, "--key", keys / "p256.pub")
    assert "is not signed with a trusted key" in run("info", REPO, "--key", keys / "other.pub", code=1)
    cached = Path(run("info", REPO, "--json")["signature"]["file"]).with_name("README.md")
    cached.resolve().write_text("other")
    assert "README.md was changed after it was signed" in run("info", REPO, "--key", keys / "p256.pub", code=1)
