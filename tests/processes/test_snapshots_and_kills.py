"""Commands with a snapshot: killed at every moment that matters, and in two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import RECIPE, write_new_rows, write_work

SIFT = "localization: sift, clustering: none, scaling: 1.0, score_validation: false"
# Where a request dies, after how many calls, and whether the new model is at its place then. (The journal's note comes
# to its place as rows do, before them.)
MOMENTS = {
    "before the new rows": ("hf_clamu.storage.snapshot.files:write_atomically", 0, False),
    "before the new rows have their name": ("hf_clamu.storage.durable:move_into_place", 1, False),
    "before the model": ("hf_clamu.models.saving:write_checkpoint", 0, False),
    "before the old rows go": ("hf_clamu.models.keeping:destroy_left_rows", 0, True),
    "while the old rows go": ("hf_clamu.storage.snapshot.files:destroy_file", 0, True),
    "before the receipts": ("hf_clamu.models.state:finalize_changes", 0, True),
}


@pytest.fixture(scope="module")
def trained(fork, tiny, tmp_path_factory):
    """A model with a snapshot, whose data are gone, and digests of builds without user_1 and with new rows of it."""
    folder = tmp_path_factory.mktemp("trained")
    write_work(folder)
    (folder / "kept.yaml").write_text(RECIPE.replace("LOCALIZE", SIFT) + "snapshot: true\n", encoding="utf-8")
    write_new_rows(folder, "user_1")
    assert fork(folder, "train", "kept.yaml", "--output", "out").wait().code == 0
    digests = {}
    for name, arguments in (("unmerge", ("--without", "user_1")), ("update", ("--data", "all.jsonl"))):
        assert fork(folder, "train", "kept.yaml", "--output", name, *arguments).wait().code == 0
        digests[name] = tiny.digests(folder / name)
        shutil.rmtree(folder / name)
        shutil.rmtree(folder / f"{name}.snapshot")
    for name in ("rows.jsonl", "all.jsonl"):
        (folder / name).unlink()
    return folder, digests


@pytest.fixture
def work(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "work")


def _rows(work):
    return sorted(path.name for path in (work / "out.snapshot").iterdir())


def _receipts(work):
    return [json.loads(path.read_bytes()) for path in sorted((work / "receipts").glob("*.json*"))]


COMMANDS = {"unmerge": ("unmerge", "out", "user_1"), "update": ("update", "out", "--new", "new.jsonl")}


@pytest.mark.parametrize(
    ("kind", "moment"),
    [(kind, moment) for kind in COMMANDS for moment in MOMENTS if kind == "update" or "new rows" not in moment],
)
def test_a_killed_request_loses_no_rows_and_leaves_none(fork, work, trained, tiny, kind, moment):
    where, calls, is_saved = MOMENTS[moment]
    before, rows = tiny.digests(work / "out"), _rows(work)
    ended = fork(work, *COMMANDS[kind], die_in=where, calls=calls).wait()
    assert ended.code == -signal.SIGKILL, ended.err
    assert tiny.digests(work / "out") == (trained[1][kind] if is_saved else before)
    assert _receipts(work) == []
    if not is_saved:
        # The rows of all tasks of the model that is there.
        assert set(rows) <= set(_rows(work))
        verified = fork(work, "verify", "out").wait()
        assert verified.code == 0, verified.err
    ended = fork(work, *COMMANDS[kind]).wait()
    assert ended.code == 0, ended.err
    assert tiny.digests(work / "out") == trained[1][kind]
    assert len(_rows(work)) == (7 if kind == "unmerge" else 8)
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in _rows(work))
    assert len(set(rows) - set(_rows(work))) == 1
    assert [receipt["snapshot"] for receipt in _receipts(work)] == ["destroyed"]
    assert fork(work, "verify", "out").wait().code == 0


@pytest.mark.parametrize(
    "where", ["hf_clamu.storage.snapshot.files:write_atomically", "hf_clamu.models.saving:write_checkpoint"]
)
def test_a_killed_build_is_complete_in_the_end(fork, work, trained, tiny, where):
    write_work(work)
    before = tiny.digests(work / "out"), _rows(work)
    for name in ("out", "out.snapshot"):
        shutil.rmtree(work / name)
    command = ("train", "kept.yaml", "--output", "out")
    assert fork(work, *command, die_in=where).wait().code == -signal.SIGKILL
    ended = fork(work, *command).wait()
    assert ended.code == 0, ended.err
    assert (tiny.digests(work / "out"), _rows(work)) == before


def test_two_processes_share_a_request(work, trained, tiny, fork):
    write_work(work)
    launcher = [
        *(str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"),
        *"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 -m hf_clamu.cli".split(),
    ]

    def launched(*arguments):
        return subprocess.run(
            [*launcher, *arguments], cwd=work, env=os.environ, capture_output=True, text=True, timeout=240, check=True
        )

    before = _rows(work)
    for name in ("out", "out.snapshot"):
        shutil.rmtree(work / name)
    launched("train", "kept.yaml", "--output", "out")
    assert _rows(work) == before
    (work / "rows.jsonl").unlink()
    launched("unmerge", "out", "user_1")
    assert tiny.digests(work / "out") == trained[1]["unmerge"]
    assert len(_rows(work)) == 7
    assert [receipt["snapshot"] for receipt in _receipts(work)] == ["destroyed"]
    assert fork(work, "verify", "out").wait().code == 0


def test_add_and_evaluate_need_no_other_data(fork, work, trained):
    rows = _rows(work)
    assert fork(work, "unmerge", "out", "user_1").wait().code == 0
    (work / "back.jsonl").write_text((work / "new.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    assert fork(work, "add", "out", "--new", "back.jsonl").wait().code == 0
    (work / "back.jsonl").unlink()
    assert len(_rows(work)) == len(rows)
    for command in (
        ("verify", "out", "--json"),
        ("evaluate", "out", "--json"),
        ("unmerge", "out", "user_2", "--json"),
    ):
        ended = fork(work, *command).wait()
        assert ended.code == 0, ended.err
        json.loads(ended.out)


def test_a_damaged_file_is_one_sentence(fork, work, tiny):
    for path in (work / "out.snapshot").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    before = tiny.digests(work / "out")
    ended = fork(work, "unmerge", "out", "user_1", "--json").wait()
    assert ended.code == 1
    error = json.loads(ended.out)["error"]
    assert error["type"] == "SnapshotError"
    assert "user_1" in error["message"]
    assert "Nothing was changed" in error["message"]
    assert "Traceback" not in ended.err
    assert tiny.digests(work / "out") == before
