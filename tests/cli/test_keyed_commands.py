"""Every command takes plain ids where the ledger keeps keyed commitments, and says what is missing without the key."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def keyed(clamu, work, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "a secret of three words")
    assert clamu("train", "text.yaml", "--output", "keyed").code == 0
    return work


def test_every_command_takes_plain_ids(clamu, keyed, tiny):
    clusters = clamu("info", "keyed", "--json").json["clusters"]
    assert all(len(one) == 64 for members in clusters for one in members)
    assert clamu("evaluate", "keyed", "--json").json["num_tasks"] == 4
    assert clamu("evaluate", "keyed", "--task", "user_1", "--json").json["num_tasks"] == 1
    assert clamu("predict", "keyed", "great 1", "--task", "user_1").code == 0
    assert len(clamu("predict", "keyed", "--data", "rows.jsonl", "--json").json["predictions"]) == 24
    assert clamu("export", "keyed", "--task", "user_1", "--output", "plain").code == 0
    assert clamu("unmerge", "keyed", "user_1").out.startswith("Forgot user_1 ")
    assert "user_1" in clamu("unmerge", "keyed", "user_1").out  # done before
    assert clamu("add", "keyed", "user_1", "--new", "rows.jsonl").code == 0
    lines = (keyed / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (keyed / "fewer.jsonl").write_text("".join(line for line in lines if '"user_1"' in line and " 3 " not in line))
    assert clamu("update", "keyed", "user_1", "--new", "fewer.jsonl").code == 0
    (keyed / "rows.jsonl").write_text(
        "".join(line for line in lines if '"user_1"' not in line or " 3 " not in line), encoding="utf-8"
    )
    (keyed / "queue.jsonl").write_text(json.dumps({"id": "r1", "task": "user_2"}) + "\n", encoding="utf-8")
    assert clamu("verify", "keyed").code == 0
    assert clamu("unmerge", "keyed", "--from", "queue.jsonl").code == 0
    assert clamu("train", "text.yaml", "--output", "less", "--without", "user_2").code == 0
    assert tiny.digests(keyed / "less") == tiny.digests(keyed / "keyed")


@pytest.mark.parametrize(
    "line",
    [
        "evaluate keyed",
        "evaluate keyed --task user_1",
        "predict keyed a --task user_1",
        "predict keyed --data rows.jsonl",
        "export keyed --task user_1 --output plain",
        "unmerge keyed user_1",
        "add keyed user_1 --new rows.jsonl",
        "update keyed user_1 --new rows.jsonl",
        "verify keyed",
    ],
)
def test_without_the_key_it_is_asked_for(clamu, keyed, monkeypatch, line, tiny):
    before = tiny.digests(keyed / "keyed")
    monkeypatch.delenv("CLAMU_TASK_ID_KEY")
    found = clamu(*line.split())
    assert (found.code, "CLAMU_TASK_ID_KEY" in found.error) == (2, True)
    assert tiny.digests(keyed / "keyed") == before
