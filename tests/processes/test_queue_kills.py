"""A worker on received requests that is killed at any moment: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest
from recipes import write_work

from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.states import read_states

OFTEN = {"CLAMU_JOURNAL_SECONDS": "0"}
_TASKS = ("user_1", "user_4")


@pytest.fixture(scope="module")
def trained(fork, tmp_path_factory):
    work = tmp_path_factory.mktemp("queue")
    write_work(work)
    assert fork(work, "train", "clamu.yaml", "--output", "out").wait().code == 0
    without = [word for name in _TASKS for word in ("--without", name)]
    assert fork(work, "train", "clamu.yaml", "--output", "reference", *without).wait().code == 0
    for name in _TASKS:
        assert fork(work, "queue", "add", "out", name, "--id", f"letter of {name}").wait().code == 0
    return work


@pytest.fixture
def ready(trained, tmp_path):
    """A model with two requests, and beside it a build without them."""
    return shutil.copytree(trained, tmp_path / "work")


def _states(work):
    return [(one.request.name, one.word) for one in read_states(RequestBook.of(str(work / "out")))]


def _finish(fork, work, tiny):
    """Run once more, and see that all is as if nobody had been killed."""
    ended = fork(work, "queue", "run", "out", **OFTEN).wait()
    assert ended.code == 0, ended.err
    assert tiny.digests(work / "out") == tiny.digests(work / "reference")
    receipts = [json.loads(path.read_bytes()) for path in (work / "receipts").glob("*.json")]
    assert sorted(receipt["id"] for receipt in receipts) == [f"letter of {name}" for name in _TASKS]
    assert _states(work) == [(f"letter of {name}", "published") for name in _TASKS]
    outcomes = [one.outcome for one in RequestBook.of(str(work / "out")).read()]
    assert {one.status for one in outcomes} == {"forgotten"}
    assert all((work / "receipts" / one.receipt).is_file() for one in outcomes)
    (found,) = (work / "requests" / "out" / "findings").glob("*.json")
    assert json.loads(found.read_bytes())["verification"]["identical"] is True
    assert not list((work / "requests").rglob("*.lock"))


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("hf_clamu.operations.intake.book:RequestBook.order", 0),
        ("hf_clamu.operations.intake.working:WorkLog.enter", 0),
        ("hf_clamu.operations.intake.working:WorkLog.enter", 1),
        ("hf_clamu.operations.intake.findings:record_finding", 0),
        ("hf_clamu.operations.intake.working:WorkLog.enter", 2),
        ("hf_clamu.operations.lifecycle.recovery:write_receipt", 1),
        ("hf_clamu.operations.intake.book:RequestBook.settle", 0),
        ("hf_clamu.operations.intake.book:RequestBook.settle", 1),
        ("hf_clamu.operations.intake.working:WorkLog.enter", 3),
    ],
)
def test_it_goes_on_wherever_it_died(fork, ready, tiny, where, calls):
    ended = fork(ready, "queue", "run", "out", die_in=where, calls=calls, **OFTEN).wait()
    assert ended.code == -signal.SIGKILL, ended
    assert {word for _, word in _states(ready)} <= {"received", "waiting", "published"}
    if (where, calls) == ("hf_clamu.operations.intake.working:WorkLog.enter", 3):
        assert {word for _, word in _states(ready)} == {"published"}
    _finish(fork, ready, tiny)


def test_it_goes_on_after_kills_at_any_moment(fork, ready, tiny):
    draw, killed, longest = random.Random(3), 0, 6.0
    for _ in range(8):
        started = time.monotonic()
        ended = fork(ready, "queue", "run", "out", **OFTEN).end(draw.uniform(0, longest), signal.SIGKILL)
        killed += ended.code == -signal.SIGKILL
        assert ended.code in (0, -signal.SIGKILL), ended.err
        longest = longest if ended.code else min(longest, time.monotonic() - started) / 2
    assert killed >= 1
    _finish(fork, ready, tiny)
