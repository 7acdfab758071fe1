"""Evidence of requests on a model on the Hub: the commit before, what was erased, and every address that was tried."""

from __future__ import annotations

import json

import pytest

from hf_clamu.proofs.evidence.page import evidence_html
from hf_clamu.proofs.evidence.summary import summary

REPO = "org/shown"


@pytest.fixture
def report(run, tmp_path):
    """Give the values of the evidence."""

    def report(*words):
        run("report", REPO, *words, "--output", "evidence.json", "--overwrite")
        return json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))

    return report


@pytest.fixture
def pushed(run, recipe):
    run("train", recipe, "--output", "local")
    run("push", "local", REPO)


def test_a_history_that_is_kept(double, pushed, run, report):
    before = double.repos[REPO].branches["main"]
    run("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--keep-history")
    values = report("--before", f"{REPO}@{before}")
    assert values["model"]["commit"] == double.repos[REPO].branches["main"] != before
    change = [one["result"] for one in values["findings"] if one["result"]["of"] == "change"]
    assert [one["verdict"] for one in change] == ["proven"]
    assert ("open", "Older versions of the model on the Hugging Face Hub were not erased with this request.") in [
        (one.verdict, one.text) for one in summary(values)
    ]
    assert f"clamu audit {REPO}@{before} {REPO}" in evidence_html(values)


def test_an_erased_history(pushed, run, report):
    run("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--erase-history")
    values = report()
    erasure = values["receipt"]["content"]["erasure"]
    assert len(erasure["gone"]) == erasure["num_gone"] > 0
    page = evidence_html(values)
    for address in (*erasure["gone"], *(one["url"] for one in erasure["still_reachable"])):
        assert address in page
    said = {one.verdict: one.text for one in summary(values) if "Hub" in one.text}
    assert said["shown"].startswith(f"Older versions were erased on the Hugging Face Hub: {erasure['num_gone']} old")
    assert "Ledgers name tasks" in said["open"]
    assert any("CDN" in text for text in values["not_shown"])


def test_a_pull_request_that_holds_on_is_a_failure(client, pushed, run, report):
    add = "huggingface_hub.CommitOperationAdd('more.bin', b'more')"
    client(f"api.create_commit({REPO!r}, [{add}], commit_message='x', create_pr=True).oid")
    run("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--erase-history")
    values = report()
    failed = [one.text for one in summary(values) if one.verdict == "failed"]
    assert len(failed) == 1
    assert "old addresses still answer" in failed[0]
    assert "refs/pr/1 holds it" in evidence_html(values)
