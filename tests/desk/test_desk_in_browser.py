"""The desk in a real browser: from a letter to the receipt, whatever dies in between."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.parse

import pytest
from desk_pages import worker_of

from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.received import today

pytestmark = pytest.mark.browser


def _receipts(work):
    return [json.loads(path.read_bytes()) for path in (work / "receipts").glob("*.json")]


def _reference(work, *tasks):
    from hf_clamu.cli import main

    words = [word for task in tasks for word in ("--without", task)]
    assert main(["train", str(work / "recipe.yaml"), "--output", str(work / "reference"), *words]) == 0
    return work / "reference"


def test_a_request_from_the_letter_to_the_receipt(desk, visit, work, tiny):
    running = desk("model")
    page = visit(running.url)
    assert "No request was taken in yet" in page.text("#requests")
    page.add("user_7", "user_9", name="letter 17")
    assert page.said("letter 17").startswith("Request letter 17 is taken in, due ")
    page.add("user_500")
    said = page.said("user_500")
    assert said == "Nothing was taken in: 'user_500' is no task of this model. Check how the owner's id is written."
    page.add("user_7")
    assert "is in the open request 'letter 17' already" in page.said("already")
    assert page.wait_for_state("letter 17", "received") == "received"
    page.run()
    page.wait_for_state("letter 17", "retraining", "verifying", "publishing", "published")
    assert page.errors == []
    page.page.reload()
    page.page.wait_for_selector("#requests .desk-table")
    page.errors.clear()  # what the page that went said of the connections that it lost
    assert page.wait_for_state("letter 17", "published") == "published"
    (receipt,) = _receipts(work)
    assert receipt["id"] == "letter 17"
    assert tiny.digests(work / "model") == tiny.digests(_reference(work, "user_7", "user_9"))
    assert page.hosts == {urllib.parse.urlsplit(running.url).netloc}
    assert page.errors == []


def test_a_hundred_requests_of_a_spreadsheet_take_one_localization(desk, visit, work):
    running = desk("model", "--verify", "none")
    page = visit(running.url)
    (work / "letters.csv").write_text("id;task\n" + "".join(f"r{n};user_{n}\n" for n in range(100)), encoding="utf-8")
    page.page.set_input_files("#file input[type=file]", str(work / "letters.csv"))
    assert "100 requests are taken in" in page.said("taken in")
    page.run()
    page.wait_for_state("r99", "published", seconds=240)
    receipts = _receipts(work)
    assert sorted(receipt["id"] for receipt in receipts) == sorted(f"r{n}" for n in range(100))
    assert len({receipt["digests"]["after"] for receipt in receipts}) == 1
    assert {receipt["num_tasks"]["after"] for receipt in receipts} == {20}
    assert {receipt["num_requests"] for receipt in receipts} == {100}


def test_bad_files_are_refused_whole(desk, visit, work):
    running = desk("model", TMPDIR=str(work))
    page = visit(running.url)
    for name, text, words in (
        ("a.csv", "task,id\nuser_1,a\nuser_500,b\n", "'user_500' is no task"),
        ("b.csv", "name\nuser_1\n", "expected a column 'task'"),
        ("c.jsonl", '{"id": "x"}\n', "needs a 'task'"),
    ):
        (work / name).write_text(text, encoding="utf-8")
        page.page.set_input_files("#file input[type=file]", str(work / name))
        page.said(words)
        page.page.wait_for_selector("#file input[type=file]", state="attached")
    (uploads,) = work.glob("clamu-desk-*")
    assert [path for path in uploads.rglob("*") if path.is_file() and path.stat().st_size] == []
    with (uploads / "full").open("wb") as file:
        file.truncate(1 << 28)
    page.page.set_input_files("#file input[type=file]", str(work / "a.csv"))
    page.page.wait_for_selector("text=The desk holds as many files as it may. Each goes when it is read")
    assert RequestBook.of("model").read() == []
    running.stop()
    assert not uploads.exists()


def test_nothing_is_lost_when_server_and_worker_are_killed(desk, visit, work, tiny):
    running = desk("model")
    page = visit(running.url)
    for name in ("user_7", "user_9"):
        page.add(name, name=f"letter of {name}")
        page.said(f"letter of {name}")
    page.run()
    for kill_worker in (True, False, True, False, True):
        page.context.close()
        until = time.monotonic() + 20
        while kill_worker and worker_of(work) is None and time.monotonic() < until:
            if not any(one.is_waiting for one in RequestBook.of("model").read()):
                break
            time.sleep(0.05)
        pid = worker_of(work)
        running.kill()
        if kill_worker and pid is not None:
            os.kill(pid, signal.SIGKILL)
        assert {one.name for one in RequestBook.of("model").read()} == {"letter of user_7", "letter of user_9"}
        running.start()
        page = visit(running.url)
    for name in ("user_7", "user_9"):
        page.wait_for_state(f"letter of {name}", "published")
    assert sorted(receipt["id"] for receipt in _receipts(work)) == ["letter of user_7", "letter of user_9"]
    assert tiny.digests(work / "model") == tiny.digests(_reference(work, "user_7", "user_9"))


def test_two_browsers_see_the_same(desk, visit, work):
    running = desk("model", "--verify", "none")
    one, other = visit(running.url), visit(running.url)
    one.add("user_7", name="from one")
    other.add("user_9", name="from the other")
    one.said("from one")
    other.said("from the other")
    for page in (one, other):
        for name in ("from one", "from the other"):
            page.page.wait_for_selector(f"#requests td:has-text('{name}')")
    one.run()
    other.page.click("#stop")
    other.page.click("#stop-yes")
    assert other.said("is stopped") == "The run is stopped; 2 requests are open again."
    one.wait_for_state("from one", "failed")
    assert re.search(r"Stopped at the desk(;| before| while)", one.text("#requests"))
    one.page.wait_for_selector("#stop", state="hidden")
    one.run()
    other.page.click("#run")
    other.page.wait_for_timeout(500)
    if other.page.is_visible("#run-yes"):
        other.page.click("#run-yes")
    other.wait_for_state("from one", "published")
    one.wait_for_state("from the other", "published")
    assert len(_receipts(work)) == 2


def test_a_request_can_be_struck_out(desk, visit, work):
    page = visit(desk("model").url)
    page.add("user_7", name="by mistake")
    page.said("by mistake")
    page.page.click("#strike-choice input")
    page.page.click("[role=option]:has-text('by mistake')")
    page.page.click("#strike")
    page.said("struck out")
    assert RequestBook.of("model").read() == []


def test_what_visitors_write_is_text(desk, visit, work):
    page = visit(desk("model").url)
    hostile = "<img src=x onerror=\"document.title='taken'\">'\u202e\"</td></table>"
    page.add("user_7", name=hostile)
    page.said("is taken in")
    page.page.wait_for_selector("#requests .desk-table td")
    assert hostile.replace("\u202e", "\\u202e") in page.text("#requests")
    assert "\u202e" not in page.text("#requests") + page.text("#said")
    page.add("<script>document.title='taken'</script>")
    page.said("is no task of this model")
    page.page.click("#strike-choice input")
    page.page.wait_for_timeout(300)
    assert page.page.title() == "Deletion desk"
    assert page.page.locator("#requests img, #said img, #said script").count() == 0


def test_a_phone(desk, visit, work):
    running = desk("model")
    page = visit(running.url, viewport={"width": 390, "height": 844})
    page.add("user_7", name="a rather long name of a letter that came on a rainy day in november " * 2)
    page.said("is taken in")
    page.page.wait_for_selector("#requests .desk-table td")
    wide = page.page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    assert page.page.locator("#requests thead").is_hidden()


def test_a_failure_says_why(desk, visit, work):
    rows = (work / "rows.jsonl").read_text(encoding="utf-8")
    page = visit(desk("model").url)
    page.add("user_7", name="letter")
    page.said("is taken in")
    (work / "rows.jsonl").write_text(rows.replace("dull", "nice"), encoding="utf-8")
    page.run()
    page.wait_for_state("letter", "failed")
    assert "changed" in page.text("#requests")
    (work / "rows.jsonl").write_text(rows, encoding="utf-8")
    page.run()
    assert page.wait_for_state("letter", "published") == "published"
    assert _receipts(work)[0]["time"][:10] == today()
