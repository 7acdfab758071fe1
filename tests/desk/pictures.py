"""Draw the pictures of the desk in the docs: `python -m tests.desk.pictures`, with chromium.

It makes the demo of the desk in a folder of its own, carries its letters out as a visitor would, and looks at it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[2] / "docs" / "images"
_SIZE = {"width": 1100, "height": 760}
_SECONDS = 180


def _work_off(page: Page) -> None:
    """Carry out what waits, but for a letter that is taken in while the worker runs."""
    page.click("#run")
    page.click("#run-yes")
    page.wait_for_selector("#work:has-text('of this step left')", timeout=1000 * _SECONDS)
    page.screenshot(path=IMAGES / "desk.png")
    page.wait_for_selector("#requests tr:has-text('letter-3') .word:text-is('published')", timeout=1000 * _SECONDS)


def _show_evidence(page: Page) -> None:
    page.get_by_role("tab", name="Evidence").click()
    page.wait_for_timeout(3000)
    page.click("#evidence-choice input")
    page.click("[role=option]:has-text('letter-1')")
    page.click("#evidence-show")
    page.frame_locator("#evidence iframe").locator("h1").first.wait_for(timeout=1000 * _SECONDS)
    page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / "desk-evidence.png")


def main() -> None:
    """Draw them."""
    import shutil

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = [sys.executable, "-m", "hf_clamu.cli", "desk", "--demo", "--port", "0", "--format", "quiet"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as desk:
            try:
                assert desk.stdout is not None
                url = desk.stdout.readline().strip()
                page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page(
                    viewport=_SIZE
                )
                page.goto(url)
                page.wait_for_selector("#requests .desk-table")
                _work_off(page)
                _show_evidence(page)
            finally:
                desk.terminate()


if __name__ == "__main__":
    main()
