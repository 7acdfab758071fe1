"""docs/compatibility.md says of every cell what its tests say, and nothing without a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compatibility import TABLES
from matrices import FAILED, PASSED, Table

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_up_to_date(name, request):
    matrices = request.config.pluginmanager.get_plugin("matrices")
    # A cell whose test fails in this run fails there.
    expected = TABLES[name].render(dict.fromkeys(matrices.collected(name, request.session), PASSED))
    if not os.environ.get("CLAMU_WRITE_DOCS"):
        assert matrices.in_page(name) == expected, "run CLAMU_WRITE_DOCS=1 pytest tests/models tests/base_models"


_TABLE = Table(
    corner="what",
    rows={"a": "A", "b": "B"},
    columns={"x": "X", "y": "Y"},
    files=("test_some.py",),
    absent=(("b", "*", "b is not there"),),
)


def test_a_table_has_footnotes():
    assert _TABLE.render({("a", "x"): PASSED, ("a", "y"): FAILED}).splitlines() == [
        "| what | X | Y |",
        "| --- | --- | --- |",
        "| A | ✓ | ✗ |",
        "| B | – (1) | – (1) |",
        "",
        "- (1) b is not there",
    ]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([("a", "x")], r"row 'a', column 'y' has no test and no reason"),
        ([("a", "x"), ("a", "y"), ("b", "x")], r"row 'b', column 'x' has a test, and yet a reason"),
        ([("a", "x"), ("a", "y"), ("c", "x")], r"the table does not have: \[\('c', 'x'\)\]"),
    ],
)
def test_no_cell_without_a_test_or_a_reason(cells, message):
    with pytest.raises(ValueError, match=message):
        _TABLE.render(dict.fromkeys(cells, PASSED))


_CONFTEST = """
from pathlib import Path
from matrices import Matrices, Table

def pytest_configure(config):
    config.addinivalue_line("markers", "matrix(table, row, column): a cell")
    table = Table(corner="what", rows={"a": "A"}, columns={c: c.upper() for c in "xyz"}, files=("test_some.py",))
    root = Path(__file__).parent
    config.pluginmanager.register(Matrices({"some": table}, root / "page.md", root), "matrices")
"""
_SOME = """
import pytest

@pytest.mark.matrix("some", row="a", column="{column}")
@pytest.mark.parametrize("column", ["x", "y"])
def test_one(column):
    assert column == "x"

@pytest.mark.matrix("some", row="a", column="z")
def test_another():
    pytest.skip("not today")

def test_the_table_sees_every_cell(request):
    found = request.config.pluginmanager.get_plugin("matrices").collected("some", request.session)
    assert found == {("a", "x"), ("a", "y"), ("a", "z")}
"""


@pytest.mark.parametrize(
    ("selected", "says", "written"),
    [
        ([], "some: written, 2 cells failed", True),
        (
            ["test_some.py::test_the_table_sees_every_cell"],
            "some: not written",
            False,
        ),
    ],
    ids=["all", "one"],
)
def test_the_page_is_written_from_what_passed(tmp_path, selected, says, written):
    for name, text in (("conftest.py", _CONFTEST), ("test_some.py", _SOME), ("pytest.ini", "[pytest]\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = "before\n<!-- generated: some -->\nold\n<!-- end: some -->\nafter\n"
    (tmp_path / "page.md").write_text(before, encoding="utf-8")
    environment = {**os.environ, "CLAMU_WRITE_DOCS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selected]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"page.md, {says}" in done.stdout
    assert ("2 failed, 2 passed" in done.stdout) == written, done.stdout
    new = "| what | X | Y | Z |\n| --- | --- | --- | --- |\n| A | ✓ | ✗ | ✗ |"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == (before.replace("old", new) if written else before)
