"""The tables of docs/compatibility.md: every cell is a test that carries a mark.

    @pytest.mark.matrix("peft", row="set_adapter", column="{name}")
    @pytest.mark.parametrize("name", ["gpt2", "bert"])
    def test_...

`row` and `column` are keys of the table; what is in braces is taken from the test's parameters. A test may carry
several marks, and a cell may have several tests. A cell that no test has must be declared absent, with a reason.

In every run `test_compatibility.py` collects the files behind a table whole, whatever was selected, and compares the
page with what they hold. `CLAMU_WRITE_DOCS=1 pytest tests/models tests/base_models` writes the tables from what
passed.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSED, FAILED, ABSENT = "✓", "✗", "–"
# Tests that a usual run leaves out prove nothing in it.
_OFF = ("slow", "gpu", "network")

Cell = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page.

    Args:
        corner (`str`): head of the column of rows.
        rows (*dict* of `str` to `str`): key to what is shown, in order.
        columns (*dict* of `str` to `str`): the same.
        files (*tuple* of `str`): test files that hold its cells, from the root of the repo.
        absent (*tuple* of *tuple*): patterns on the keys of row and column, and why there are no such cells.
    """

    corner: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    files: tuple[str, ...]
    absent: tuple[tuple[str, str, str], ...] = ()

    def why_absent(self, cell: Cell) -> str | None:
        """Return the reason for which there is no such cell, if that is declared."""
        for row, column, why in self.absent:
            if fnmatch.fnmatchcase(cell[0], row) and fnmatch.fnmatchcase(cell[1], column):
                return why
        return None

    def render(self, cells: Mapping[Cell, str]) -> str:
        """Return the table in Markdown, with footnotes.

        Args:
            cells (*mapping*): what each cell says.

        Raises:
            ValueError: if a cell is neither tested nor declared absent, or both, or not in the table.
        """
        strange = sorted(set(cells) - {(row, column) for row in self.rows for column in self.columns})
        if strange:
            raise ValueError(f"tests are marked with cells that the table does not have: {strange}")
        notes: list[str] = []
        lines = [[self.corner, *self.columns.values()], ["---"] * (1 + len(self.columns))]
        for row, shown in self.rows.items():
            line = [shown]
            for column in self.columns:
                why = self.why_absent((row, column))
                if ((row, column) in cells) == (why is not None):
                    found = "no test and no reason" if why is None else f"a test, and yet a reason to have none: {why}"
                    raise ValueError(f"row {row!r}, column {column!r} has {found}")
                if why is not None and why not in notes:
                    notes.append(why)
                line.append(cells[row, column] if why is None else f"{ABSENT} ({notes.index(why) + 1})")
            lines.append(line)
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        footnotes = "".join(f"\n- ({number}) {why}" for number, why in enumerate(notes, start=1))
        return table + (f"\n{footnotes}" if notes else "")


def cells_of(item: Any) -> Iterator[tuple[str, Cell]]:
    """Yield the table and the cell of each mark that a test carries."""
    callspec = getattr(item, "callspec", None)
    parameters = {} if callspec is None else callspec.params
    for mark in item.iter_markers("matrix"):
        (table,) = mark.args
        yield table, (mark.kwargs["row"].format(**parameters), mark.kwargs["column"].format(**parameters))


class Matrices:
    """Notes what passes, and writes the page.

    Args:
        tables (*dict* of `str` to `Table`): by name.
        page (`Path`): with a pair of comments around each table.
        root (`Path`): of the repo.
    """

    def __init__(self, tables: Mapping[str, Table], page: Path, root: Path) -> None:
        self.tables = tables
        self.page = page
        self.root = root
        self._outcomes: dict[tuple[str, Cell], set[str]] = {}
        self._said: list[str] = []

    # -- what there is -------------------------------------------------------------------------------------------

    def collected(self, name: str, session: pytest.Session) -> set[Cell]:
        """Return the cells that have a test, from the whole files, whatever the session has selected."""
        found = set()
        for file in self.tables[name].files:
            module = pytest.Module.from_parent(session, path=self.root / file)
            for item in self._items(module):
                cells = [cell for table, cell in cells_of(item) if table == name]
                off = [mark for mark in _OFF if item.get_closest_marker(mark)]
                if cells and off:
                    raise ValueError(f"{item.name} is marked {off[0]}: a usual run does not prove {cells[0]}")
                found |= set(cells)
        return found

    def _items(self, collector: Any) -> Iterator[Any]:
        for node in collector.collect():
            if isinstance(node, pytest.Item):
                yield node
            else:
                yield from self._items(node)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for table, _ in cells_of(item):
                file = item.path.relative_to(self.root).as_posix()
                if table not in self.tables or file not in self.tables[table].files:
                    raise pytest.UsageError(f"{item.nodeid}: {file} is not among the files of a table {table!r}")

    # -- what passed ---------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        for table, cell in cells_of(item):
            if report.skipped:
                report.outcome, report.longrepr = "failed", f"{self.page.name} says that this works: it must run"
            if report.when == "call" or report.failed:
                self._outcomes.setdefault((table, cell), set()).add(report.outcome)
        return report

    # -- the page ------------------------------------------------------------------------------------------------

    def in_page(self, name: str) -> str:
        """Return a table as the page has it."""
        return self._parts(name)[1]

    def _parts(self, name: str) -> tuple[str, str, str]:
        start, end = f"<!-- generated: {name} -->\n", f"\n<!-- end: {name} -->"
        head, found, rest = self.page.read_text(encoding="utf-8").partition(start)
        table, also, tail = rest.partition(end)
        if not (found and also):
            raise ValueError(f"{self.page.name} lacks the comments of the table {name!r}")
        return head + start, table, end + tail

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not os.environ.get("CLAMU_WRITE_DOCS") or session.config.option.collectonly:
            return
        for name, table in self.tables.items():
            outcomes = {cell: found for (other, cell), found in self._outcomes.items() if other == name}
            if outcomes.keys() != self.collected(name, session):
                self._said.append(f"{name}: not written, because not all of its tests ran")
                continue
            words = {cell: PASSED if found == {"passed"} else FAILED for cell, found in outcomes.items()}
            head, _, tail = self._parts(name)
            self.page.write_text(head + table.render(words) + tail, encoding="utf-8")
            self._said.append(f"{name}: written, {list(words.values()).count(FAILED)} cells failed")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self._said:
            terminalreporter.write_line(f"{self.page.name}, {line}")
