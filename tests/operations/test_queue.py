"""Lines of a queue of requests, and receipts on the way to a state."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hf_clamu import TaskDataError
from hf_clamu.operations.lifecycle.queue import read_requests
from hf_clamu.operations.lifecycle.receipts import lineage


@pytest.fixture
def queue(tmp_path):
    def write(text):
        (tmp_path / "queue.jsonl").write_bytes(text.encode("utf-8"))
        return tmp_path / "queue.jsonl"

    return write


@pytest.mark.parametrize("strange", ["\u2028", "\u2029", "\u0085"])
def test_what_separates_lines_elsewhere_may_stand_in_an_id(queue, strange):
    name = f"a{strange}b"
    (request,) = read_requests(queue(f'{{"id": "{name}", "task": "{name}"}}\r\n\r\n'))
    assert (request.name, request.tasks) == (name, (name,))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "task": "user_1", "task": "user_2"}', "the key 'task' twice"),
        ('{"id": "a", "id": "b", "task": "user_1"}', "the key 'id' twice"),
        ('{"id": "a\\ud800", "task": "user_1"}', "half of a surrogate pair"),
        ('{"id": "a", "task": "\\udfff"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ('{"id": "a", "task": "user_1", "x": NaN}', "NaN is no JSON"),
    ],
)
def test_lines_that_would_be_misread(queue, line, message):
    with pytest.raises(TaskDataError, match=rf"line 2: expected a JSON object.*{message}"):
        read_requests(queue(f'{{"id": "first", "task": "user_0"}}\n{line}\n'))


def test_a_long_lineage_takes_no_time():
    receipts = {
        Path(f"{number}.json"): {"time": f"{number:06d}", "digests": {"before": f"{number}", "after": f"{number + 1}"}}
        for number in range(50_000)
    }
    started = time.perf_counter()
    found = lineage(receipts, "50000")
    assert time.perf_counter() - started < 20  # once per state, it was an hour
    assert list(found) == list(reversed(receipts))
