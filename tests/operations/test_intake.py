"""Requests that were received: what is taken in, kept, refused, and that nobody gets in the other's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import date, timedelta

import pytest

from hf_clamu.checkpoint.ledger import sealed_digest
from hf_clamu.errors import CheckpointFormatError, RecipeError, RunInProgressError, TaskDataError, TaskNotFoundError
from hf_clamu.exact import canonical_json
from hf_clamu.operations.intake.book import Asked, RequestBook
from hf_clamu.operations.intake.checking import Ledger
from hf_clamu.operations.intake.findings import read_findings, record_finding
from hf_clamu.operations.intake.folders import requests_of
from hf_clamu.operations.intake.reading import MOST_BYTES, read_asked
from hf_clamu.operations.intake.received import Outcome, today
from hf_clamu.operations.intake.states import merged_now, read_states
from hf_clamu.operations.intake.working import Work, WorkLog, is_worked_on, read_work, working
from hf_clamu.operations.lifecycle.receipts import make_receipt, read_receipts, write_receipt


def day(days):
    return (date.fromisoformat(today()) + timedelta(days=days)).isoformat()


@pytest.fixture
def book(tmp_path):
    return RequestBook(tmp_path / "requests" / "model")


def test_it_lies_beside_the_model(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert requests_of("model") == requests_of(str(tmp_path / "model")) == tmp_path / "requests" / "model"
    (tmp_path / "link").symlink_to("model")
    assert requests_of("link") == tmp_path / "requests" / "model"
    assert requests_of("org/name") == tmp_path / "requests" / "org--name"
    monkeypatch.chdir("model")
    assert requests_of(".") == tmp_path / "requests" / "model"


def test_a_request_is_kept_until_it_is_removed(book):
    (first,) = book.add([Asked(tasks=("user_1", "user_1"), name="req-1")])
    assert (first.tasks, first.received, first.due) == (("user_1",), today(), day(30))
    assert first.is_open
    assert not first.is_waiting
    assert not first.is_overdue
    assert RequestBook(book.folder).read() == [first]
    assert [oct(path.stat().st_mode & 0o777) for path in book.folder.rglob("*.json")] == ["0o600"]
    assert book.folder.stat().st_mode & 0o077 == 0
    (ordered,) = book.order()
    assert ordered.is_waiting
    book.settle("req-1", Outcome(status="failed", time="2026-01-01T00:00:00+00:00", reason="no rows"))
    (failed,) = book.read()
    assert failed.is_open
    assert not failed.is_waiting
    assert failed.outcome.reason == "no rows"
    assert book.order(["req-1"])[0].outcome is None
    book.settle("req-1", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00", receipt="r.json"))
    assert not book.read()[0].is_open
    assert book.order() == []
    with pytest.raises(TaskNotFoundError, match="is answered meanwhile"):
        book.remove(["req-1"], only_open=True)
    book.remove(["req-1"])
    # The worker that had it was stopped.
    book.add([Asked(tasks=("user_1",), name="req-2")])
    assert book.order()[0].is_waiting
    book.remove(["req-2"])
    assert book.read() == []
    with pytest.raises(TaskNotFoundError, match="no request 'req-1'"):
        book.remove(["req-1"])


def test_only_so_many_are_open_where_that_is_said(book):
    book.add([Asked(tasks=("user_1",), name="a"), Asked(tasks=("user_2",), name="b")], most_open=2)
    with pytest.raises(TaskDataError, match="2 requests are open and 1 came, and at most 2 may be open"):
        book.add([Asked(tasks=("user_1",), name="a"), Asked(tasks=("user_3",))], most_open=2)
    # What is there already is no more, and what is answered is not open.
    book.add([Asked(tasks=("user_1",), name="a")], most_open=2)
    book.settle("a", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00", receipt="r.json"))
    book.add([Asked(tasks=("user_3",), name="c")], most_open=2)
    assert sorted(one.name for one in book.read()) == ["a", "b", "c"]


def test_what_is_overdue_comes_first_and_what_is_done_last(book):
    asked = [("late", -40, None), ("soon", -20, None), ("own", -20, day(1)), ("done", -50, None)]
    book.add([Asked(tasks=(name,), name=name, received=day(came), due=due) for name, came, due in asked])
    book.settle("done", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00"))
    assert [(one.name, one.is_overdue) for one in book.read()] == [
        ("late", True),
        ("own", False),
        ("soon", False),
        ("done", False),
    ]


def test_twice_the_same_is_one_request(book):
    (first,) = book.add([Asked(tasks=("a", "b"))])
    assert first.name == f"{today()}-001"
    assert book.add([Asked(tasks=("b", "a"))]) == [first]
    assert book.add([Asked(tasks=("b", "a"), name=first.name)]) == [first]
    (second,) = book.add([Asked(tasks=("c",))])
    assert second.name == f"{today()}-002"
    assert len(book.read()) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(tasks=("b",), name="one"), "There is a request 'one' already, for other tasks"),
        (Asked(tasks=("a",), name="two"), "Task 'a' is in the open request 'one' already"),
        (Asked(tasks=("a", "b")), "Task 'a' is in the open request 'one' already"),
        (Asked(tasks=("b",), received="yesterday"), "'received' is no day: 'yesterday'. Write a day as 2026-01-31"),
        (Asked(tasks=("b",), due="2026-02-30"), "'due' is no day: '2026-02-30'"),
        (Asked(tasks=("b",), received="9999-01-01"), f"which is yet to come: today is {today()} here"),
        (Asked(tasks=("b",), received="2026-02-01", due="2026-01-01"), "before it came"),
        (Asked(tasks=()), "names 1 to 10,000 tasks"),
        (Asked(tasks=("b" * 1001,)), "without space at its ends"),
        (Asked(tasks=(" b",)), "without space at its ends"),
        (Asked(tasks=("b\ud800",)), "a text of Unicode"),
        (Asked(tasks=("b",), name="two\nNext: rm"), "one line of signs that can be seen"),
    ],
)
def test_all_or_none_is_taken_in(book, asked, message):
    book.add([Asked(tasks=("a",), name="one")])
    with pytest.raises(TaskDataError) as error:
        book.add([Asked(tasks=("fine",), name="fine"), asked])
    assert message in str(error.value)
    assert [one.name for one in book.read()] == ["one"]


def test_what_was_answered_gives_its_name_to_nothing_else(book):
    """A request whose receipt exists counts as done: one that comes again under its name would be lost."""
    book.add([Asked(tasks=("a",), name="one")])
    book.settle("one", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00", receipt="r.json"))
    before = book.read()
    with pytest.raises(TaskDataError, match="was answered already"):
        book.add([Asked(tasks=("a",), name="one")])
    assert book.read() == before
    book.remove(["one"])
    with pytest.raises(TaskDataError, match="Request 'one' was answered already"):
        book.add([Asked(tasks=("b",), name="one")], answered=["one"])
    found = book.add([Asked(tasks=("a",)), Asked(tasks=("b",))], answered=[f"{today()}-001"])
    assert [one.name for one in found] == [f"{today()}-002", f"{today()}-003"]
    # What is open may come twice, though its receipt is there: its worker was killed before it said so.
    assert book.add([Asked(tasks=("a",), name=found[0].name)], answered=[found[0].name]) == found[:1]


_FULL = """
import resource, sys
from pathlib import Path
from hf_clamu.operations.intake.book import Asked, RequestBook
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
book = RequestBook(Path(sys.argv[1]))
try:
    book.add([Asked(tasks=("short",), name="short"), Asked(tasks=("long" * 200,), name="long")])
except OSError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_what_cannot_be_written_as_a_whole_is_not_taken_in(book):
    book.add([Asked(tasks=("a",), name="one")])
    assert subprocess.run([sys.executable, "-c", _FULL, str(book.folder)]).returncode == 7
    assert [one.name for one in book.read()] == ["one"]
    assert [path.name for path in book.folder.rglob("*") if path.is_file()] == [
        path.name for path in book.folder.glob("received/[0-9a-f]*.json")
    ]


_KILLED = """
import os, signal, sys
from pathlib import Path
from hf_clamu.operations.intake.book import Asked, RequestBook
from hf_clamu.storage import durable
left, sync = [30], durable._sync_file
def dying(path):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
durable._sync_file = dying
RequestBook(Path(sys.argv[1])).add([Asked(tasks=(f"user_{n}",), name=f"r{n}") for n in range(40)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_process_that_dies_while_it_adds_many_leaves_none(book):
    book.add([Asked(tasks=("a",), name="one")])
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(book.folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [one.name for one in book.read()] == ["one"]
    assert len(list(book.folder.glob("received/.*.partial"))) == 40
    asked = [Asked(tasks=(f"user_{n}",), name=f"r{n}") for n in range(20)]
    assert book.add(asked) == book.add(asked)
    assert len(book.read()) == len(list((book.folder / "received").iterdir())) == 21


def test_a_request_is_settled_without_looking_at_the_others(book):
    book.add([Asked(tasks=("a",), name="one"), Asked(tasks=("b",), name="two")])
    (path,) = (path for path in book.folder.rglob("*.json") if '"two"' in path.read_text())
    path.write_text("{")
    book.settle("one", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00"))
    book.settle("none", Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00"))
    path.unlink()
    assert [(one.name, one.is_open) for one in book.read()] == [("one", False)]


def test_damage_and_links_are_refused(book, tmp_path):
    book.add([Asked(tasks=("a",), name="one")])
    (path,) = book.folder.rglob("*.json")
    values = json.loads(path.read_text())
    damages = ({"tasks": []}, {"name": "two"}, {"due": 1}, {"outcome": {}}, {"ordered": 1}, {"more": 1})
    for damaged in ("{", "[]", *(json.dumps({**values, **damage}) for damage in damages)):
        path.write_text(damaged)
        with pytest.raises(CheckpointFormatError, match="is no request"):
            book.read()
    path.unlink()
    (tmp_path / "other").mkdir()
    linked = RequestBook(tmp_path / "linked" / "model")
    (tmp_path / "linked").symlink_to("other")
    with pytest.raises(RecipeError, match="symbolic link"):
        linked.add([Asked(tasks=("a",))])


_ADD = """
import sys
from pathlib import Path
from hf_clamu.operations.intake.book import Asked, RequestBook
book = RequestBook(Path(sys.argv[1]))
for number in range(20):
    book.add([Asked(tasks=(f"{sys.argv[2]}-{number}",))])
"""


def test_processes_and_threads_that_add_at_once_lose_nothing(book):
    command = [sys.executable, "-c", _ADD, str(book.folder)]
    others = [subprocess.Popen([*command, name]) for name in ("p", "q")]
    threads = [
        threading.Thread(target=lambda name=name: [book.add([Asked(tasks=(f"{name}-{n}",))]) for n in range(20)])
        for name in ("s", "t")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    found = book.read()
    assert sorted(one.tasks[0] for one in found) == sorted(f"{name}-{n}" for name in "pqst" for n in range(20))
    assert len({one.name for one in found}) == 80


def test_an_unknown_id_names_nobody_else(tmp_path):
    receipt = make_receipt(
        "unmerge",
        ["gone"],
        recipe={},
        facts={
            "digests": {"before": "0" * 64, "after": "1" * 64},
            "environment": None,
            "how": "subtracted",
            "num_requests": 1,
            "num_tasks": {"before": 2, "after": 1},
            "seconds": {},
        },
    )
    path = write_receipt(tmp_path, receipt)
    ledger = Ledger(merged=["user_1", "user_2"], receipts=read_receipts(tmp_path), ledger_id=str.lower)
    assert ledger.checked([Asked(tasks=("User_1",), name="x")]) == [Asked(tasks=("user_1",), name="x")]
    with pytest.raises(TaskNotFoundError) as error:
        ledger.checked([Asked(tasks=("user_1",)), Asked(tasks=("user_11", "gone"))])
    text = str(error.value)
    assert "'user_11' is no task of this model" in text
    assert f"'gone' was forgotten on {today()}" in text
    assert path.name in text
    assert "user_1'" not in text
    assert "user_2" not in text


def test_a_csv_of_a_spreadsheet():
    text = "\ufeffID; Task ;received\nr1;user_1;2026-01-02\nr1; user_2 ;2026-01-02\n;;\n;user_3;\n;user_4;\n"
    assert read_asked("Book1.CSV", text.encode()) == [
        Asked(name="r1", tasks=("user_1", "user_2"), received="2026-01-02"),
        Asked(tasks=("user_3",)),
        Asked(tasks=("user_4",)),
    ]
    assert read_asked("a.csv", b'task\n"a,b"\n') == [Asked(tasks=("a,b",))]
    assert read_asked("a.jsonl", b'{"id": "r", "task": "a"}\n') == [Asked(name="r", tasks=("a",))]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"user\na\n", "expected a column 'task' in the first line, found 'user'"),
        ("a.csv", b"task,who\na,b\n", "the columns are task, id, received, due; found 'who', too"),
        ("a.csv", b"task, Task\na,b\n", "two columns have the same name"),
        ("a.csv", b"task,id\na,b,c\n", "line 2: it has more cells"),
        ("a.csv", b"task,id\n,b\n", "line 2: the cell of 'task' is empty"),
        ("a.csv", b"task,id,due\na,b,2026-01-01\nc,b,2026-01-02\n", "line 3: request 'b' has other days"),
        ("a.csv", b"task\n", "holds no request"),
        ("a.csv", b"", "found none"),
        ("a.csv", b"task\n\xff\n", "no text in UTF-8"),
        ("a.csv", b'task\n"a\n', "unexpected end of data"),
        ("a.csv", b"t" * (MOST_BYTES + 1), "at most"),
        ("a.jsonl", b"{}\n", "a.jsonl, line 1: a request needs an 'id'"),
    ],
)
def test_a_file_that_is_none_names_the_line(name, data, message):
    with pytest.raises(TaskDataError) as error:
        read_asked(name, data)
    assert message in str(error.value)


def test_findings_are_kept_by_state(tmp_path):
    (tmp_path / "model").mkdir()
    model = str(tmp_path / "model")
    assert read_findings(model, "0" * 64) == {}
    path = record_finding(model, "0" * 64, "audit", {"verdict": "proven"})
    record_finding(model, "0" * 64, "verification", {"identical": True})
    assert path.parent == requests_of(model) / "findings"
    assert read_findings(model, "0" * 64) == {"audit": {"verdict": "proven"}, "verification": {"identical": True}}
    assert read_findings(model, "1" * 64) == {}
    with pytest.raises(ValueError, match="a finding is one of"):
        record_finding(model, "0" * 64, "opinion", {})
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        read_findings(model, "../../x")
    path.write_text(json.dumps({"opinion": 1}))
    with pytest.raises(CheckpointFormatError, match="holds no findings"):
        read_findings(model, "0" * 64)


def test_nothing_is_kept_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "requests").symlink_to("other")
    with pytest.raises(RecipeError, match="requests is a symbolic link"):
        record_finding("model", "0" * 64, "audit", {"verdict": "proven"})
    with pytest.raises(RecipeError, match="requests is a symbolic link"), working(requests_of("model")):
        pytest.fail("it works there")
    assert list((tmp_path / "other").iterdir()) == []


_WORK = """
import sys, time
from pathlib import Path
from hf_clamu.operations.intake.working import WorkLog, working
folder = Path(sys.argv[1])
with working(folder):
    log = WorkLog(folder, ["req-1"])
    log.enter("verifying")
    for item in log([1, 2, 3, 4], "Building"):
        print("at", item, flush=True)
        sys.stdin.readline()
"""


def test_a_worker_is_seen_and_its_death_too(tmp_path):
    assert not is_worked_on(tmp_path)
    assert read_work(tmp_path) is None
    command = [sys.executable, "-c", _WORK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout.readline() == "at 1\n"
            assert is_worked_on(tmp_path)
            # It was stopped, and may save its result yet.
            book = RequestBook(tmp_path)
            book.add([Asked(tasks=("user_1",), name="req-1"), Asked(tasks=("user_2",), name="req-2")])
            with pytest.raises(RunInProgressError, match="The worker has request 'req-1'"):
                book.remove(["req-1"], only_open=True)
            assert [one.name for one in book.remove(["req-2"])] == ["req-2"]
            book.add([Asked(tasks=("user_3",), name="req-3")])
            book.order(["req-3"])
            with pytest.raises(RunInProgressError, match="The worker has request 'req-3'"):
                book.remove(["req-3"])
            with pytest.raises(RunInProgressError, match="A worker takes the requests"), working(tmp_path):
                pass
            time.sleep(0.4)
            worker.stdin.write("\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == "at 2\n"
            work = read_work(tmp_path)
            assert (work.requests, work.stage, work.what) == (("req-1",), "verifying", "Building")
            assert (work.num_done, work.num_items, work.pid) == (1, 4, worker.pid)
            assert work.seconds_left > work.seconds > 0.3
        finally:
            worker.kill()
    assert not is_worked_on(tmp_path)
    assert read_work(tmp_path).requests == ("req-1",)
    with working(tmp_path):
        assert os.path.exists(tmp_path / "worker.lock")
    assert not (tmp_path / "worker.lock").exists()


def test_a_work_file_that_is_none_is_passed_over(tmp_path):
    log = WorkLog(tmp_path, ["a"])
    assert list(log([], "nothing")) == []
    assert read_work(tmp_path) is None
    log.enter("publishing")
    assert read_work(tmp_path) == Work(requests=("a",), stage="publishing", started=read_work(tmp_path).started)
    values = json.loads((tmp_path / "work.json").read_text())
    wrong = [("what", ["x"]), ("stage", []), ("requests", "ab"), ("requests", [1]), ("pid", True), ("seconds", "1")]
    wrong += [
        ("num_items", "1><img src=x onerror=alert(1)>"),
        ("num_items", 10**400),
        ("num_done", 0.5),
        ("seconds", -1),
    ]
    for damaged in ("{", "[]", "{}", *(json.dumps({**values, key: value}) for key, value in wrong)):
        (tmp_path / "work.json").write_text(damaged)
        assert read_work(tmp_path) is None, damaged
    (tmp_path / "work.json").write_text(json.dumps(values))
    assert read_work(tmp_path) is not None


def test_an_answered_request_whose_tasks_are_back_says_so(book, tmp_path):
    model = tmp_path / "model"
    assert merged_now(str(model)) == merged_now("org/name") == ()
    model.mkdir()
    (model / "ledger.json").write_text("{", encoding="utf-8")
    assert merged_now(str(model)) == ()
    book.add([Asked(tasks=("user_1",), name="a"), Asked(tasks=("user_2", "user_3"), name="b")])
    for name in ("a", "b"):
        book.settle(name, Outcome(status="forgotten", time="2026-01-01T00:00:00+00:00", receipt="r.json"))
    book.add([Asked(tasks=("user_4",), name="c")])
    for merged, words in (
        (["user_4"], {"a": "published", "b": "published", "c": "received"}),
        (["user_3", "user_4"], {"a": "published", "b": "merged again", "c": "received"}),  # an older copy
    ):
        ledger = {"tasks": {task_id: {} for task_id in merged}}
        (model / "new").write_bytes(canonical_json({**ledger, "digest": sealed_digest(ledger)}))
        (model / "new").replace(model / "ledger.json")
        assert {one.request.name: one.word for one in read_states(book, merged_now(str(model)))} == words
