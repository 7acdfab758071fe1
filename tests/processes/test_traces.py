"""After a request nothing of the forgotten task is left: in no file, no journal, no message."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
from recipes import write_work

OWNER, WORD = "Oda_Qvist", "quokkalith"
OFTEN = {"CLAMU_JOURNAL_SECONDS": "0"}


@pytest.fixture(scope="module")
def fork(cold_fork):
    """Runs that look up where caches go as a command does: when they import those who keep them."""
    return cold_fork


@pytest.fixture
def homes(tmp_path):
    """Environment variables that keep what a command writes elsewhere below the test's folder."""
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR")}
    for place in places.values():
        place.mkdir()
    return {name: str(place) for name, place in places.items()}


@pytest.fixture(scope="module")
def trained(fork, tmp_path_factory):
    """A model and an archive of an owner whose id and rows have words that nobody else has, and of seven others."""
    folder = tmp_path_factory.mktemp("trained")
    write_work(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row["user"] == "user_1":
            row |= {"user": OWNER, "text": f"{WORD} {row['text']}"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _ok(fork(folder, "train", "clamu.yaml", "--output", "out", "--archive", "kept").wait())
    return folder


@pytest.fixture
def owned(trained, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(trained, tmp_path / "work")


def _ok(ended):
    assert ended.code == 0, ended.err
    return ended


def _traces(folder):
    """Files below a folder, the owner's rows left out, that name the owner; of receipts the public part."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == "rows.jsonl":
            continue
        content = path.read_bytes()
        if path.parent.name == "receipts":
            receipt = json.loads(content)
            del receipt["private"]
            content = json.dumps(receipt, ensure_ascii=False).encode()
        if any(word.encode() in content for word in (OWNER, WORD)):
            found.append(str(path.relative_to(folder)))
    return found


def _said(fork, work, homes, model="out"):
    """What the commands that only read say after the request."""
    texts = []
    for arguments in (
        ("info", model, "--json"),
        ("info", model),
        ("evaluate", model, "--json"),
        ("predict", model, "great 1", "--task", "user_0"),
        ("export", model, "--output", "plain", "--task", "user_2"),
        ("verify", model, "--json"),
    ):
        ended = _ok(fork(work, *arguments, **homes).wait())
        texts += [ended.out, ended.err]
    return "".join(texts)


def test_the_search_finds_what_is_there(owned):
    assert "out/ledger.json" in _traces(owned)


@pytest.mark.parametrize("kept", [(), ("--archive", "kept")], ids=["retrained", "archived"])
def test_unmerge_leaves_no_trace(fork, owned, homes, kept):
    vectors = set((owned / "kept").glob("*.safetensors"))
    _ok(fork(owned, "unmerge", "out", OWNER, *kept, **homes, **OFTEN).wait())
    assert _traces(owned.parent) == []
    if kept:
        assert len(vectors - set((owned / "kept").glob("*.safetensors"))) == 1
    said = _said(fork, owned, homes)
    assert "user_2" in said
    assert OWNER not in said
    assert WORD not in said
    assert _traces(owned) == []


def test_a_request_that_was_killed_leaves_no_trace(fork, owned, homes):
    run = fork(owned, "unmerge", "out", OWNER, **homes, **OFTEN)
    deadline = time.monotonic() + 60
    while not list((owned / ".out.journal").glob("*.part")):
        assert time.monotonic() < deadline, "no journal was written"
        time.sleep(0.002)
    run.end(0, signal.SIGKILL)
    _ok(fork(owned, "unmerge", "out", OWNER, **homes, **OFTEN).wait())
    assert _traces(owned) == []


def test_update_leaves_no_trace_of_rows_that_left(fork, owned, homes):
    rows = [json.loads(line) for line in (owned / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row["user"] == OWNER]
    for row in kept:
        row["text"] = row["text"].replace(WORD, "plainly")
    (owned / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    _ok(fork(owned, "update", "out", "--new", "new.jsonl", **homes, **OFTEN).wait())
    assert not [
        path
        for path in owned.rglob("*")
        if path.is_file() and path.name != "rows.jsonl"
        if WORD.encode() in path.read_bytes()
    ]


def test_keyed_ids_leave_no_trace_even_while_merged(fork, owned, homes):
    key = {"CLAMU_TASK_ID_KEY": "a key of the operator"}
    _ok(fork(owned, "train", "clamu.yaml", "--output", "out", "--overwrite", **homes, **key).wait())
    assert _traces(owned) == []
    ended = _ok(fork(owned, "unmerge", "out", OWNER, **homes, **key, **OFTEN).wait())
    assert "Forgot" in ended.out
    assert _traces(owned) == []


def test_no_message_offers_ids_of_others(fork, owned, homes):
    for arguments in (
        ("unmerge", "out", "user_11"),
        ("unmerge", "out", "oda_qvist"),
        ("predict", "out", "great 1", "--task", "user_11"),
        ("evaluate", "out", "--task", "user_11"),
        ("export", "out", "--output", "plain", "--task", "user_11"),
        ("update", "out", "user_11", "--new", "rows.jsonl"),
    ):
        ended = fork(owned, *arguments, **homes).wait()
        assert ended.code == 2, (arguments, ended.err)
        others = {OWNER, *(f"user_{number}" for number in range(8))}
        if "oda_qvist" in arguments:
            others.remove(OWNER)  # the same name in another case, which the one who asks knows
        assert not [name for name in others if name in ended.err.replace("user_11", "")], (arguments, ended.err)
