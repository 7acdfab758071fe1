"""`clamu queue` as the person who answers requests runs it."""

from __future__ import annotations

import errno
import html
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_clamu.cli.commands.desk.working import Worker
from hf_clamu.errors import SaveConflictError
from hf_clamu.operations.intake.book import Asked, RequestBook
from hf_clamu.operations.intake.received import today
from hf_clamu.operations.intake.working import WorkLog, is_worked_on
from hf_clamu.proofs.evidence.summary import day_of


def _states(found):
    return {one["name"]: one["state"] for one in found.json["requests"]}


def test_a_request_from_the_letter_to_the_receipt(clamu, work, tiny):
    assert clamu("train", "text.yaml", "--output", "less", "--without", "user_1", "--without", "user_3").code == 0
    added = clamu("queue", "add", "text", "user_3", "--id", "letter-7", "--received", "2026-01-02")
    assert (added.code, added.out.splitlines()) == (
        0,
        ["Request letter-7 is taken in: 1 task, due 2026-02-01.", "Next: clamu queue run text"],
    )
    (work / "more.csv").write_text("task\nuser_1\n")
    assert clamu("queue", "add", "text", "--from", "more.csv").code == 0
    listed = clamu("queue", "list", "text")
    assert listed.out.startswith("text: 2 requests, 2 open, 1 overdue.")
    assert listed.out.index("letter-7") < listed.out.index(f"{today()}-001")
    assert _states(clamu("queue", "list", "text", "--json")) == {"letter-7": "received", f"{today()}-001": "received"}
    done = clamu("queue", "run", "text", "--json").json["requests"]
    assert [one["outcome"]["status"] for one in done] == ["forgotten", "forgotten"]
    assert tiny.digests(work / "text") == tiny.digests(work / "less")
    receipts = {path.name: json.loads(path.read_bytes()) for path in (work / "receipts").glob("*.json")}
    assert {receipts[one["outcome"]["receipt"]]["id"] for one in done} == {"letter-7", f"{today()}-001"}
    # One localization for both, and a verification that is kept.
    (after,) = {receipt["digests"]["after"] for receipt in receipts.values()}
    found = json.loads((work / "requests" / "text" / "findings" / f"{after}.json").read_bytes())["verification"]
    assert (found["identical"], found["state_digest"], found["saved"]) == (True, after, found["rebuilt"])
    assert found["saved"] == tiny.digests(work / "text")
    assert set(_states(clamu("queue", "list", "text", "--json")).values()) == {"published"}
    assert clamu("queue", "list", "text", "--open", "--json").json["requests"] == []
    assert clamu("queue", "run", "text").out == "Nothing to do: no request on text is open.\n"


def test_an_unknown_id_is_refused_and_names_nobody(clamu, work):
    error = clamu("queue", "add", "text", "user_11").error
    assert error == (
        "clamu: Nothing was taken in: 'user_11' is no task of this model. Check how the owner's id is written."
    )
    (work / "bad.csv").write_text("task,id\nuser_1,a\nuser_77,b\n")
    assert "'user_77' is no task" in clamu("queue", "add", "text", "--from", "bad.csv").error
    assert clamu("queue", "list", "text").out == "text: 0 requests, 0 open, 0 overdue.\n"
    assert clamu("queue", "add", "text", "user_1").code == 0
    assert clamu("unmerge", "text", "user_3").code == 0
    assert f"'user_3' was forgotten on {today()} (receipt " in clamu("queue", "add", "text", "user_3").error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "text"], "Give the tasks of one request, or --from FILE"),
        (["add", "text", "user_1", "--from", "x.csv"], "Give the tasks of one request, or --from FILE"),
        (["add", "text", "--from", "x.csv", "--id", "a"], "or --from FILE with requests alone"),
        (["add", "text", "--from", "x.csv"], "There is no file x.csv"),
        (["add", "text", "user_1", "--due", "soon"], "Write a day as 2026-01-31"),
        (["add", "nowhere", "user_1"], "nowhere"),
        (["remove", "text", "x"], "There is no request 'x'. List them with clamu queue list"),
        (["run", "text", "--on-mismatch", "localize"], "--archive"),
        (["dance", "text"], "No such command 'dance'"),
    ],
)
def test_wrong_words_get_one_sentence(clamu, work, words, message):
    assert message in clamu("queue", *words).error
    assert not list((work / "requests").rglob("received/*.json"))


def test_a_request_that_fails_says_why_and_can_be_repeated(clamu, work, tiny):
    rows = (work / "rows.jsonl").read_text()
    assert clamu("queue", "add", "text", "user_3", "--id", "a").code == 0
    (work / "rows.jsonl").write_text(rows.replace("dull", "nice"))
    before = tiny.digests(work / "text")
    assert clamu("queue", "run", "text").code == 1
    assert tiny.digests(work / "text") == before
    (failed,) = clamu("queue", "list", "text", "--json").json["requests"]
    assert (failed["state"], failed["ordered"] is None) == ("failed", False)
    assert "user_" in failed["text"]
    assert "changed" in failed["text"]
    (work / "rows.jsonl").write_text(rows)
    assert clamu("queue", "run", "text", "--waiting").out.startswith("Nothing to do")
    assert clamu("queue", "run", "text").code == 0
    assert _states(clamu("queue", "list", "text", "--json")) == {"a": "published"}
    assert clamu("queue", "remove", "text", "a").out == "Struck out: a.\n"
    assert clamu("queue", "list", "text", "--json").json["requests"] == []


def test_a_task_that_left_meanwhile_does_not_stop_the_others(clamu, work):
    for name in ("user_1", "user_3"):
        assert clamu("queue", "add", "text", name, "--id", name).code == 0
    assert clamu("unmerge", "text", "user_3").code == 0
    for path in (work / "receipts").glob("*.json"):
        path.unlink()
    found = clamu("queue", "run", "text", "--verify", "none", "--json")
    assert found.code == 2
    assert {one["name"]: (one["outcome"]["status"], one["outcome"]["reason"]) for one in found.json["requests"]} == {
        "user_1": ("forgotten", ""),
        "user_3": ("failed", "not merged: 'user_3'"),
    }


def test_what_was_forgotten_before_is_no_second_request(clamu, work):
    assert clamu("queue", "add", "text", "user_3", "--id", "a").code == 0
    assert clamu("unmerge", "text", "user_3").code == 0
    (one,) = clamu("queue", "run", "text", "--json").json["requests"]
    assert one["outcome"]["status"] == "done already"
    (receipt,) = (work / "receipts").glob("*.json")
    assert one["outcome"]["receipt"] == receipt.name
    day = json.loads(receipt.read_bytes())["time"][:10]
    said = f"its tasks were forgotten before by a request without an id on {day} ({receipt.name})"
    assert one["outcome"]["reason"] == said
    assert said in clamu("queue", "list", "text").out
    told = clamu("report", "text", "--request", "a", "--output", "evidence.html")
    said = "Request 'a' had nothing left to do: an earlier request had done it on "
    assert f"{said}{day_of(day)} ({receipt.name})" in told.out
    page = (work / "evidence.html").read_text(encoding="utf-8")
    assert said in html.unescape(page)
    assert clamu("report", "text", "--request", "b", "--output", "b.html").code == 2


def test_evidence_of_one_of_two_requests_that_did_what_is_asked_again(clamu, work):
    assert clamu("queue", "add", "text", "user_1", "user_3", "--id", "a").code == 0
    # The first did more than that: whose data that were is nothing to who asks.
    assert clamu("unmerge", "text", "user_1", "user_2").code == 0
    assert clamu("unmerge", "text", "user_3").code == 0
    assert clamu("queue", "run", "text", "--verify", "none").code == 0
    (one,) = clamu("queue", "list", "text", "--json").json["requests"]
    assert one["text"].count(" (") == 2
    told = clamu("report", "text", "--request", "a", "--with-ids", "--output", "evidence.json", "--json").json
    (sentence,) = [one for one in told["summary"] if one["text"].startswith("Request 'a' had nothing left to do")]
    assert sentence["verdict"] == "open"
    assert "this is the evidence for 1 of its 2 tasks" in sentence["text"]
    evidence = json.loads((work / "evidence.json").read_bytes())
    assert (evidence["ids"], evidence["num_asked"]) == (["user_1"], {"all": 2, "here": 1})
    assert clamu("report", "text", "--request", "\udcff", "--output", "b.html").code == 2


@pytest.mark.parametrize("way", ["audit", "none"])
def test_other_verifications(clamu, work, way):
    assert clamu("queue", "add", "text", "user_3", "--id", "a").code == 0
    assert clamu("queue", "run", "text", "--verify", way).code == 0
    found = [json.loads(path.read_bytes()) for path in (work / "requests").rglob("findings/*.json")]
    if way == "none":
        assert found == []
    else:
        (audit,) = (one["audit"] for one in found)
        assert {one["name"]: one["verdict"] for one in audit["checks"]}["difference"] == "passed"
        assert audit["state_digest"] == clamu("info", "text", "--json").json["state_digest"]


def test_keyed_ids_are_kept_keyed(clamu, work, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "a long secret of the owners")
    assert clamu("train", "text.yaml", "--output", "keyed").code == 0
    assert clamu("queue", "add", "keyed", "user_3", "--id", "a").code == 0
    kept = "".join(path.read_text() for path in (work / "requests" / "keyed").rglob("*.json"))
    assert "user_3" not in kept
    assert clamu("queue", "run", "keyed").code == 0
    assert _states(clamu("queue", "list", "keyed", "--json")) == {"a": "published"}


def _run(work: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_clamu.cli", "queue", "run", "text", *words]
    return subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_workers_do_not_work_at_once(clamu, work):
    for name in ("user_1", "user_3"):
        assert clamu("queue", "add", "text", name, "--id", name).code == 0
    workers = [_run(work) for _ in range(2)]
    ends = [(worker, *worker.communicate()) for worker in workers]
    codes = sorted(worker.returncode for worker, _, _ in ends)
    assert codes in ([0, 0], [0, 2]), ends
    assert all("A worker takes the requests" in err for worker, _, err in ends if worker.returncode == 2)
    assert len(list((work / "receipts").glob("*.json"))) == 2


def test_a_worker_waits_while_somebody_else_changes_the_model(clamu, work):
    from hf_clamu.operations.lifecycle.target import locked_journal

    assert clamu("queue", "add", "text", "user_1", "--id", "a").code == 0
    with locked_journal(work / "text"):
        impatient = _run(work)  # the lock is no bar to this thread
        _, err = impatient.communicate()
        assert impatient.returncode == 2
        assert "Another run works on this output" in err
        (failed,) = clamu("queue", "list", "text", "--json").json["requests"]
        assert failed["state"] == "failed"
        RequestBook.of("text").order()
        worker = _run(work, "--waiting")
        until = time.monotonic() + 60
        while not is_worked_on(RequestBook.of("text").folder):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2)
        assert worker.poll() is None
    _, err = worker.communicate()
    assert worker.returncode == 0, err
    assert _states(clamu("queue", "list", "text", "--json")) == {"a": "published"}


def test_what_stands_in_the_way_is_said_to_who_answers_letters(tmp_path):
    book = RequestBook(tmp_path / "requests" / "model")
    (request,) = book.add([Asked(tasks=("user_1",), name="a")])
    worker = Worker(model="model", book=book, requests=[request], log=WorkLog(book.folder, ["a"]), verification="none")
    for error, said in (
        (SaveConflictError("load it with overwrite=True"), "Another model came to model while this ran; nothing was"),
        (PermissionError(errno.EACCES, "Permission denied", "/m/model/.clamu.1.new"), "/m/model cannot be written or"),
        (OSError(errno.EROFS, "Read-only file system", "/m/rows.jsonl"), "/m/rows.jsonl cannot be written or read by"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
    ):
        book.order()
        worker.fail(error)
        (failed,) = book.read()
        assert failed.outcome.reason.startswith(said)
