"""Receipts in their files: what is added to one later reaches its file, and there is one file of each."""

from __future__ import annotations

import json

from hf_clamu.operations.lifecycle.amending import amend_receipt, finish_amendments
from hf_clamu.operations.lifecycle.receipts import (
    amending_marker,
    is_receipt,
    make_receipt,
    read_receipts,
    write_receipt,
)

ERASURE = {"repo_id": "org/model", "still_reachable": []}


def _receipt():
    facts = {
        "digests": {"before": "a" * 64, "after": "b" * 64},
        "environment": None,
        "how": "subtracted",
        "num_requests": 1,
        "num_tasks": {"before": 3, "after": 2},
        "seconds": {"total": 1.5},
    }
    return make_receipt("unmerge", ["user_1"], recipe={"seed": 0}, facts=facts)


def test_what_is_added_reaches_the_file(tmp_path):
    receipt = _receipt()
    old = write_receipt(tmp_path, receipt)
    amend_receipt(tmp_path, receipt, erasure=ERASURE)
    (path,) = tmp_path.iterdir()
    assert path != old  # its name is of its content
    assert json.loads(path.read_bytes())["erasure"] == ERASURE
    assert read_receipts(tmp_path) == {path: receipt}


def test_adding_the_same_again_changes_nothing(tmp_path):
    receipt = _receipt()
    write_receipt(tmp_path, receipt)
    for _ in range(2):
        amend_receipt(tmp_path, receipt, erasure=ERASURE)
    assert list(read_receipts(tmp_path).values()) == [receipt]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_receipt_without_a_file_gets_none(tmp_path):
    receipt = _receipt()
    amend_receipt(None, receipt, erasure=ERASURE)
    assert receipt["erasure"] == ERASURE
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_writes_is_none():
    receipt = _receipt()
    assert is_receipt(receipt)
    for time in ("2026-13-01T00:00:00+00:00", "2026-02-30T00:00:00+00:00", "\u0662026-01-01T00:00:00+00:00"):
        assert not is_receipt({**receipt, "time": time})
    assert not is_receipt({**receipt, "num_requests": 10**30})


def test_a_marker_hides_no_receipt_of_another_request_nor_one_whose_successor_is_damaged(tmp_path):
    receipt = _receipt()
    other = {**_receipt(), "time": receipt["time"]}
    old, new = write_receipt(tmp_path, receipt), write_receipt(tmp_path, other)
    marker = amending_marker(old, new)
    marker.touch()
    amending_marker(old, old).touch()
    finish_amendments(tmp_path)
    assert read_receipts(tmp_path) == {old: receipt, new: other}
    new.unlink()
    new = write_receipt(tmp_path, {**receipt, "erasure": ERASURE})
    amending_marker(old, new).touch()
    assert list(read_receipts(tmp_path)) == [new]
    whole = new.read_bytes()
    new.write_bytes(whole[:-9])
    finish_amendments(tmp_path)
    assert list(read_receipts(tmp_path)) == [old]
    new.write_bytes(whole)
    finish_amendments(tmp_path)
    amending_marker(old, old).unlink()
    assert list(tmp_path.iterdir()) == [new]
