"""`--dry-run` and `--max-drop` of `clamu unmerge`, `add` and `update`."""

from __future__ import annotations

import json
import threading

import pytest

from hf_clamu.storage import Journal

UNMERGE = ("unmerge", "text", "user_1")


@pytest.fixture
def changed(work):
    """Rows of a new task, and of a merged one that lost a row."""
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    joined = [{**row, "user": "user_9"} for row in rows if row["user"] == "user_0"]
    fewer = [row for row in rows if row["user"] == "user_2"][:-1]
    for name, chosen in (("joined", joined), ("fewer", fewer)):
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (work / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {
        "unmerge": UNMERGE,
        "add": ("add", "text", "--new", "joined.jsonl"),
        "update": ("update", "text", "--new", "fewer.jsonl"),
    }


@pytest.mark.parametrize("name", ["unmerge", "add", "update"])
def test_a_dry_run_changes_no_byte_and_foresees_the_request(clamu, work, tiny, changed, name):
    before = tiny.digests(work)
    dry = clamu(*changed[name], "--dry-run", "--json")
    assert (dry.code, dry.json["status"], dry.json["output"]) == (0, "dry run", "text")
    assert tiny.digests(work) == before
    done = clamu(*changed[name], "--json").json
    assert {**done["effect"], "seconds": None} == {**dry.json["effect"], "seconds": None}
    assert done["receipt"]["effect"]["num_changed"] == dry.json["effect"]["num_changed"] > 0
    assert set(dry.json["effect"]["tasks"]) <= {"user_0", "user_1", "user_2", "user_3"}
    for seconds in (done["effect"]["seconds"], done["receipt"]["seconds"]):
        total = seconds.pop("total")
        assert {"add", "cluster", "encode", "finetune", "localize"} <= seconds.keys()
        assert 0 < sum(seconds.values()) <= total


def test_the_table_is_printed_before_and_after(clamu, work, tiny):
    dry = clamu(*UNMERGE, "--dry-run").out
    assert dry.startswith("Dry run: nothing was changed. text would have 3 tasks instead of 4.\nOther tasks: 3 stay, ")
    done = clamu(*UNMERGE).out
    start = dry.index("Other tasks"), dry.index("Delta, masks, features")
    assert dry[slice(*start)] in done
    assert "user_3" in dry
    assert "validation rows" in dry
    assert "score before" in dry


def test_a_queue_is_looked_at(clamu, work, tiny):
    lines = [{"id": "a", "task": "user_1"}, {"id": "b", "tasks": ["user_1", "user_3"]}, {"id": "c", "task": "nobody"}]
    (work / "queue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    before = tiny.digests(work)
    dry = clamu("unmerge", "text", "--from", "queue.jsonl", "--dry-run", "--json")
    assert (dry.code, [entry["status"] for entry in dry.json["requests"]]) == (2, ["dry run", "dry run", "failed"])
    assert set(dry.json["effect"]["tasks"]) == {"user_0", "user_2"}
    assert "2 dry run" in clamu("unmerge", "text", "--from", "queue.jsonl", "--dry-run").out
    assert tiny.digests(work) == before


def test_too_large_a_drop_is_refused_without_a_trace(clamu, work, tiny):
    """The data are gone, and no score is on record: nothing can be judged."""
    for name in ("text.yaml", "rows.jsonl"):
        text = (work / name).read_text(encoding="utf-8")
        (work / name).write_text(
            text.replace("num_threads", "localization: global, score_validation: false, num_threads"), encoding="utf-8"
        )
    assert clamu("train", "text.yaml", "--output", "plain", "--archive", "vectors").code == 0
    (work / "rows.jsonl").rename(work / "away.jsonl")
    before = tiny.digests(work)
    options = ("unmerge", "plain", "user_1", "--archive", "vectors")
    refused = clamu(*options, "--max-drop", "1", "--json")
    assert (refused.code, refused.json["error"]["type"]) == (1, "ScoreDropError")
    assert "cannot be judged" in refused.json["error"]["message"]
    assert tiny.digests(work) == before
    assert "Not measured: 3 of them" in clamu(*options, "--dry-run").out
    assert clamu(*options, "--max-drop", "1", "--data", "away.jsonl").code == 0


@pytest.mark.parametrize("value", ["-1", "nan", "2", "inf"])
def test_wrong_values_are_refused(clamu, work, tiny, value):
    before = tiny.digests(work)
    assert "a number from 0 to 1" in clamu(*UNMERGE, f"--max-drop={value}").error
    assert clamu(*UNMERGE, "--max-drop", value).code == 2
    assert tiny.digests(work) == before


def test_a_dry_run_waits_for_no_lock(clamu, work):
    """The lock is re-entrant within a thread, so another one holds it."""
    locked, done = threading.Event(), threading.Event()

    def hold():
        with Journal(work / ".text.journal").locked():
            locked.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        locked.wait()
        assert clamu(*UNMERGE).code == 2
        assert clamu(*UNMERGE, "--dry-run").code == 0
    finally:
        done.set()
        holder.join()
