"""Make docs/images/evidence.png: the evidence of a request on the model of `clamu desk --demo`, all figures real.

    python -m examples.evidence_picture --work work --output docs/images/evidence.png

It makes the model, carries out three requests, each result compared with a rebuild, signs it, and takes a picture of
the first page of the evidence with a Chromium that playwright drives (`pip install "hf-clamu[dev]"`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from hf_clamu.cli import main as clamu
from hf_clamu.desk.demo import prepare_demo

# In CSS pixels.
_WIDTH, _HEIGHT = 900, 1130


def run(*words: str) -> None:
    """Run a command."""
    code = clamu(list(words))
    if code:
        raise SystemExit(f"clamu {' '.join(words)} ended with {code}")


def make_evidence(work: Path) -> Path:
    """Carry out the requests of the demo and return the page.

    Args:
        work (`Path`): a new folder; it becomes the working directory.
    """
    work.mkdir(parents=True)
    os.chdir(work)
    model = str(prepare_demo(Path("demo"), say=print))
    shutil.copytree(model, "before")
    openssl = ("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem")
    subprocess.run(openssl, check=True)
    subprocess.run(("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"), check=True)
    run("queue", "run", model, "--verify", "rebuild")
    run("sign", model, "--key", "key.pem")
    options = ("--before", "before", "--key", "key.pub", "--output", "evidence.html")
    run("report", model, "--request", "letter-1", *options)
    return Path("evidence.html")


def take_picture(page: Path, output: Path) -> None:
    """Take a picture of the beginning of a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=output)
        browser.close()


def main() -> None:
    """Read the command line and make the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    take_picture(make_evidence(arguments.work), output)


if __name__ == "__main__":
    main()
