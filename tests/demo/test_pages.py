"""The pages say what the committed run of the demo has measured.

`clamu demo --output demo --json > docs/demo.json` measures, and `CLAMU_WRITE_DOCS=1 pytest tests/demo/test_pages.py`
writes the tables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_clamu.demo import markdown_table
from hf_clamu.demo.table import COLUMNS
from hf_clamu.demo.ways import WAYS

ROOT = Path(__file__).parents[2]
RUN = ROOT / "docs" / "demo.json"
START, END = "<!-- generated: demo -->\n", "<!-- end: demo -->"
_SHORT = ("way to serve", "held-out accuracy", "stored", "a request", "others' rows", "others moved / changed")
PAGES = {"README.md": _SHORT, "docs/is-it-for-me.md": COLUMNS}


@pytest.fixture(scope="module")
def run():
    """The committed run."""
    return json.loads(RUN.read_text(encoding="utf-8"))


def test_the_committed_run_measured_every_way(run):
    assert {name: way["label"] for name, way in run["approaches"].items()} == {way.name: way.label for way in WAYS}


def test_the_committed_run_keeps_what_the_pages_promise(run):
    accuracy, default = run["accuracy"], run["approaches"]["sift"]
    assert accuracy["sift"] >= max(accuracy["local"], accuracy["joint"]) - 0.01
    assert default["request_seconds"] < 1
    assert (default["others_moved"], default["rows_of_others"]) == (0, 0)
    assert run["identical"] is True
    assert run["seconds"]["total"] < 180


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_committed_run(page, run):
    text = (ROOT / page).read_text(encoding="utf-8")
    head, found, rest = text.partition(START)
    assert found
    old, found, rest = rest.partition(END)
    assert found
    new = markdown_table(run, PAGES[page]) + "\n"
    if os.environ.get("CLAMU_WRITE_DOCS"):
        (ROOT / page).write_text(head + START + new + END + rest, encoding="utf-8")
    else:
        assert old == new, "run CLAMU_WRITE_DOCS=1 pytest tests/demo/test_pages.py"
