"""The package does what it did, and the oracle notices when it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.cells import FACTORS, cells
from tests.oracle.comparing import compare_definitions, differences
from tests.oracle.definitions import definitions
from tests.oracle.golden import environment, golden

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))


def test_each_pair_of_values_is_in_a_cell():
    found = cells()
    pairs = {
        (one, getattr(cell, one), other, getattr(cell, other))
        for cell in found
        for one in FACTORS
        for other in FACTORS
    }
    for one, values in FACTORS.items():
        for other in FACTORS:
            for value in values:
                for second in FACTORS[other]:
                    refused = {value, second} == {"sift", "product"}
                    assert one == other or refused or (one, value, other, second) in pairs
    assert len(found) < 40
    assert found == cells()


def test_a_record_with_another_file_differs():
    files = {"cell": {"train": {"model/a": "1" * 64, "model/b": "2" * 64}}}
    first = {"files": files, "exits": {"cell": {"train": 0}}, "texts": {"cell": {"train stderr": "one"}}, "seconds": 3}
    second = json.loads(json.dumps(first))
    assert list(differences(first, second, texts=True)) == []
    second["files"]["cell"]["train"]["model/b"] = "3" * 64
    second["exits"]["cell"]["train"] = 2
    second["texts"]["cell"]["train stderr"] = "two"
    second["seconds"] = 4
    assert list(differences(first, second)) == [
        "exits/cell/train: 0 -> 2",
        "files/cell/train/model/b: 222222222222 -> 333333333333",
    ]
    assert len(list(differences(first, second, texts=True))) == 3
    assert len(list(differences(first, second, leave_out=("files/*",)))) == 1


def _package(folder, files):
    for name, text in files.items():
        path = folder / "hf_clamu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return definitions(folder / "hf_clamu")


_ONE = "def one(x):\n    '''Say one.'''\n    return x + 1\n"
_TWO = "class Two:\n    '''Two.'''\n    size: int = 2\n\n    def twice(self):\n        return one(self.size)\n"


def test_what_moved_is_not_changed(tmp_path):
    before = _package(tmp_path / "a", {"__init__.py": "", "all.py": _ONE + _TWO})
    after = {
        "__init__.py": "",
        "low.py": _ONE.replace("Say one", "Words do not count"),
        "high.py": "from hf_clamu import low\n" + _TWO.replace("one(", "low.one("),
        "lazy/high.py": "",
    }
    counts, lines = compare_definitions(before, _package(tmp_path / "b", after))
    assert counts == {"same": 0, "moved": 3, "renamed": 0, "changed": 0, "added": 0, "removed": 0}
    assert lines == []


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        (("x + 1", "x + 2"), "changed", "one"),
        (("int = 2", "int = 3"), "changed", "Two"),
        (("one(self.size)", "one(self.size) * 1"), "changed", "Two.twice"),
        (("def one", "def uno"), "renamed", "uno"),
        (("def twice(self):", "def once(self):\n        pass\n\n    def twice(self):"), "added", "Two.once"),
        ((_ONE, ""), "removed", "one"),
    ],
)
def test_what_changed_is_named(tmp_path, change, kind, name):
    before = _package(tmp_path / "a", {"all.py": _ONE + _TWO})
    counts, lines = compare_definitions(before, _package(tmp_path / "b", {"all.py": (_ONE + _TWO).replace(*change)}))
    assert counts[kind] == 1
    assert len(lines) == 1
    assert lines[0].startswith(kind)
    assert lines[0].endswith(f":{name}")


@pytest.mark.slow
def test_the_package_does_what_it_did(tmp_path):
    here = environment()
    if here != GOLDEN["environment"]:
        pytest.skip(f"golden.json was recorded in another environment: {GOLDEN['environment']}, here {here}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", "record", str(tmp_path / "now.json"), "--quick"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    now = golden(json.loads((tmp_path / "now.json").read_text(encoding="utf-8")))
    assert "\n".join(differences(GOLDEN, now)) == ""
