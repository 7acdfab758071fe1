"""One input through all weights of a model, in a real browser."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.browser


def _answers(page):
    rows = page.page.locator("#answers tbody tr")
    return [rows.nth(number).locator("td").all_inner_texts() for number in range(rows.count())]


def test_a_text_before_and_after_a_request(desk, visit, work):
    shutil.copytree(work / "model", work / "kept")
    running = desk("model", "--verify", "none")
    page = visit(running.url)
    page.add("user_7", name="letter")
    page.said("letter")
    page.run()
    page.wait_for_state("letter", "published")
    page.page.get_by_role("tab", name="Try").click()
    page.page.wait_for_selector("#try-text textarea")
    page.page.click("#try")
    page.page.wait_for_selector("#try-said:has-text('Write one')", timeout=60_000)
    page.page.fill("#try-text textarea", "great 1 of <b>4</b>")
    page.page.fill("#try-task textarea, #try-task input", "user_7")
    page.page.click("#try-before input")
    page.page.click("[role=option]:has-text('kept')")
    page.page.click("#try")
    page.page.wait_for_selector("#answers tbody tr", timeout=60_000)
    rows = _answers(page)
    now = [row for row in rows if row[0] == "now"]
    before = [row for row in rows if row[0] == "before"]
    assert [row[1] for row in now[:2]] == ["base model", "global model"]
    assert now[-1][1] == "task user_7 (not merged: global model)"
    assert before[-1][1].startswith("task user_7 (cluster ")
    assert {row[2] for row in rows} <= {"good", "bad"}
    assert page.page.locator("#answers b").count() == 0
    assert page.errors == []
