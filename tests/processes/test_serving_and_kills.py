"""A process that serves from threads and forgets at the same time may be killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest
from serving_steps import answers

FORGOTTEN = ("user_1", "user_4")
SERVED = ("user_0", "user_2", "user_7")


@pytest.fixture
def served(fork, work, tiny):
    """Digests before and after the request; the right answers of both states lie in `right.json`."""
    assert fork(work, "train", "clamu.yaml", "--output", "out").wait().code == 0
    without = [word for task_id in FORGOTTEN for word in ("--without", task_id)]
    assert fork(work, "train", "clamu.yaml", "--output", "reference", *without).wait().code == 0
    both = [answers(work / name, list(SERVED)) for name in ("out", "reference")]
    right = {task_id: [found[task_id] for found in both] for task_id in SERVED}
    (work / "right.json").write_text(json.dumps(right), encoding="utf-8")
    return tiny.digests(work / "out"), tiny.digests(work / "reference")


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_threads_and_kills_leave_no_wrong_byte(fork, work, tiny, served, kills):
    before, after = served
    assert before != after
    arguments = ("out", ",".join(FORGOTTEN), "right.json")
    shutil.copytree(work / "out", work / "whole")
    for _ in range(2):  # the first one imports
        shutil.rmtree(work / "out")
        shutil.copytree(work / "whole", work / "out")
        started = time.monotonic()
        ended = fork(work, *arguments, script="serving_steps").wait()
    seconds = time.monotonic() - started
    assert ended.code == 0, ended.err
    assert tiny.digests(work / "out") == after
    draw = random.Random(kills)
    finished = 0
    for _ in range(kills):
        shutil.rmtree(work / "out")
        shutil.copytree(work / "whole", work / "out")
        moment = draw.uniform(0.3 * seconds, 1.1 * seconds)
        ended = fork(work, *arguments, script="serving_steps").end(moment, signal.SIGKILL)
        assert ended.code in (0, -signal.SIGKILL), ended.err
        finished += ended.code == 0
        assert tiny.digests(work / "out") in (before, after)
        ended = fork(work, *arguments, script="serving_steps").wait()
        assert ended.code == 0, ended.err
        assert tiny.digests(work / "out") == after
    assert finished < kills
    assert not [path for path in work.iterdir() if ".out." in path.name and path.name.endswith((".new", ".old"))]
