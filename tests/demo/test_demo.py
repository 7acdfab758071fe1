"""The demo: its rows and ways, small, and (slow) the whole of it as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import pytest

from hf_clamu import RecipeError
from hf_clamu.demo import FORGOTTEN, run_demo
from hf_clamu.demo.preparation import prepare, write_data
from hf_clamu.demo.running import compare_ways, measure_growth, open_setting
from hf_clamu.demo.ways import WAYS
from hf_clamu.tasks import digits
from hf_clamu.training import silent_progress

KEYS = {
    *("num_tasks", "num_clusters", "num_parameters", "accuracy", "storage_bytes", "approaches", "unmerged_tasks"),
    *("retained_accuracy", "growth", "identical", "files_compared", "audit", "seconds", "figures"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the demo starts from: rows, a base model, recipes."""
    folder = tmp_path_factory.mktemp("demo")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def few(prepared):
    """Five of the owners, hardly trained."""
    from hf_clamu.recipe import Recipe

    setting = open_setting(prepared, Recipe.load(prepared / "recipe.yaml"), silent_progress)
    short = {"finetune_steps": 1, "mask_steps": 1}
    setting = replace(
        setting,
        per_task=replace(setting.per_task, **short),
        clusters=replace(setting.clusters, num_clusters=2, **short),
    )
    return setting.of_owners(["owner_00", *FORGOTTEN, "owner_40"])


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_held_out_rows_are_no_training_rows(prepared):
    parts = {name: _rows(prepared / "data" / f"{name}.jsonl") for name in ("train", "test")}
    ids = {name: [row["id"] for row in rows] for name, rows in parts.items()}
    assert len(set(ids["train"] + ids["test"])) == len(ids["train"]) + len(ids["test"])
    labels = defaultdict(set)
    for row in parts["train"] + parts["test"]:
        labels[row["task"]].add(row["label"])
    assert sorted(labels) == [f"owner_{number:02d}" for number in range(48)]
    assert {frozenset(found) for found in labels.values()} == {frozenset({"few", "many"})}
    assert {row["task"] for row in parts["test"]} == set(labels)
    assert 0.25 < len(ids["test"]) / (len(ids["test"]) + len(ids["train"])) < 0.35


def test_data_are_the_same_every_time(prepared, tmp_path, tiny):
    write_data(tmp_path / "data", 48, 0)
    assert tiny.digests(tmp_path / "data") == tiny.digests(prepared / "data")


def test_owners_label_their_own_way(prepared):
    digit_of = {(row["task"], row["id"]): row["label"] for row in digits()}
    meant = defaultdict(set)
    for row in _rows(prepared / "data" / "train.jsonl"):
        meant[row["task"], row["label"]].add(digit_of[row["task"], row["id"]])
    owners = {task_id for task_id, _ in meant}
    assert all(max(meant[one, "few"]) < min(meant[one, "many"]) for one in owners)
    few, many = ({digit for one in owners for digit in meant[one, name]} for name in ("few", "many"))
    assert 5 in few & many


def test_recipes_are_the_presets(few):
    per_task, clusters = few.per_task, few.clusters
    assert (per_task.localization, per_task.clustering, per_task.scaling) == ("sift", "none", 1)
    assert (clusters.localization, clusters.clustering, clusters.scaling) == ("clamu", "stable_kmeans", 8)


def test_every_way_is_measured_and_presets_do_what_they_promise(few, tmp_path):
    measured = compare_ways(few, WAYS, tmp_path)
    assert list(measured) == [way.name for way in WAYS]
    for way in WAYS:
        found = measured[way.name]
        forgotten = FORGOTTEN[: found.num_requests]
        assert set(found.before) - set(found.after) == set(forgotten)
        assert found.num_requests == (1 if way.is_slow else 3)
    # Of the presets, `clusters` may move others; masks per owner cannot.
    assert {name for name, found in measured.items() if found.others_moved} <= {"clamu"}
    needs_rows = {name for name, found in measured.items() if found.rows_of_others}
    assert needs_rows - {"sisa"} == {"joint", "tall", "emr", "clamu", "clamu_per_task"}
    assert {name for name, found in measured.items() if not found.needs_owner} == {"joint", "sisa", "global"}
    assert measured["lora"].stored_bytes < measured["local"].stored_bytes
    growth = measure_growth(few, tmp_path, measured, fewer=(2,))
    assert {name: one["owners"] for name, one in growth.items()} == {
        name: [2, 5] for name in ("joint", "clamu", "sift")
    }
    assert all(min(one["seconds"]) > 0 for one in growth.values())


def test_the_demo_keeps_away_from_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RecipeError, match="already exists and is not empty"):
            run_demo(place)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_whole_demo(tmp_path, tiny):
    command = [sys.executable, "-m", "hf_clamu.cli", "demo", "--output", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == KEYS
    assert set(result["approaches"]) == {way.name for way in WAYS}
    assert set(result["seconds"]) == {"finetune", "localize", "unmerge", "rebuild", "total"}
    assert (result["num_tasks"], result["num_clusters"], len(result["unmerged_tasks"])) == (48, 6, 3)
    accuracy = result["accuracy"]
    assert accuracy["sift"] >= max(accuracy["joint"], accuracy["local"]) - 0.01
    assert result["approaches"]["sift"]["request_seconds"] < 1
    assert result["approaches"]["sift"]["others_moved"] == 0

    assert result["identical"] is True
    assert result["audit"]["verdict"] == "proven"
    unmerged, rebuilt = (tiny.digests(tmp_path / "demo" / name) for name in ("unmerged", "rebuilt"))
    assert unmerged == rebuilt != tiny.digests(tmp_path / "demo" / "model")
    assert len(unmerged) == result["files_compared"]
    ledger = (tmp_path / "demo" / "unmerged" / "ledger.json").read_text(encoding="utf-8")
    assert not any(task_id in ledger for task_id in result["unmerged_tasks"])

    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "demo" / "receipts").glob("*.json")]
    assert sorted(task_id for one in receipts for task_id in one["private"]["salts"]) == result["unmerged_tasks"]
    for name in result["figures"]:
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
