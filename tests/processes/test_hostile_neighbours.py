"""What lies beside a model that somebody handed over decides nothing: no command destroys, writes or runs by it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
from recipes import write_work

from hf_clamu.operations.lifecycle.receipts import make_receipt, receipt_path

DEEP = "[" * 50_000 + "]" * 50_000
READING = {
    "info": ("info", "m"),
    "predict": ("predict", "m", "great 1"),
    "evaluate": ("evaluate", "m"),
    "export": ("export", "m", "--output", "plain"),
    "verify": ("verify", "m"),
}
CHANGING = {
    "unmerge": ("unmerge", "m", "user_1"),
    "update": ("update", "m", "--new", "new.jsonl"),
    "train": ("train", "clamu.yaml", "--output", "m", "--overwrite"),
    "unmerge with an archive": ("unmerge", "m", "user_1", "--archive", "archive"),
}


@pytest.fixture(scope="module")
def made(fork, tmp_path_factory):
    """A model with an archive, and other folders beside it."""
    folder = tmp_path_factory.mktemp("made")
    write_work(folder)
    assert fork(folder, "train", "clamu.yaml", "--output", "m", "--archive", "archive").wait().code == 0
    rows = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "new.jsonl").write_text("".join(row for row in rows if "user_3" in row)[:-1], encoding="utf-8")
    (folder / "victim" / "inner").mkdir(parents=True)
    for name in ("id_rsa", "inner/notes.part", f"{'0' * 64}.safetensors", "lock", "note.json"):
        (folder / "victim" / name).write_text("a private key", encoding="utf-8")
    state = json.loads(fork(folder, "info", "m", "--json").wait().out)["state_digest"]
    return folder, state


@pytest.fixture
def handed(made, tmp_path):
    """A copy to put things beside, and the model's state."""
    shutil.copytree(made[0], tmp_path / "work")
    return tmp_path / "work", made[1]


def _receipt(state, **changes):
    facts = {
        "digests": {"before": "0" * 64, "after": state},
        "environment": None,
        "how": "subtracted",
        "num_requests": 1,
        "num_tasks": {"before": 9, "after": 8},
        "seconds": {"total": 1.0},
        "archive": "to be destroyed",
    }
    return {**make_receipt("unmerge", ["user_9"], recipe={}, facts=facts, request_id="req-17"), **changes}


def _note(work, state, **changes):
    change = {"before": "0" * 64, "after": state, "receipts": [_receipt(state)], "receipt_dir": "../victim"}
    change |= {"archive_dir": "../victim", "written": [], "spent": ["0" * 64 + ".safetensors"], "is_saved": False}
    (work / ".m.journal").mkdir()
    values = {"changes": [{**change, **changes}], "place": "../m"}
    (work / ".m.journal" / "note.json").write_text(json.dumps(values), encoding="utf-8")


SPENT = {
    "a vector's name": {},
    "names of files": {"spent": ["id_rsa", "inner/notes.part"]},
    "a way out": {"archive_dir": "..", "spent": ["victim/id_rsa", "../work/victim/id_rsa"]},
    "known to be saved": {"is_saved": True},
    "an absolute name": {"spent": ["/etc/hostname"]},
    "numbers": {"spent": [5]},
    "no list": {"written": None},
    "a place that is a number": {"archive_dir": 5},
    "a place with a zero": {"receipt_dir": "a\0b"},
    "a digest that is none": {"before": "0"},
    "no receipts": {"receipts": None},
    "receipts of another kind": {"receipts": ["a"]},
    "another field": {"command": "rm"},
}


@pytest.mark.parametrize("kind", SPENT)
@pytest.mark.parametrize("command", ["info", "unmerge", "unmerge with an archive"])
def test_a_note_names_nothing_that_goes(fork, handed, tiny, kind, command):
    work, state = handed
    _note(work, state, **SPENT[kind])
    kept = [tiny.digests(work / name) for name in ("victim", "archive")]
    beside = sorted(path.name for path in work.iterdir())
    ended = fork(work, *(READING | CHANGING)[command]).wait()
    assert "Traceback" not in ended.err
    assert ended.code == 0, ended.err
    assert tiny.digests(work / "victim") == kept[0]
    if command == "info":
        assert sorted(path.name for path in work.iterdir()) == beside
    gone = kept[1].keys() - tiny.digests(work / "archive").keys()
    assert len(gone) == (command == "unmerge with an archive")
    assert sorted(path.name for path in work.iterdir() if path.name not in beside) in ([], ["receipts"])


@pytest.mark.parametrize("command", [*READING, *CHANGING])
def test_every_command_leaves_the_victim(fork, handed, tiny, command):
    work, state = handed
    _note(work, state)
    before = tiny.digests(work / "victim")
    ended = fork(work, *(READING | CHANGING)[command]).wait()
    assert (ended.code, tiny.digests(work / "victim")) == (0, before), ended.err
    if command in READING:
        assert not (work / "receipts").exists()


@pytest.mark.parametrize("kind", ["the journal", "the note", "a part", "the lock", "the receipts", "the stage"])
@pytest.mark.parametrize("command", ["info", "unmerge"])
def test_no_link_is_followed(fork, handed, tiny, kind, command):
    work, _ = handed
    if kind == "the journal":
        (work / ".m.journal").symlink_to("victim")
    elif kind == "the lock":
        (work / ".m.journal.lock").symlink_to("victim/lock")
    elif kind == "the receipts":
        (work / "receipts").symlink_to("victim")
    elif kind == "the stage":
        (work / ".m.abc.new").symlink_to("victim")
    else:
        (work / ".m.journal").mkdir()
        name = "note.json" if kind == "the note" else "0123456789abcdef-0.sum.part"
        (work / ".m.journal" / name).symlink_to("../victim/inner/notes.part")
    before = tiny.digests(work / "victim")
    ended = fork(work, *(READING | CHANGING)[command]).wait()
    assert "Traceback" not in ended.err
    assert ended.code in (0, 2), ended.err
    assert ended.code == 0 or command == "unmerge"
    assert tiny.digests(work / "victim") == before


@pytest.mark.parametrize(
    "text", [DEEP, '{"changes": ' + DEEP + "}", "{", '{"changes": [NaN]}', "[]", '{"changes": 5}']
)
def test_a_note_that_is_none(fork, handed, text):
    work, _ = handed
    (work / ".m.journal").mkdir()
    (work / ".m.journal" / "note.json").write_text(text, encoding="utf-8")
    for command in (READING["info"], CHANGING["unmerge"]):
        ended = fork(work, *command).wait()
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
        assert "holds a note that this release does not write" in ended.err
    assert not (work / ".m.journal").exists()


def test_an_archive_keeps_what_is_merged_whatever_a_note_says(fork, handed, tiny):
    work, state = handed
    names = [path.name for path in (work / "archive").iterdir()]
    _note(work, state, archive_dir="../archive", spent=names)
    ended = fork(work, *CHANGING["unmerge with an archive"]).wait()
    assert ended.code == 0, ended.err
    assert len(list((work / "archive").iterdir())) == len(names) - 1


RECEIPTS = {
    "of another kind": '{"a": 1}',
    "nested deeply": DEEP,
    "with a private part that is null": {"private": None},
    "with a private part that is a text": {"private": "x"},
    "with salts that are a number": {"private": {"salts": 5}},
    "with salts that are no salts": {"private": {"salts": {"user_9": "zz"}}},
    "with digests that are numbers": {"digests": {"before": 1, "after": 2}},
    "with a time that is a way out": {"time": "../../../x"},
    "with tasks that fit no salt": {"tasks": ["0" * 64]},
    "with another count": {"num_tasks": {"before": 20, "after": 8}},
}


@pytest.mark.parametrize("kind", RECEIPTS)
def test_receipts_that_nobody_here_wrote(fork, handed, kind):
    work, state = handed
    (work / "receipts").mkdir()
    forged = RECEIPTS[kind]
    text = forged if isinstance(forged, str) else json.dumps(_receipt(state, **forged))
    (work / "receipts" / "20300101T000000-unmerge-00000000.json").write_text(text, encoding="utf-8")
    (work / "queue.jsonl").write_text('{"id": "req-17", "task": "user_1"}\n', encoding="utf-8")
    found = json.loads(fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait().out)
    assert [entry["status"] for entry in found["requests"]] == ["forgotten"]


def test_receipts_that_were_edited(fork, handed):
    work, _ = handed
    (work / "queue.jsonl").write_text('{"id": "req-17", "task": "user_1"}\n', encoding="utf-8")
    assert fork(work, "unmerge", "m", "--from", "queue.jsonl").wait().code == 0
    (path,) = (work / "receipts").iterdir()
    edited = {**json.loads(path.read_bytes()), "id": "req-18"}
    path.write_text(json.dumps(edited), encoding="utf-8")
    (work / "queue.jsonl").write_text('{"id": "req-18", "task": "user_1"}\n', encoding="utf-8")
    ended = fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait()
    assert (ended.code, json.loads(ended.out)["requests"][0]["status"]) == (2, "failed")
    # Under the name that fits its content it is believed: it is no signature, and the documentation says so.
    path.rename(receipt_path(work / "receipts", edited))
    ended = fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait()
    assert (ended.code, json.loads(ended.out)["requests"][0]["status"]) == (0, "done already")


def test_a_receipt_that_was_shown_does_not_cover_a_line_that_grew(fork, handed):
    work, _ = handed
    queue = work / "queue.jsonl"
    queue.write_text('{"id": "req-17", "task": "user_1"}\n', encoding="utf-8")
    assert fork(work, "unmerge", "m", "--from", "queue.jsonl").wait().code == 0
    (path,) = (work / "receipts").iterdir()
    receipt = json.loads(path.read_bytes())
    del receipt["private"]
    path.write_text(json.dumps(receipt), encoding="utf-8")
    again = json.loads(fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait().out)
    assert [entry["status"] for entry in again["requests"]] == ["done already"]
    for line in ({"id": "req-17", "tasks": ["user_1", "user_2"]}, {"id": "req-17", "task": "user_2"}):
        queue.write_text(json.dumps(line) + "\n", encoding="utf-8")
        ended = fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait()
        (entry,) = json.loads(ended.out)["requests"]
        assert (ended.code, entry["status"]) == (2, "failed")
        assert re.search("lacks the part 'private'.*a request with an id of its own", entry["error"])


def test_a_line_that_grew_is_carried_out(fork, handed):
    work, _ = handed
    queue = work / "queue.jsonl"
    for tasks, status in (
        (["user_1"], "forgotten"),
        (["user_1", "user_2"], "forgotten"),
        (["user_2"], "done already"),
    ):
        queue.write_text(json.dumps({"id": "req-17", "tasks": tasks}) + "\n", encoding="utf-8")
        found = json.loads(fork(work, "unmerge", "m", "--from", "queue.jsonl", "--json").wait().out)
        assert [entry["status"] for entry in found["requests"]] == [status]
    queue.write_text(json.dumps({"id": "req-17", "tasks": ["user_1", "usr_9"]}) + "\n", encoding="utf-8")
    assert fork(work, "unmerge", "m", "--from", "queue.jsonl").wait().code == 2


# -- locks -----------------------------------------------------------------------------------------------------------


def test_a_link_to_a_model_is_the_same_model(fork, handed):
    from hf_clamu.storage import Journal

    work, _ = handed
    (work / "elsewhere").mkdir()
    (work / "elsewhere" / "link").symlink_to(work / "m")
    with Journal(work / ".m.journal").locked():
        for name in ("m", "elsewhere/link", "elsewhere/../m"):
            ended = fork(work, "unmerge", name, "user_1", "--data", "rows.jsonl").wait()
            assert (ended.code, "Another run works on this output" in ended.err) == (2, True), ended.err
    assert fork(work, "unmerge", "elsewhere/link", "user_1").wait().code == 0
    assert (work / "elsewhere" / "link").is_symlink()
    assert os.listdir(work / "elsewhere" / "receipts")


def test_a_build_is_alone_until_it_is_saved(fork, handed):
    from hf_clamu import RunInProgressError
    from hf_clamu.storage import Journal

    work, _ = handed
    run = fork(
        work,
        "train",
        "clamu.yaml",
        "--output",
        "b",
        die_in="hf_clamu.models.saving:write_checkpoint",
        by=signal.SIGSTOP,
    )
    run.wait_until_stopped()  # it has come to writing the model
    try:
        assert not (work / "b").exists()
        with pytest.raises(RunInProgressError), Journal(work / ".b.journal").locked():
            pass
    finally:
        os.kill(run.pid, signal.SIGCONT)
    assert run.wait().code == 0
    with Journal(work / ".b.journal").locked():
        pass
    assert not [path for path in work.iterdir() if path.name.startswith(".b")]


# -- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["unmerge", "train"])
def test_an_interrupt_after_the_exchange_does_not_say_that_nothing_was_changed(fork, handed, tiny, command):
    work, _ = handed
    command = CHANGING[command]
    before = tiny.digests(work / "m")
    (work / "emr.yaml").replace(work / "clamu.yaml")  # another model, so that it can be seen
    where = "hf_clamu.storage.replace:_sync_name"
    ended = fork(work, *command, die_in=where, by=signal.SIGINT).wait()
    assert ended.code == 130
    assert tiny.digests(work / "m") != before
    assert "nothing was changed" not in ended.err
    assert re.search(r"Interrupted after the new model had come to .*/m; the same command again finishes", ended.err)
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_an_error_after_the_exchange_says_so(fork, handed, tiny):
    work, _ = handed
    ended = fork(work, *CHANGING["unmerge"], die_in="hf_clamu.models.state:finish_pending", by=-1).wait()
    assert (ended.code, "The new model is in" in ended.err) == (2, True), ended.err


# -- the end of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "hf_clamu.storage.replace:_sync_name",
        "hf_clamu.storage.journal:Journal.clear",
        "hf_clamu.storage.locking:FileLock._remove",
    ],
)
@pytest.mark.parametrize("command", ["train", "unmerge"])
def test_a_kill_at_the_very_end_is_made_up_for(fork, handed, tiny, command, where):
    work, _ = handed
    words = {"train": ("train", "clamu.yaml"), "unmerge": ("unmerge", "m", "user_1")}[command]
    words = (*words, "--output", "n")
    assert fork(work, *words, die_in=where).wait().code == -signal.SIGKILL
    new = tiny.digests(work / "n")
    for _ in range(2 if command == "unmerge" else 1):
        ended = fork(work, *words).wait()
        assert ended.code == 0, ended.err
    assert tiny.digests(work / "n") == new
    assert not [path for path in work.iterdir() if path.name.startswith(".")]
