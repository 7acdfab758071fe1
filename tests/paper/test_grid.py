"""`examples.grid` at the smallest scale: what it measures, keeps and writes."""

from __future__ import annotations

import json

import pytest

from examples.grid import BUILDS, SETTINGS, Row, main, page
from examples.paper.scale import Scale


def test_builds_are_measured_once_and_the_page_shows_both_grids(tmp_path, capsys):
    text = "# Grid\n\n<!-- The tables below are written by examples/grid.py. -->\nold"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    words = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "page.md"), "--scale", "smoke"]
    words += ["--settings", "images_label", "--builds", "clamu", "--seeds", "0", "--num-tasks", "3"]
    main(words)
    kept = (tmp_path / "work/grid.jsonl").read_text(encoding="utf-8")
    rows = [Row(**json.loads(line)) for line in kept.splitlines()]
    assert [(row.method, row.grid) for row in rows] == [
        (method, grid) for grid in ("28", "auto") for method in BUILDS["clamu"].methods
    ]
    # Two steps at 1e-3 are 66 steps of 2**-15.
    assert [row.bits for row in rows] == [28, 28, 15, 15]
    assert all(0 <= row.score <= 1 for row in rows)
    assert rows[2].vector_bytes < rows[0].vector_bytes
    # All but a few tensors that hardly move.
    assert [rows[0].delta_bytes, rows[2].delta_bytes] == pytest.approx([4.0, 2.0], abs=0.1)
    page_text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page_text.startswith("# Grid")
    assert "old" not in page_text
    assert page_text.count("| (ii) images, two labels per task |") == 2
    main(words)
    assert (tmp_path / "work/grid.jsonl").read_text(encoding="utf-8") == kept


def test_the_page_compares_the_seeds_of_both_grids():
    def row(seed, grid, score):
        bits = 28 if grid == "28" else 12
        sizes = {"vector_bytes": bits / 8, "delta_bytes": bits / 7}
        return Row(setting="tofu", seed=seed, method="average", grid=grid, bits=bits, score=score, **sizes)

    rows = [row(0, "28", 0.5), row(0, "auto", 0.52), row(1, "28", 0.54), row(1, "auto", 0.53), row(2, "28", 0.9)]
    assert "| TOFU | average | 2 | 52.0 | 52.5 | +0.5 | 2.0 | 12 | 3.50 → 1.50 | 4.00 → 1.71 |" in page(rows)


def test_it_has_the_settings_of_the_paper_that_run_without_a_download():
    assert {*SETTINGS, "banking77"} == set(Scale.load("local").settings)
