"""Requests are killed at every moment that matters: no receipt is lost, and none says what did not happen."""

from __future__ import annotations

import json
import re
import shutil
import signal

import pytest
from recipes import write_new_rows, write_work

QUEUE = [{"id": "req-1", "task": "user_1"}, {"id": "req-2", "tasks": ["user_4", "user_6"]}]
# Where a run dies, and whether the new model is at its place then.
MOMENTS = {
    "before the announcement": ("hf_clamu.models.state:record_pending", 0, False),
    "before the model is written": ("hf_clamu.models.saving:write_checkpoint", 0, False),
    "before the exchange": ("hf_clamu.storage.replace:_exchange", 0, False),
    "before the old model goes": ("hf_clamu.storage.replace:_sync_name", 0, True),
    "before the receipts": ("hf_clamu.models.state:finalize_changes", 0, True),
    "between the receipts": ("hf_clamu.operations.lifecycle.recovery:write_receipt", 1, True),
    "before a receipt has its name": ("hf_clamu.operations.lifecycle.receipts:canonical_json", 1, True),
    "before the journal goes": ("hf_clamu.storage.journal:Journal.clear", 0, True),
    "before the lock goes": ("hf_clamu.storage.locking:FileLock._remove", 0, True),
}


@pytest.fixture(scope="module")
def trained(fork, tiny, tmp_path_factory):
    """A model, and the digests of builds without some of its tasks and with other rows of one."""
    folder = tmp_path_factory.mktemp("trained")
    write_work(folder)
    (folder / "queue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUEUE), encoding="utf-8")
    write_new_rows(folder, "user_3")
    assert fork(folder, "train", "clamu.yaml", "--output", "out", "--archive", "archive").wait().code == 0
    without = [word for user in (1, 4, 6) for word in ("--without", f"user_{user}")]
    digests = {}
    for name, arguments in (("unmerge", without), ("update", ("--data", "all.jsonl"))):
        assert fork(folder, "train", "clamu.yaml", "--output", name, *arguments).wait().code == 0
        digests[name] = tiny.digests(folder / name)
        shutil.rmtree(folder / name)
    return folder, digests


@pytest.fixture
def work(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "work")


def _receipts(work):
    return [json.loads(path.read_bytes()) for path in sorted((work / "receipts").glob("*.json*"))]


def _is_bare(work):
    return not [path for path in work.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_queue(fork, work, trained, tiny, moment):
    where, calls, is_saved = MOMENTS[moment]
    before, after = tiny.digests(work / "out"), trained[1]["unmerge"]
    command = ("unmerge", "out", "--from", "queue.jsonl", "--json")
    assert fork(work, *command, die_in=where, calls=calls).wait().code == -signal.SIGKILL
    assert tiny.digests(work / "out") == (after if is_saved else before)
    if not is_saved:
        assert not (work / "receipts").exists() or _receipts(work) == []
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    status = "done already" if is_saved else "forgotten"
    assert [(entry["id"], entry["status"]) for entry in found["requests"]] == [("req-1", status), ("req-2", status)]
    assert tiny.digests(work / "out") == after
    receipts = {receipt["id"]: receipt for receipt in _receipts(work)}
    assert len(_receipts(work)) == len(receipts) == 2
    assert sorted(receipts["req-1"]["private"]["salts"]) == ["user_1"]
    assert sorted(receipts["req-2"]["private"]["salts"]) == ["user_4", "user_6"]
    assert len(list((work / "receipts").iterdir())) == 2
    assert _is_bare(work)
    state = json.loads(fork(work, "info", "out", "--json").wait().out)["state_digest"]
    assert {receipt["digests"]["after"] for receipt in receipts.values()} == {state}


@pytest.mark.parametrize(
    "moment", ["before the exchange", "before the receipts", "before the journal goes", "before the lock goes"]
)
def test_tasks_named_on_the_command_line(fork, work, trained, tiny, moment):
    where, calls, is_saved = MOMENTS[moment]
    command = ("unmerge", "out", "user_1", "user_4", "user_6")
    assert fork(work, *command, die_in=where, calls=calls).wait().code == -signal.SIGKILL
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Nothing to do: user_1, user_4, user_6 was forgotten before" if is_saved else "Forgot")
    assert tiny.digests(work / "out") == trained[1]["unmerge"]
    assert len(_receipts(work)) == 1
    assert _is_bare(work)


@pytest.mark.parametrize("moment", ["before the exchange", "before the receipts"])
def test_an_update(fork, work, trained, tiny, moment):
    where, calls, is_saved = MOMENTS[moment]
    command = ("update", "out", "--new", "new.jsonl")
    assert fork(work, *command, die_in=where, calls=calls).wait().code == -signal.SIGKILL
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Nothing to do" if is_saved else "Updated user_3")
    assert tiny.digests(work / "out") == trained[1]["update"]
    assert [receipt["request"] for receipt in _receipts(work)] == ["update"]
    assert _is_bare(work)


@pytest.mark.parametrize(
    ("where", "calls", "left"),
    [
        ("hf_clamu.models.state:finalize_changes", 0, 8),
        ("hf_clamu.storage.archive:Archive.destroy", 1, 7),
        ("hf_clamu.operations.lifecycle.recovery:write_receipt", 0, 5),
    ],
)
def test_archived_vectors_are_destroyed_after_all(fork, work, trained, tiny, where, calls, left):
    command = ("unmerge", "out", "--from", "queue.jsonl", "--archive", "archive")
    assert fork(work, *command, die_in=where, calls=calls).wait().code == -signal.SIGKILL
    assert len(list((work / "archive").iterdir())) == left
    assert not (work / "receipts").exists() or _receipts(work) == []
    # A command that names no archive destroys nothing in one, and says which one is to be named.
    ended = fork(work, "unmerge", "out", "--from", "queue.jsonl").wait()
    assert (ended.code, ended.out.count("done already")) == (0, 3), ended.err
    assert re.search(r"/archive' still has vectors \(3\) of tasks that were forgotten: name it", ended.err)
    assert len(list((work / "archive").iterdir())) == left
    assert [receipt["archive"] for receipt in _receipts(work)] == ["to be destroyed"] * 2
    another = fork(work, "unmerge", "out", "--from", "queue.jsonl", "--archive", "another").wait()
    assert (another.code, "still has vectors" in another.err) == (0, True), another.err
    ended = fork(work, *command).wait()
    assert (ended.code, "are destroyed in" in ended.err) == (0, True), ended.err
    assert len(list((work / "archive").iterdir())) == 5
    assert [receipt["archive"] for receipt in _receipts(work)] == ["destroyed"] * 2
    assert tiny.digests(work / "out") == trained[1]["unmerge"]
    assert _is_bare(work)


def test_an_archive_after_kills(fork, work, tiny):
    command = ("train", "clamu.yaml", "--output", "again", "--archive", "archived")
    for calls in (2, 3):
        ended = fork(
            work, *command, die_in="hf_clamu.storage.archive:save_tensors", calls=calls, CLAMU_JOURNAL_SECONDS="0"
        ).wait()
        assert ended.code == -signal.SIGKILL, ended.err
    assert fork(work, *command).wait().code == 0
    assert tiny.digests(work / "archived") == tiny.digests(work / "archive")
    assert tiny.digests(work / "again") == tiny.digests(work / "out")


def test_another_output(fork, work, trained, tiny):
    command = ("unmerge", "out", "user_1", "user_4", "user_6", "--output", "apart")
    assert fork(work, *command, die_in=MOMENTS["before the receipts"][0]).wait().code == -signal.SIGKILL
    ended = fork(work, *command).wait()
    assert (ended.code, ended.out.startswith("Nothing to do")) == (0, True), ended.err
    assert len(_receipts(work)) == 1
    assert tiny.digests(work / "apart") == trained[1]["unmerge"]
    assert _is_bare(work)
    # What was settled is no leave to write over it.
    ended = fork(work, "unmerge", "out", "user_2", "--output", "apart").wait()
    assert (ended.code, "not empty" in ended.err) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ("info", "out"),
        ("verify", "out"),
        ("predict", "out", "great 1"),
        ("evaluate", "out"),
        ("export", "out", "--output", "plain"),
    ],
)
def test_a_command_that_reads_settles_nothing(fork, work, tiny, command):
    where = MOMENTS["before the old model goes"][0]
    request = ("unmerge", "out", "user_1", "--archive", "archive")
    assert fork(work, *request, die_in=where).wait().code == -signal.SIGKILL
    before = tiny.digests(work)
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    assert "the next clamu unmerge, add or update of it settles it" in ended.err
    shutil.rmtree(work / "plain", ignore_errors=True)
    assert tiny.digests(work) == before
    ended = fork(work, *request).wait()
    assert (ended.code, "its receipts are written now (1)" in ended.err) == (0, True), ended.err
    assert [receipt["archive"] for receipt in _receipts(work)] == ["destroyed"]
    assert len(list((work / "archive").iterdir())) == 7
    assert _is_bare(work)


def test_a_model_that_is_moved_before_it_is_settled(fork, work, tiny):
    command = ("unmerge", "out", "user_1", "--archive", "archive")
    assert fork(work, *command, die_in=MOMENTS["before the receipts"][0]).wait().code == -signal.SIGKILL
    moved = work.rename(work.with_name("moved"))
    assert fork(moved, *command).wait().code == 0
    assert not work.exists()
    assert [receipt["archive"] for receipt in _receipts(moved)] == ["destroyed"]
    assert len(list((moved / "archive").iterdir())) == 7
    assert _is_bare(moved)


def test_a_build_that_replaced_a_model_and_died(fork, work, tiny):
    command = ("train", "emr.yaml", "--output", "out", "--overwrite")
    assert fork(work, *command, die_in="hf_clamu.storage.replace:_sync_name").wait().code == -signal.SIGKILL
    new = tiny.digests(work / "out")
    assert [path.suffix for path in work.iterdir() if path.name.startswith(".out.")].count(".new") == 1
    assert fork(work, *command).wait().code == 0
    assert tiny.digests(work / "out") == new
    assert _is_bare(work)


def test_what_cannot_be_told_is_not_claimed(fork, work):
    where = MOMENTS["before the receipts"][0]
    assert fork(work, "unmerge", "out", "user_1", die_in=where).wait().code == -signal.SIGKILL
    # Another model comes to the place before anybody looks.
    shutil.rmtree(work / "out")
    arguments = ("--without", "user_1", "--without", "user_2", "--overwrite")
    journal = shutil.move(work / ".out.journal", work / "kept")
    assert fork(work, "train", "clamu.yaml", "--output", "out", *arguments).wait().code == 0
    shutil.move(journal, work / ".out.journal")
    ended = fork(work, "unmerge", "out", "user_3").wait()
    assert ended.code == 0, ended.err
    assert "cannot be told" in ended.err
    assert sorted(path.suffix for path in (work / "receipts").iterdir()) == [".json", ".unsettled"]
    assert _is_bare(work)


def test_nobody_else_may_work_on_the_model(fork, work, tiny):
    from hf_clamu.storage import Journal

    before = tiny.digests(work / "out")
    with Journal(work / ".out.journal").locked():
        for command in (("unmerge", "out", "user_1"), ("update", "out", "--new", "new.jsonl")):
            ended = fork(work, *command).wait()
            assert (ended.code, "Another run works on this output" in ended.err) == (2, True)
        assert fork(work, "info", "out").wait().code == 0
    assert tiny.digests(work / "out") == before


@pytest.fixture(scope="module")
def signed(trained, fork, keys, tmp_path_factory):
    """The model after its queue, signed; the history of a request in it was erased once."""
    work = shutil.copytree(trained[0], tmp_path_factory.mktemp("signed") / "work")
    key = str(keys / "p256.pem")
    assert fork(work, "unmerge", "out", "--from", "queue.jsonl", "--key", key).wait().code == 0
    assert fork(work, "receipts", "req-1", script="amending_steps").wait().code == 0
    assert fork(work, "sign", "out", "--key", key).wait().code == 0
    return work


@pytest.mark.parametrize(
    ("where", "num_files", "num_gone"),
    [
        ("hf_clamu.operations.lifecycle.amending:write_atomically", 2, 1),
        ("hf_clamu.operations.lifecycle.amending:write_receipt", 2, 1),
        ("hf_clamu.operations.lifecycle.amending:finish_amendments", 3, 2),
        ("hf_clamu.operations.lifecycle.amending:sync_folder", 2, 2),
    ],
)
def test_an_amendment_that_is_killed_leaves_one_receipt(fork, signed, tmp_path, keys, where, num_files, num_gone):
    work = shutil.copytree(signed, tmp_path / "work")
    killed = fork(work, "receipts", "req-1", script="amending_steps", die_in=where).wait()
    assert killed.code == -signal.SIGKILL, killed.err
    assert len(list((work / "receipts").glob("*.json"))) == num_files
    told = fork(work, "report", "out", "--request", "req-1", "--output", "evidence.json").wait()
    assert told.code == 0, told.err
    evidence = json.loads((work / "evidence.json").read_bytes())
    assert evidence["receipt"]["content"]["erasure"]["num_gone"] == num_gone
    key, public = str(keys / "p256.pem"), str(keys / "p256.pub")
    listed = fork(work, "receipts", "out", "--key", public).wait()
    assert (listed.code == 0) == (num_gone == 1), listed.err  # what is not signed yet is said
    assert "amended since" in listed.err or num_gone == 1
    assert fork(work, "sign", "out", "--key", key).wait().code == 0
    assert fork(work, "receipts", "out", "--key", public).wait().code == 0
    # What comes next deletes what was left.
    if num_files == 3:
        assert fork(work, "unmerge", "out", "user_0", "--archive", "archive").wait().code == 0
    else:
        assert fork(work, "receipts", "req-1", script="amending_steps").wait().code == 0
    assert len(list((work / "receipts").glob("*.json"))) == num_files
    assert not [path for path in (work / "receipts").iterdir() if path.name.startswith(".")]
