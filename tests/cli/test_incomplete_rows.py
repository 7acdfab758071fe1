"""Rows with empty cells: refused, or left out of a build and of every request that reads the same files again."""

from __future__ import annotations

import json

import pytest

_HOLES = [
    {"user": "user_1", "text": "", "label": "good"},
    {"user": "user_0", "text": "great 9", "label": None},
    {"user": None, "text": "great 8", "label": "bad"},
    {"user": "user_2", "text": " ", "label": "good"},
]


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def holes(work):
    """The file of rows, with some that are incomplete between the others."""
    good = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "rows.jsonl").write_text("".join([good[0], _lines(_HOLES), *good[1:]]), encoding="utf-8")
    return work


def test_they_are_refused_together(clamu, holes):
    told = clamu("train", "text.yaml", "--output", "new")
    assert told.code == 2
    assert "3 problems in the data: (1) Column 'user', line 4 of rows.jsonl: a task id must be" in told.error
    assert "line 2 of rows.jsonl" in told.error
    assert "line 3 of rows.jsonl" in told.error
    assert "incomplete_rows: skip (--incomplete-rows skip)" in told.error
    assert clamu("init", "rows.jsonl", "--output", "holes.yaml", "--json").json["blocking"] != []
    told = clamu("init", "rows.jsonl", "--output", "skip.yaml", "--incomplete-rows", "skip", "--json").json
    assert (told["blocking"], told["next"][0][:10]) == ([], "clamu plan")
    assert clamu("plan", "skip.yaml", "--json").json["num_tasks"] == 4


def test_without_them_a_request_and_a_build_are_the_same_bytes(clamu, holes, tiny):
    told = clamu("train", "text.yaml", "--output", "model", "--incomplete-rows", "skip")
    assert "Left out 4 of the 28 rows, because a cell is empty: rows of 3 tasks, and 1 without a task id." in told.err
    recipe = (holes / "text.yaml").read_text(encoding="utf-8").replace("files:", "incomplete_rows: skip, files:")
    (holes / "skip.yaml").write_text(recipe, encoding="utf-8")
    rows = (holes / "rows.jsonl").read_text(encoding="utf-8")
    assert clamu("train", "skip.yaml", "--output", "again").code == 0
    assert tiny.digests(holes / "again") == tiny.digests(holes / "model")
    assert clamu("verify", "model").code == 0
    # The file says nothing of the tasks that left.
    left = [line for line in rows.splitlines(keepends=True) if json.loads(line)["user"] not in ("user_1", "user_3")]
    (holes / "rows.jsonl").write_text("".join(left), encoding="utf-8")
    assert clamu("train", "skip.yaml", "--output", "target").code == 0
    (holes / "rows.jsonl").write_text(rows, encoding="utf-8")
    assert clamu("unmerge", "model", "user_1").code == 0
    assert clamu("unmerge", "model", "user_3").code == 0
    assert tiny.digests(holes / "model") == tiny.digests(holes / "target")
    # What comes later is read in the same way.
    assert clamu("add", "model", "user_1", "user_3", "--new", "rows.jsonl").code == 0
    assert tiny.digests(holes / "model") == tiny.digests(holes / "again")
    assert clamu("info", "model", "--json").json["task_spec"]["incomplete_rows"] == "skip"


def test_a_model_that_refuses_them_goes_on_refusing_them(clamu, holes):
    told = clamu("unmerge", "text", "user_1")
    assert told.code == 2
    assert "3 problems in the data" in told.error
