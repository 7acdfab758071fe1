"""`clamu merge`, and requests on what it made."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_clamu import ClamuArguments, ClamuModel

ROOT = Path(__file__).parents[2]
DATA_FREE = ["--set", "localization=emr", "--set", "clustering=random", "--set", "num_clusters=2"]
RECIPE = """\
base_model: base
data: {files: rows.jsonl, task_column: user, text_column: text, label_column: label, validation_fraction: 0.3,
       label_names: [bad, good, mixed], cluster_column: group}
arguments: {num_clusters: 2, mask_steps: 2, num_threads: 1}
"""


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """`base`, `local/user_0` to `user_4`, rows and a recipe."""
    folder = tmp_path_factory.mktemp("merge")
    tiny.local_models("text", folder)
    rows = tiny.rows("text")
    lines = [json.dumps({key: rows[key][number] for key in rows}) for number in range(len(rows["user"]))]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    folder = tmp_path / "place"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def _local(*numbers):
    return [f"local/user_{number}" for number in numbers]


def test_the_whole_story(clamu, place, tiny):
    merged = clamu("merge", "--base", "base", *_local(*range(5)), "--output", "all", *DATA_FREE, "--json")
    assert (merged.code, merged.json["num_tasks"], merged.json["num_clusters"]) == (0, 5, 2)
    assert not (place / ".all.journal").exists()
    again = clamu("merge", "--base", "base", "local", "--output", "spread", *DATA_FREE)
    assert again.out.startswith("Merged 5 tasks into spread: 2 clusters")
    assert tiny.digests(place / "spread") == tiny.digests(place / "all")
    clamu("merge", "--base", "base", *_local(4, 1, 2), "--output", "kept", *DATA_FREE)
    done = clamu("unmerge", "all", "user_0", "user_3", "--checkpoint", "local", "--output", "without", "--json")
    assert done.json["receipt"]["how"] == "subtracted"
    assert tiny.digests(place / "without") == tiny.digests(place / "kept")
    retained = [word for number in (1, 2, 4) for word in ("--checkpoint", f"user_{number}=local/user_{number}")]
    assert "identical" in clamu("verify", "without", *retained).out
    assert clamu("add", "without", "user_0", "user_3", "--checkpoint", "local").code == 0
    assert tiny.digests(place / "without") == tiny.digests(place / "all")
    assert clamu("add", "without", "--checkpoint", "local").out.startswith("Nothing to do")
    assert clamu("info", "all", "--json").json["environment"] is None


@pytest.mark.parametrize("localization", ["emr", "global"])
def test_python_saves_the_same(clamu, place, tiny, localization):
    settings = {"localization": localization, "clustering": "random", "num_clusters": 2}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert clamu("merge", "--base", "base", "local", "--output", "command", *words).code == 0
    folders = {f"user_{number}": f"local/user_{number}" for number in range(5)}
    ClamuModel.merge("base", folders, ClamuArguments(**settings)).save_pretrained("python")
    assert tiny.digests(place / "command") == tiny.digests(place / "python")
    assert not (place / ".command.journal").exists()


def test_ids_of_ones_own(clamu, place):
    done = clamu("merge", "anna=local/user_0", "local/user_1/", "--base", "base", "--output", "out", *DATA_FREE)
    assert done.code == 0
    assert clamu("info", "out", "--json").json["clusters"] == [["anna"], ["user_1"]]


def test_with_a_recipe_the_data_serve(clamu, place, tiny):
    for output, numbers in (("all", range(5)), ("kept", (0, 2, 3, 4))):
        done = clamu("merge", *_local(*numbers), "--recipe", "recipe.yaml", "--output", output)
        assert done.code == 0, done.err
    assert (place / "all" / "features.safetensors").is_file()
    clamu("unmerge", "all", "user_1", "--checkpoint", "user_1=local/user_1")
    assert tiny.digests(place / "all") == tiny.digests(place / "kept")
    assert "accuracy" in clamu("evaluate", "all").out
    done = clamu("merge", *_local(0), "--recipe", "recipe.yaml", "--set", "localization=global", "--output", "set")
    assert done.code == 0
    assert clamu("info", "set", "--json").json["arguments"]["localization"] == "global"


def test_two_processes_at_once_and_a_second_run(clamu, place, tiny):
    command = [sys.executable, "-m", "hf_clamu.cli", "merge", *_local(0, 1), "--base", "base", *DATA_FREE, "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "5"}
    runs = [
        subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for run in runs:
        _, problems = run.communicate(timeout=120)
        assert run.returncode == 0, problems
    assert clamu("merge", *_local(1, 0), "--base", "base", *DATA_FREE, "--output", "three").code == 0
    assert tiny.digests(place / "one") == tiny.digests(place / "two") == tiny.digests(place / "three")
    sharded = ["--output", "four", "--max-shard-size", "4KB"]
    assert clamu("merge", *_local(1, 0), "--base", "base", *DATA_FREE, *sharded).code == 0
    assert (place / "four/base_model/model.safetensors.index.json").is_file()
    ClamuModel.from_pretrained(place / "four").save_pretrained(place / "four", max_shard_size="50GB")
    assert tiny.digests(place / "four") == tiny.digests(place / "three")
    refused = clamu("merge", *_local(1, 0), "--base", "base", *DATA_FREE, "--output", "three")
    assert "three already exists and is not empty" in refused.error
    assert clamu("merge", *_local(1, 0), "--base", "base", *DATA_FREE, "--output", "three", "--overwrite").code == 0


WRONG = {
    "no base": (["merge", "local"], 2, "--base ID, or --recipe FILE"),
    "no folder": (["merge", "local/user_9", "--base", "base"], 2, "there is no folder"),
    "no id": (["merge", "=local/user_0", "--base", "base"], 2, "ID=FOLDER or FOLDER"),
    "an id twice": (
        ["merge", "local", "local/user_1", "--base", "base"],
        2,
        "Two checkpoints are to be task 'user_1'",
    ),
    "a recipe that is none": (["merge", "local", "--recipe", "no.yaml"], 2, "no recipe no.yaml"),
    "data alone": (["merge", "local", "--base", "base", "--data", "rows.jsonl"], 2, "--data goes with --recipe"),
    "a setting without a value": (["merge", "local", "--base", "base", "--set", "seed"], 2, "NAME=VALUE"),
    "an unknown setting": (["merge", "local", "--base", "base", "--set", "sed=1"], 2, "Did you mean 'seed'"),
    "a setting that needs data": (
        ["merge", "local", "--base", "base", "--set", "localization=clamu"],
        2,
        "localization='clamu' looks at the tasks' data",
    ),
    "fixed signs": (
        ["merge", "local", "--base", "base", "--set", "localization=sift", "--set", "clustering=random"],
        2,
        "'sift' needs every task finetuned here",
    ),
    "a base that is none": (["merge", "local", "--base", "rows.jsonl"], 2, "could not be loaded"),
    "a task without rows": (
        ["merge", "local", "strange=local/user_0", "--recipe", "recipe.yaml"],
        2,
        "no rows of task 'strange'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(clamu, place, name):
    line, code, message = WRONG[name]
    done = clamu(*line, "--output", "out")
    assert done.code == code
    assert message in done.error
    assert not (place / "out").exists()


def test_wrong_requests(clamu, place, tiny):
    assert clamu("merge", "local", "--base", "base", "--output", "all", *DATA_FREE).code == 0
    before = tiny.digests(place / "all")
    one = ["--checkpoint", "user_0=local/user_0"]
    assert "user_1' and 3 more came from checkpoints" in clamu("unmerge", "all", "user_0", *one).error
    shutil.copy("local/user_1/model.safetensors", "local/user_0/model.safetensors")
    refused = clamu("unmerge", "all", "user_0", "--checkpoint", "local")
    assert (refused.code, "task 'user_0' is not what was merged" in refused.error) == (1, True)
    assert "--new FILE" in clamu("add", "all").error
    assert tiny.digests(place / "all") == before


def test_shards_half_precision_and_a_checkpoint_that_fails_in_its_last_one(clamu, place, tiny):
    for number, dtype in ((1, torch.bfloat16), (2, torch.float16), (3, torch.float32)):
        folder = place / "local" / f"user_{number}"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
    last = sorted((place / "local" / "user_3").glob("*.safetensors"))[-1]
    assert last.name.split("-")[1] != "00001"
    whole = last.read_bytes()
    tensors = load_file(last)
    next(iter(tensors.values())).view(-1)[-1] = math.nan
    save_file(tensors, last, metadata={"format": "pt"})
    command = ["merge", "--base", "base", "local", "--output", "all", *DATA_FREE]
    refused = clamu(*command)
    assert refused.code == 1
    assert "user_3" in refused.err
    assert last.name in refused.err
    assert not (place / "all").exists()
    last.write_bytes(whole)
    assert clamu(*command).code == 0
    clamu("merge", "--base", "base", "local", "--output", "fresh", *DATA_FREE)
    assert tiny.digests(place / "all") == tiny.digests(place / "fresh")
    clamu("merge", "--base", "base", *_local(0, 2, 4), "--output", "kept", *DATA_FREE)
    clamu("unmerge", "all", "user_1", "user_3", "--checkpoint", "local", "--output", "without")
    assert tiny.digests(place / "without") == tiny.digests(place / "kept")
