"""The measurements still run; what they measure is nobody's assertion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "keys"),
    [
        ("scaling", ["--tasks", "4"], {"build", "save", "load", "disk", "seconds", "unmerge_seconds"}),
        ("archive", ["--layers", "1", "--rounds", "1"], {"all weights, learning rate 5e-5"}),
        ("portable", ["--rounds", "1"], {"GPT-2, 13 M weights", "ResNet, convolutions"}),
    ],
)
def test_it_runs(name, arguments, keys):
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert keys <= set(found[0] if isinstance(found, list) else found)
