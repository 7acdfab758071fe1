"""Requests in Python whose process was killed: the next one with the same journal finishes what was left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clamu
from hf_clamu import ClamuModel, ClamuTrainer, RecipeError, TaskNotFoundError
from hf_clamu.operations.lifecycle.receipts import read_receipts
from hf_clamu.storage import Archive
from hf_clamu.training import silent_progress

# Forgets user_1 with a journal and saves in place; killed where argv[2] says, "module:name".
_KILLED = """
import importlib, os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import Tiny
from hf_clamu import ClamuModel
module, name = sys.argv[2].split(":")
owner = importlib.import_module(module)
setattr(owner, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
model = ClamuModel.from_pretrained("m")
options = {"archive": "archive"} if sys.argv[3] == "archive" else {}
model.unmerge_task("user_1", data=Tiny.tasks("text"), journal_dir="j", receipt_dir="r", **options)
model.save_pretrained("m" if sys.argv[4] == "m" else "elsewhere")
"""
AFTER = "hf_clamu.models.state:finalize_changes"
BEFORE = "hf_clamu.models.saving:write_checkpoint"


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    tiny.train("text", options={"archive_dir": folder / "archive"}).save_pretrained(folder / "m")
    return folder


@pytest.fixture
def killed(built, tmp_path, monkeypatch):
    """Run a process that is killed; then this one goes on in its folder."""
    import shutil

    work = shutil.copytree(built, tmp_path / "work")
    monkeypatch.chdir(work)

    def run(where, archive="", place="m"):
        command = [sys.executable, "-c", _KILLED, str(Path(__file__).parents[1]), where, archive, place]
        environment = {**os.environ, "PYTHONPATH": str(Path(hf_clamu.__file__).parents[1])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert Path("j/note.json").is_file()
        assert not Path("r").exists()

    return run


def _users(folder):
    return sorted(user for receipt in read_receipts(Path(folder)).values() for user in receipt["private"]["salts"])


def _vectors(model):
    return {
        task_id: Archive(Path("archive")).holds(task_id, entry["vector_digest"])
        for task_id, entry in model.ledger["tasks"].items()
    }


def test_the_next_request_writes_the_receipt_and_destroys_the_vector(killed, tiny):
    killed(AFTER, archive="archive")
    model = ClamuModel.from_pretrained("m")
    assert "user_1" not in model.tasks
    tasks = tiny.tasks("text").without("user_1")
    options = {"journal_dir": "j", "receipt_dir": "r", "archive": "archive"}
    model.unmerge_task("user_2", data=tasks, **options)
    assert _users("r") == ["user_1"]
    assert [receipt["archive"] for receipt in read_receipts(Path("r")).values()] == ["destroyed"]
    assert len(list(Path("archive").iterdir())) == 4
    model.save_pretrained("m")
    assert _users("r") == ["user_1", "user_2"]
    assert len(list(Path("archive").iterdir())) == 3
    assert all(_vectors(model).values())
    assert not Path("j").exists()


def test_without_the_archive_it_stays_announced_until_one_is_named(killed, tiny):
    killed(AFTER, archive="archive")
    model, tasks = ClamuModel.from_pretrained("m"), tiny.tasks("text").without("user_1")
    with pytest.warns(UserWarning, match=r"still has vectors \(1\) of tasks that were forgotten: name it"):
        model.unmerge_task("user_2", data=tasks, journal_dir="j", receipt_dir="r")
    model.save_pretrained("m")
    assert _users("r") == ["user_1", "user_2"]
    assert [one.get("archive") for one in read_receipts(Path("r")).values()].count("to be destroyed") == 1
    assert len(list(Path("archive").iterdir())) == 5
    tasks = tasks.without("user_2")
    model.unmerge_task("user_3", data=tasks, journal_dir="j", receipt_dir="r", archive="archive")
    model.save_pretrained("m")
    # That of user_2 was never named to an archive; those of user_1 and user_3 were.
    assert len(list(Path("archive").iterdir())) == 3
    assert "to be destroyed" not in [one.get("archive") for one in read_receipts(Path("r")).values()]
    assert not Path("j").exists()


def test_the_same_request_again_is_found_done(killed, tiny):
    killed(AFTER)
    model = ClamuModel.from_pretrained("m")
    before = tiny.digests(Path("m"))
    model.unmerge_task("user_1", data=tiny.tasks("text"), journal_dir="j", receipt_dir="r")
    assert list(model.receipts) == list(read_receipts(Path("r")).values())
    assert _users("r") == ["user_1"]
    model.save_pretrained("m")
    assert tiny.digests(Path("m")) == before
    assert not Path("j").exists()
    with pytest.raises(TaskNotFoundError, match="user_1"):
        model.unmerge_task("user_1", data=tiny.tasks("text"), journal_dir="j", receipt_dir="r")


def test_what_was_not_saved_is_carried_out_again(killed, tiny):
    killed(BEFORE)
    model = ClamuModel.from_pretrained("m")
    model.unmerge_task("user_1", data=tiny.tasks("text"), journal_dir="j", receipt_dir="r")
    assert not Path("r").exists()
    model.save_pretrained("m")
    assert _users("r") == ["user_1"]
    assert not Path("j").exists()


def test_what_was_saved_elsewhere_has_its_receipt(killed, tiny):
    killed(AFTER, place="elsewhere")
    model = ClamuModel.from_pretrained("m")
    model.unmerge_task("user_2", data=tiny.tasks("text"), journal_dir="j", receipt_dir="r")
    assert _users("r") == ["user_1"]
    model.save_pretrained("m")
    assert _users("r") == ["user_1", "user_2"]


def test_without_a_folder_for_receipts_nothing_is_lost(killed, tiny):
    killed(AFTER)
    model, tasks = ClamuModel.from_pretrained("m"), tiny.tasks("text").without("user_1")
    with pytest.warns(UserWarning, match="give the next request with this journal_dir= a receipt_dir=") as warned:
        model.unmerge_task("user_2", data=tasks, journal_dir="j")
    assert {one.filename for one in warned} == {__file__}  # the caller's line, none of ours
    model.save_pretrained("m")
    assert Path("j/note.json").is_file()
    model.unmerge_task("user_3", data=tasks.without("user_2"), journal_dir="j", receipt_dir="r")
    model.save_pretrained("m")
    assert _users("r") == ["user_1", "user_3"]
    assert not Path("j").exists()


def test_a_build_into_a_journal_keeps_what_it_announces(killed, tiny):
    killed(AFTER)
    options = {"processing_class": tiny.processor("text"), "progress": silent_progress, "journal_dir": "j"}
    ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(), **options).train().save_pretrained("n")
    (change,) = json.loads(Path("j/note.json").read_bytes())["changes"]
    assert list(change["receipts"][0]["private"]["salts"]) == ["user_1"]


def test_all_journals_of_a_chain_go_with_the_save(tiny, tmp_path):
    model, tasks = tiny.train("text"), tiny.tasks("text")
    for user, journal in (("user_1", "a"), ("user_2", None), ("user_3", "b")):
        folder = None if journal is None else tmp_path / journal
        model.unmerge_task(user, data=tasks, journal_dir=folder, receipt_dir=tmp_path / "receipts")
        assert not (tmp_path / "receipts").exists()  # what waits, waits together
    notes = [path.parent.name for path in tmp_path.glob("*/note.json")]
    assert notes == ["b"]
    assert len(json.loads((tmp_path / "b" / "note.json").read_bytes())["changes"]) == 3
    model.save_pretrained(tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "receipts"]
    assert _users(tmp_path / "receipts") == ["user_1", "user_2", "user_3"]


def test_an_empty_key_is_refused(tiny):
    with pytest.raises(RecipeError, match="task_id_key is empty"):
        tiny.tasks("text").with_key("")
    with pytest.raises(RecipeError, match="task_id_key is empty"):
        ClamuTrainer(tiny.config("text"), tiny.tasks("text"), task_id_key="")
