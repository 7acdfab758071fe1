"""The evidence that the desk hands out, in a real browser, and that it holds."""

from __future__ import annotations

import json

import pytest
from desk_pages import RunningDesk, Visit

pytestmark = pytest.mark.browser


def _choose(page: Visit, name: str) -> None:
    page.page.get_by_role("tab", name="Evidence").click()
    page.page.wait_for_timeout(2500)  # until the choices have come
    page.page.click("#evidence-choice input")
    page.page.click(f"[role=option]:has-text('{name}')")


def _show(page: Visit) -> str:
    page.page.click("#evidence-show")
    frame = page.page.frame_locator("#evidence iframe")
    frame.locator("h1").first.wait_for(timeout=60_000)
    return str(frame.locator("body").inner_text())


def _download(page: Visit, ending: str, folder) -> str:
    with page.page.expect_download() as started:
        page.page.click(f"#download-{ending}")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_the_evidence_of_a_request_is_confirmed_by_verify(desk, visit, work):
    from hf_clamu.cli import main

    running: RunningDesk = desk("model")
    page: Visit = visit(running.url)
    page.page.get_by_role("tab", name="Evidence").click()
    page.page.click("#evidence-show")
    page.page.wait_for_selector("#evidence-said:has-text('No request is answered yet')")
    page.page.get_by_role("tab", name="Requests").click()
    for number in (7, 9):
        page.add(f"user_{number}", name=f"letter {number}")
        page.said(f"letter {number}")
    page.run()
    page.wait_for_state("letter 9", "published")
    _choose(page, "letter 7")
    text = _show(page)
    values = json.loads(_download(page, "json", work).read_text(encoding="utf-8"))
    assert values["receipt"]["content"]["id"] == "letter 7"
    after = values["receipt"]["content"]["digests"]["after"]
    assert after in text
    assert {one["kind"] for one in values["findings"]} >= {"verification", "audit"}
    # Nobody is named, as the page may be shown; and the file is the page.
    assert "user_7" not in json.dumps(values) + text
    html = _download(page, "html", work)
    assert after in html.read_text(encoding="utf-8")
    assert html.suffix == ".html"
    bom = json.loads(_download(page, "cdx", work).read_text(encoding="utf-8"))
    assert bom["bomFormat"] == "CycloneDX"
    assert after in json.dumps(bom)
    # What the page says, verify finds.
    assert main(["verify", "model", "--report", "report.json"]) == 0
    report = json.loads((work / "report.json").read_bytes())
    assert (report["verdict"], report["state_digest"]) == ("identical", after)
    page.page.click("#with-ids input")
    page.page.click("#evidence-show")
    frame = page.page.frame_locator("#evidence iframe")
    frame.locator("body", has_text="user_7").wait_for(timeout=60_000)
    assert page.errors == []
    # Two files of one answer are not another's: an address that somebody guesses leads nowhere.
    status, _ = running.get("/gradio_api/file=/tmp")
    assert status in (403, 404)
