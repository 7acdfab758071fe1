"""Requests on a model on the Hub: one push for all, verified before it, and the history erased after it."""

from __future__ import annotations

import json

import pytest

from hf_clamu.hub.erase import UNCOLLECTED

REPO = "org/asked"


@pytest.fixture
def pushed(run, recipe):
    run("train", recipe, "--output", "local")
    run("push", "local", REPO)
    for name in ("user_1", "user_3"):
        run("queue", "add", REPO, name, "--id", f"letter of {name}")
    return REPO


def _states(run):
    return {one["name"]: (one["state"], one["text"]) for one in run("queue", "list", REPO, "--json")["requests"]}


def _run_queue(run, *words, code=0):
    return run("queue", "run", REPO, "--data", "rows.jsonl", *words, "--json", code=code)["requests"]


def test_requests_are_pushed_as_one_commit_and_erased(double, pushed, run, tmp_path):
    num_commits = len(double.repos[REPO].commits)
    found = _run_queue(run, "--erase-history")
    assert [one["outcome"]["status"] for one in found] == ["forgotten", "forgotten"]
    small = "5 small files of old commits answer until the Hub collects its garbage"
    assert set(_states(run).values()) == {("erased", small)}
    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "receipts").glob("*.json")]
    assert sorted(receipt["id"] for receipt in receipts) == ["letter of user_1", "letter of user_3"]
    left = [one["why"] for receipt in receipts for one in receipt["erasure"]["still_reachable"]]
    assert set(left) == {UNCOLLECTED}
    assert len(double.repos[REPO].commits) <= num_commits + 2
    (findings,) = (tmp_path / "requests" / "org--asked" / "findings").glob("*.json")
    verification = json.loads(findings.read_bytes())["verification"]
    assert verification["identical"] is True
    assert verification["state_digest"] == run("info", REPO, "--json")["state_digest"]


def test_a_history_that_is_kept_is_only_published(pushed, run):
    _run_queue(run, "--keep-history", "--verify", "none")
    assert set(_states(run).values()) == {("published", "")}


def test_an_erasure_that_an_earlier_run_did_not_come_to_is_made_up_for(pushed, run, tmp_path):
    lines = [{"id": f"letter of {name}", "task": name} for name in ("user_1", "user_3")]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    # As a run leaves it that was killed after its push.
    run("unmerge", REPO, "--from", "asked.jsonl", "--data", "rows.jsonl", "--keep-history")
    found = _run_queue(run, "--erase-history")
    assert [one["outcome"]["status"] for one in found] == ["forgotten", "forgotten"]
    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "receipts").glob("*.json")]
    assert [set(receipt["erasure"]["steps_done"]) >= {"squash branches"} for receipt in receipts] == [True, True]
    assert {word for word, _ in _states(run).values()} == {"erased"}
    assert {one["outcome"]["receipt"] for one in found} == {path.name for path in (tmp_path / "receipts").iterdir()}


def test_what_still_answers_is_said(client, pushed, run):
    add = "huggingface_hub.CommitOperationAdd('more.bin', b'more')"
    client(f"api.create_commit({REPO!r}, [{add}], commit_message='x', create_pr=True).oid")
    _run_queue(run, "--erase-history", "--verify", "audit")
    for word, text in _states(run).values():
        assert word == "published"
        assert "old addresses still answer" in text
