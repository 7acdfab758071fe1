"""A snapshot never reaches the Hub; one in the working directory goes with the model there."""

from __future__ import annotations

import shutil

import pytest
from hub_client import ClientError

REPO = "org/kept"
HERE = "__import__('importlib').import_module('tests.hub.snapshot_steps')"


@pytest.fixture
def steps(client, tmp_path):
    def call(name, *args):
        return client.call(f"{HERE}.{name}", str(tmp_path), *args)

    return call


def _pushed(double, branch="main"):
    repo = double.repos[REPO]
    return repo.commits[repo.branches[branch]].files


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_stays_here_and_serves_requests_on_the_hub(double, steps, tmp_path):
    steps("build_and_push")
    rows = _names(tmp_path / "local.snapshot")
    assert len(rows) == 5
    assert [name for name in _pushed(double) if "snapshot" in name or name in rows] == []
    # The model on the Hub names no source of rows.
    with pytest.raises(
        ClientError, match=r"names no source.* no snapshot of the rows either, at .*/org--kept\.snapshot"
    ):
        steps("forget", "user_1")
    shutil.copytree(tmp_path / "local.snapshot", tmp_path / "org--kept.snapshot")
    # Another branch: the main one still has the task.
    (receipt,) = steps("forget", "user_1", "trial")
    assert receipt["snapshot"] == "kept"
    assert _names(tmp_path / "org--kept.snapshot") == rows
    (receipt,) = steps("forget", "user_1")
    assert receipt["snapshot"] == "destroyed"
    left = _names(tmp_path / "org--kept.snapshot")
    assert len(left) == 4
    assert set(left) < set(rows)
    assert _names(tmp_path / "local.snapshot") == rows
    assert [name for name in _pushed(double) if "snapshot" in name or name in rows] == []
