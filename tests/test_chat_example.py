"""The example of conversations runs as its head says, smaller: data, base, build, forget, export, and exactly so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.chat_data import invented, of_tofu
from hf_clamu import ClamuModel, Recipe
from hf_clamu.training import silent_progress

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example's folder with eight users, a base of two steps and a recipe of few."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copy(ROOT / "examples/chat_lora.yaml", folder)
    words = [str(folder / "chats.jsonl"), "--users", "8", "--base", str(folder / "chat-base"), "--steps", "2"]
    subprocess.run([sys.executable, "-m", "examples.chat_data", *words], cwd=ROOT, check=True)
    recipe = yaml.safe_load((folder / "chat_lora.yaml").read_text(encoding="utf-8"))
    recipe["arguments"] |= {"finetune_steps": 2, "mask_steps": 2, "batch_size": 2}
    recipe["data"] |= {"validation_fraction": 0.5}
    (folder / "chat_lora.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_the_example_forgets_exactly_and_leaves_as_adapters(example, tiny, tmp_path):
    recipe = Recipe.load(example / "chat_lora.yaml")
    recipe.trainer(progress=silent_progress).train().save_pretrained(tmp_path / "chats")
    model = ClamuModel.from_pretrained(tmp_path / "chats")
    assert model.cluster_names == ("household_000", "household_001")
    tasks = recipe.tasks()
    model.unmerge_task(["user_003", "user_005"], data=tasks).save_pretrained(tmp_path / "after")
    left = recipe.trainer(progress=silent_progress)
    left.tasks = tasks.without(["user_003", "user_005"])
    left.train().save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")
    model.export_adapters(tmp_path / "adapters", format="lora")
    routes = json.loads((tmp_path / "adapters/routes.json").read_bytes())
    assert routes["tasks"]["user_004"] == "household_001"
    assert "user_005" not in routes["tasks"]


def test_an_invented_user_has_the_same_rows_whoever_else_there_is():
    few, many = list(invented(5)), list(invented(9))
    assert few == many[: len(few)]
    answers = {row["user"]: {m["content"] for m in row["messages"] if m["role"] == "assistant"} for row in many}
    assert answers["user_000"] == answers["user_003"] != answers["user_004"]


def test_tofu_gives_a_user_for_each_author(tmp_path):
    columns = {"question": [f"q{n}" for n in range(100)], "answer": [f"a{n}" for n in range(100)]}
    (tmp_path / "full.json").write_text(json.dumps(columns), encoding="utf-8")
    rows = list(of_tofu(tmp_path / "full.json"))
    assert [rows[n]["user"] for n in (0, 19, 20, 99)] == ["user_000", "user_000", "user_001", "user_004"]
    assert [message["content"] for message in rows[20]["messages"][1:]] == ["q20", "a20"]
    assert rows[99]["household"] == "household_001"
