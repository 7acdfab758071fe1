"""Plans, against what builds really take."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from hf_clamu import IncompatibleBaseError, Recipe, RecipeError, TaskDataError
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.cli import main
from hf_clamu.planning import estimate_build
from hf_clamu.training import silent_progress

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 48}
SETTINGS = {"num_clusters": 3, "finetune_steps": 2, "mask_steps": 2, "num_threads": 1}


@pytest.fixture
def recipe(tiny, tmp_path):
    rows = tiny.rows("text")
    lines = [json.dumps({key: rows[key][n] for key in rows}) for n in range(len(rows["user"]))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "cluster_column": "group"}

    def make(**changes):
        values = {"base_model": GPT2, "tokenizer": "bytes", "arguments": SETTINGS}
        values |= {"data": {"files": "rows.jsonl", **columns}, **changes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return Recipe.load(tmp_path / "recipe.yaml")

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"arguments": {**SETTINGS, "localization": "global"}},
        {"arguments": {**SETTINGS, "clustering": "column"}},
        {"arguments": {**SETTINGS, "localization": "sift"}},
        {"arguments": {**SETTINGS, "clustering": "none", "freeze": ["transformer.wte.*"]}},
        {"peft_config": {"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"]}},
        {"peft_config": {"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"]}, "peft_merging": "product"},
    ],
    ids=["plain", "global", "column", "sift", "freeze", "lora", "product"],
)
def test_weights_clusters_and_disk_are_those_of_the_build(recipe, tmp_path, changes):
    made = recipe(**changes)
    found = estimate_build(made)
    model = made.trainer(progress=silent_progress).train()
    model.save_pretrained(tmp_path / "m")
    delta = read_checkpoint(tmp_path / "m").state.delta
    assert found.num_trained == sum(steps.numel() for steps in delta.values())
    if changes.get("peft_merging") != "product":
        assert found.num_parameters == model.num_parameters()
    assert (found.num_tasks, found.num_clusters) == (len(model.tasks), len(model.clusters))
    saved = sum(path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file())
    # What a plan does not count: configurations, ledger, features, tokenizer.
    small = sum(path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.suffix != ".safetensors")
    assert found.model_bytes == pytest.approx(saved - small, rel=0.05)
    assert found.seconds["total"] > 0


def test_gpt2_xl_is_planned_without_its_weights(recipe):
    xl = {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25}
    found = estimate_build(recipe(base_model=xl, tokenizer=None), num_tasks=500, num_processes=8, tokens=64)
    assert found.num_parameters == pytest.approx(1.5576e9, rel=0.001)
    assert found.num_tasks == 500
    assert found.memory_bytes > 5 * 4 * 1.55e9
    # The same work, shared.
    assert found.seconds["total"] < estimate_build(
        recipe(base_model=xl, tokenizer=None), num_tasks=500, tokens=64
    ).seconds["total"]  # fmt: skip


def test_small_models_take_their_steps_and_auto_takes_every_alpha(recipe, monkeypatch):
    monkeypatch.setattr("hf_clamu.planning.estimate.operations_per_second", lambda: float("inf"))
    once = estimate_build(recipe()).seconds
    # 29 tensors of weights. Five tasks of two steps, three clusters of two steps; no row is held out.
    assert once["finetune"] == pytest.approx(5 * 2 * 29 * 0.0003)
    assert once["localize"] == pytest.approx(3 * 2 * 29 * 0.0003)
    assert once["encode"] == pytest.approx(35 * 0.0005)
    assert once["score"] == 0
    # 1/5, 2/5, 4/5 and 1 of six values that the grid names; all tasks are measured under each.
    load = 29 * 0.0001 + estimate_build(recipe()).num_trained * 5e-9
    measuring = 4 * (5 * 29 * 0.00015 + 3 * load)
    for search, steps in (("full", 4 * 2), ("short", 4 * 1 + 2)):
        changes = {"scaling": "auto", "scaling_search": search}
        auto = estimate_build(recipe(arguments={**SETTINGS, **changes})).seconds
        assert auto["localize"] == pytest.approx(steps / 2 * once["localize"] + measuring)
        assert auto["finetune"] == once["finetune"]


def test_a_request_counts_rows_scores_and_the_weights_that_are_loaded_for_them(recipe, monkeypatch):
    monkeypatch.setattr("hf_clamu.planning.estimate.operations_per_second", lambda: float("inf"))
    per_task = {**SETTINGS, "preset": "per-task", "score_validation": True}
    del per_task["num_clusters"]
    plain = recipe(arguments=per_task)
    assert estimate_build(plain).seconds["score"] == 0
    found = estimate_build(dataclasses.replace(plain, data={**plain.data, "validation_fraction": 0.3}))
    seconds = found.seconds
    load = 29 * 0.0001 + found.num_trained * 5e-9
    assert seconds["score"] == pytest.approx(3 * 5 * 29 * 0.00015 + 2 * 5 * load)
    assert seconds["request"] == pytest.approx(seconds["encode"] + seconds["finetune"] / 5 + seconds["score"])
    more = estimate_build(plain, num_tasks=10).seconds
    assert more["encode"] == 2 * seconds["encode"]


def test_stages_of_a_build_are_timed_apart(recipe):
    """What a plan is compared with: no second counts twice."""
    trainer = recipe(arguments={**SETTINGS, "mask_steps": 20}).trainer(progress=silent_progress)
    trainer.train()
    stages = {name: seconds for name, seconds in trainer.seconds.items() if name != "total"}
    own = {"add", "attach", "cluster", "encode", "features", "finetune", "load", "localize", "score"}
    assert stages.keys() == own - {"score"}
    assert 0 < sum(stages.values()) <= trainer.seconds["total"]


def test_without_a_tokenizer_the_time_is_not_known(recipe):
    assert estimate_build(recipe(tokenizer=None)).seconds is None


def test_a_base_that_is_not_there(recipe, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # whoever imported it first
    with pytest.raises(IncompatibleBaseError, match="The base model 'org/nowhere' could not be loaded"):
        estimate_build(recipe(base_model="org/nowhere", tokenizer=None))


def test_the_command_and_a_dry_run_say_the_same_and_write_nothing(recipe, tmp_path, capsys):
    recipe()
    path = str(tmp_path / "recipe.yaml")
    before = sorted(tmp_path.iterdir())
    assert main(["plan", path, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["train", path, "--output", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert planned.keys() - dry.keys() == {"presets", "recommendation"}
    assert {name: value for name, value in dry.items() if value != planned[name]}.keys() <= {"seconds"}
    assert main(["plan", path, "--tasks", "500", "--processes", "4"]) == 0
    text = capsys.readouterr().out
    assert "memory for each process" in text
    assert "500 and 3" in text
    assert sorted(tmp_path.iterdir()) == before


def test_half_the_bytes_of_half_the_precision(recipe):
    whole, half = estimate_build(recipe()), estimate_build(recipe(dtype="bfloat16"))
    assert half.num_parameters == whole.num_parameters
    assert whole.model_bytes - half.model_bytes == 2 * whole.num_parameters  # the base inside
    assert whole.memory_bytes - half.memory_bytes == 2 * whole.num_parameters + 4 * 2 * whole.num_trained
    with pytest.raises(RecipeError, match="'float32' or 'bfloat16', got 'int8'"):
        estimate_build(recipe(dtype="int8"))


def test_an_adapter_on_a_base_of_half_the_precision_is_counted_in_float32(recipe):
    lora = {"peft_config": {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}}
    whole, half = estimate_build(recipe(**lora)), estimate_build(recipe(dtype="bfloat16", **lora))
    width, rank, layers = GPT2["n_embd"], 2, GPT2["n_layer"]
    a, b = layers * rank * width, layers * rank * 3 * width
    own, head = a + b, whole.num_trained - b  # the classifier's, which trains in the type of the base
    assert 0 < head < own
    assert whole.memory_bytes - half.memory_bytes == 2 * (whole.num_parameters - own) + 4 * 2 * head
    assert whole.model_bytes - half.model_bytes == 2 * (whole.num_parameters - own)


def test_a_text_that_the_model_cannot_take_shows_in_a_plan(recipe, tmp_path):
    made = recipe()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"user": "user_9", "text": "x" * 2000, "label": "good", "group": "A"}))
    with pytest.raises(
        TaskDataError, match=r"'user_9', column 'text', line 36 of rows.jsonl: the text has 2000 tokens"
    ):
        estimate_build(made)
