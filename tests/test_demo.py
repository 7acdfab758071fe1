"""The demo: its parts that need no training, and (slow) the whole of it as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from hf_clamu import RecipeError
from hf_clamu.cli.commands.demo import demo_text
from hf_clamu.demo import RECIPE, run_demo, write_data
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import load_tasks

KEYS = {
    *("num_tasks", "num_clusters", "num_parameters", "accuracy", "alpha", "storage_bytes", "unmerged_tasks"),
    *("retained_accuracy", "identical", "files_compared", "seconds", "figures"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The demo's data and recipe."""
    folder = tmp_path_factory.mktemp("demo")
    write_data(folder / "data")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder.name), encoding="utf-8")
    return folder


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_held_out_rows_are_no_training_rows(prepared):
    parts = {name: _rows(prepared / "data" / f"{name}.jsonl") for name in ("train", "test")}
    ids = {name: [row["id"] for row in rows] for name, rows in parts.items()}
    assert len(set(ids["train"] + ids["test"])) == len(ids["train"]) + len(ids["test"])
    labels = defaultdict(set)
    for row in parts["train"] + parts["test"]:
        labels[row["task"]].add(row["label"])
        assert len(row["image"]) == len(row["image"][0]) == 8
    assert sorted(labels) == [f"owner_{number:02d}" for number in range(48)]
    assert {len(found) for found in labels.values()} == {2}
    assert {row["task"] for row in parts["test"]} == set(labels)
    assert 0.25 < len(ids["test"]) / (len(ids["test"]) + len(ids["train"])) < 0.35


def test_data_are_the_same_every_time(prepared, tmp_path, tiny):
    write_data(tmp_path / "data")
    assert tiny.digests(tmp_path / "data") == tiny.digests(prepared / "data")


def test_the_recipe_fits_the_data(prepared):
    recipe = Recipe.load(prepared / "recipe.yaml")
    arguments = recipe.clamu_arguments()
    assert (arguments.num_clusters, arguments.localization, arguments.scaling) == (6, "clamu", "auto")
    tasks = recipe.tasks()
    assert (len(tasks), tasks.num_labels) == (48, 10)
    held_out = load_tasks({**recipe.data, "files": "data/test.jsonl"}, base_dir=prepared)
    assert held_out.spec == tasks.spec
    assert held_out.task_ids == tasks.task_ids


def test_the_text_says_how_well_the_others_are_served_after_the_forgetting():
    result = {"num_tasks": 48, "num_clusters": 6, "num_parameters": 10, "accuracy": {"clamu": 0.9}, "alpha": {}}
    result |= {"storage_bytes": {"clamu": 40}, "unmerged_tasks": ["owner_07"], "identical": True, "figures": []}
    result |= {"retained_accuracy": {"before": 0.912, "after": 0.905}, "files_compared": 17, "seconds": {"total": 1.0}}
    text = demo_text(Path("demo"), result)
    assert "Held-out accuracy of the other 47 tasks: 91.2 % before, 90.5 % after it." in text


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
    assert set(result["accuracy"]) == {"base", "local", "global", "tall", "emr", "clamu"}
    assert set(result["seconds"]) == {"finetune", "localize", "unmerge", "rebuild", "total"}
    assert (result["num_tasks"], result["num_clusters"], len(result["unmerged_tasks"])) == (48, 6, 3)
    accuracy = result["accuracy"]
    assert accuracy["clamu"] >= 0.05 + max(accuracy[name] for name in ("base", "global", "tall", "emr"))
    assert accuracy["clamu"] <= accuracy["local"] <= 1

    assert result["identical"] is True
    unmerged, rebuilt = (tiny.digests(tmp_path / "demo" / name) for name in ("unmerged", "rebuilt"))
    assert unmerged == rebuilt != tiny.digests(tmp_path / "demo" / "model")
    assert len(unmerged) == result["files_compared"]
    ledger = (tmp_path / "demo" / "unmerged" / "ledger.json").read_text(encoding="utf-8")
    assert not any(task_id in ledger for task_id in result["unmerged_tasks"])

    (receipt,) = (json.loads(path.read_bytes()) for path in (tmp_path / "demo" / "receipts").glob("*.json"))
    assert sorted(receipt["private"]["salts"]) == result["unmerged_tasks"]
    for name in result["figures"]:
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
