"""The measurements still run; what they measure is nobody's assertion."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import PARTS
from tests.benchmarks.rows import Row, ratios, times

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["vectors", "audits", "switching", "training", "serving"])
def test_a_part_runs(part):
    assert set(_ran(part)) == {part}


@pytest.mark.slow
def test_all_parts_run():
    found = _ran()
    assert set(found) == set(PARTS)


def _ran(*words):
    command = [sys.executable, "-m", "tests.benchmarks", *words, "--json", "--size", "smoke", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size"] == "smoke"
    for part, values in found["parts"].items():
        if part != "growth":
            rows = [Row(**value) for value in values]
            assert rows
            assert all(row.values and row.cells()[0] == row.what for row in rows)
    return found["parts"]


def test_a_row_says_whether_its_target_is_met():
    row = Row(what="a", against="b", values=[3.0, 1.0, 2.0], target=2)
    assert row.cells() == ["a", "b", "2x (1 to 3)", "≤ 2x", "yes"]
    assert replace(row, target=1.9).cells()[-1] == "**no**"
    assert replace(row, target=2.1, at_least=True).cells()[-2:] == ["≥ 2.1x", "**no**"]
    assert replace(row, target=None, values=[0.5], unit=" s").cells() == ["a", "b", "0.5 s", "–", "–"]


def test_things_are_timed_in_turn():
    seen = []
    found = times([lambda: seen.append("a"), lambda: seen.append("b")], 3)
    assert "".join(seen) == "ab" * 4  # the first round warms up
    assert [len(seconds) for seconds in found] == [3, 3]
    assert ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "keys"),
    [
        ("scaling", ["--tasks", "4"], {"build", "save", "load", "disk", "seconds", "unmerge_seconds"}),
        ("archive", ["--layers", "1", "--rounds", "1"], {"all weights, learning rate 5e-5"}),
        ("snapshot", ["--tasks", "3", "--requests", "1"], {"snapshot", "snapshot and archive"}),
        ("portable", ["--rounds", "1"], {"GPT-2, 13 M weights", "ResNet, convolutions"}),
    ],
)
def test_it_runs(name, arguments, keys):
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert keys <= set(found[0] if isinstance(found, list) else found)


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_without_one(tmp_path):
    words = ["--size", "smoke", "--rounds", "1", "--tasks", "2", "--output", str(tmp_path / "gpu.json")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [one["is_exact"] for one in found["builds"]] == [True] * 3
    assert len(found["rows"]) == 7
