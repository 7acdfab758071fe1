"""`clamu attack`: figures of a model, of the one before and of a build without the task, and what it refuses."""

from __future__ import annotations

import json

import pytest

TASK = ("--task", "user_1")
# The conftest's six rows a task, four of them trained on: three tasks have enough.
POOLED = (*TASK, "--task", "user_2", "--task", "user_3")


@pytest.fixture
def copies(clamu, work):
    """The models `text` (before), `after` and `rebuilt` without `user_1`, and `held.jsonl`."""
    assert clamu("unmerge", "text", "user_1", "--output", "after").code == 0
    assert clamu("train", "text.yaml", "--output", "rebuilt", "--without", "user_1").code == 0
    lines = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "text": f"{json.loads(line)['text']}, too"} for line in lines]
    (work / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return work


def test_before_after_and_rebuilt(clamu, copies):
    arguments = ("attack", "after", *POOLED, "--data", "rows.jsonl", "--before", "text", "--rebuilt", "rebuilt")
    found = clamu(*arguments, "--json")
    assert found.code == 0, found.err
    assert found.json["tasks"] == ["user_1", "user_2", "user_3"]
    assert (found.json["num_members"], found.json["num_held_out"]) == (12, 6)
    models = found.json["models"]
    assert list(models) == ["before", "model", "rebuilt"]
    assert models["model"] == models["rebuilt"] != models["before"]
    assert found.json["equals_rebuilt"] is True
    assert found.json["tasks_between"] == {"left": 1, "joined": 0}
    assert list(found.json["pair"]) == ["difference"]
    assert set(models["model"]) == {"served", "worst"}
    text = clamu(*arguments)
    assert text.out == clamu(*arguments).out
    assert "3 tasks: 12 rows that were trained on, 6 held out" in text.out
    assert "This model and the rebuilt one: equal in every digit." in text.out
    assert "A TPR at 5 % FPR takes 20 held-out rows." in text.out
    words = " ".join(text.out.split())
    for line in (
        "before as served",
        "this model worst cluster (",
        "rebuilt as served",
        "both copies difference of deltas",
    ):
        assert line in words
    value = models["before"]["served"]["membership"]["loss"]["auc"]["value"]
    assert f"{value:.2f}" in text.out


def test_rows_that_are_held_out(clamu, copies):
    found = clamu("attack", "text", *TASK, "--held-out", "held.jsonl", "--json")
    # Validation rows are not counted then: four rows were trained on.
    assert "has 4 rows that were trained on and 6 that were held out" in found.json["error"]["message"]
    found = clamu("attack", "text", *POOLED, "--held-out", "held.jsonl", "--json").json
    assert (found["num_members"], found["num_held_out"]) == (12, 18)


def test_a_language_model(clamu, copies):
    arguments = ("attack", "lm", *TASK, "--held-out", "held.jsonl")
    found = clamu(*arguments, "--json").json
    assert list(found["base"]["membership"]) == ["loss", "min-k", "min-k++", "zlib"]
    assert found["base"]["extraction"]["strength"]["value"] is not None
    out = clamu(*arguments).out
    assert "extraction strength" in out
    assert "task user_1: 6 rows" in out
    some = clamu(*arguments, "--attack", "zlib", "--attack", "loss", "--json").json
    assert list(some["base"]["membership"]) == ["loss", "zlib"]
    assert some["base"]["extraction"] is None


def test_a_model_that_differs_from_the_rebuilt_one(clamu, copies):
    found = clamu("attack", "text", *POOLED, "--rebuilt", "rebuilt")
    assert found.code == 0
    assert "differ, so they are not the same bytes: see clamu verify" in found.out


def test_keyed_ids(clamu, work, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "secret")
    assert clamu("train", "text.yaml", "--output", "keyed").code == 0
    assert clamu("attack", "keyed", *POOLED, "--json").json["tasks"] == ["user_1", "user_2", "user_3"]
    assert clamu("unmerge", "keyed", "user_1").code == 0
    found = clamu("attack", "keyed", *POOLED, "--data", "rows.jsonl", "--json").json
    assert found["tasks"] == ["user_1", "user_2", "user_3"]
    monkeypatch.delenv("CLAMU_TASK_ID_KEY")
    assert "CLAMU_TASK_ID_KEY" in clamu("attack", "keyed", *POOLED).error


WRONG = {
    "attack text": "Missing option '--task'",
    "attack nowhere --task user_1": "nowhere is not a folder",
    "attack text --task user_9": "Task 'user_9' has no rows in rows.jsonl, which has rows of 4 tasks",
    "attack text --task user_1": "has 4 rows that were trained on and 2 that were held out, and an interval takes 5",
    "attack text --task user_1 --data nowhere.jsonl": "no data file nowhere.jsonl",
    "attack text --task user_1 --held-out nowhere.jsonl": "no data file nowhere.jsonl",
    "attack text --task user_1 --before nowhere": "nowhere is not a folder",
    "attack text --task user_1 --before image": "given as before is a ViTForImageClassification",
    "attack text --task user_1 --rebuilt lm": "given as rebuilt is a GPT2LMHeadModel",
    "attack image --task owner_00 --attack min-k": "'min-k' reads the tokens that a model writes, and this one is for",
    "attack lm --task user_1 --attack min": "There is no attack 'min'; expected some of loss, min-k, min-k++, zlib,",
    "attack lm --task user_1 --guidance 0": "guidance must be a positive number",
    "attack lm --task user_1 --guidance much": "Invalid value for '--guidance'",
    "attack lm --task user_1": "has 6 rows that were trained on and 0 that were held out",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input(clamu, work, line):
    found = clamu(*line.split())
    assert found.code == 2
    assert WRONG[line] in found.error
    assert "fault of hf_clamu" not in found.error


def test_rows_that_changed(clamu, work):
    lines = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "rows.jsonl").write_text("".join(line for line in lines if " 3 of 1" not in line), encoding="utf-8")
    found = clamu("attack", "text", *POOLED)
    assert found.code == 1
    assert "The rows of task 'user_1' are not those that were merged" in found.error
