"""Which preset is recommended, on a table of cases, and what `clamu plan` says about it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from hf_clamu import RecipeError
from hf_clamu.cli import main
from hf_clamu.merging import PRESETS
from hf_clamu.planning import BuildEstimate, PresetEstimates, Wishes, recommend

# Bytes of the saved model and seconds of a request, by preset.
COSTS = {"per-task": (900, 1.0), "adapters": (300, 1.0), "clusters": (200, 50.0), "one-model": (100, 20.0)}


def _estimates(*, trained=1000, rows=100.0, build=1e5, refused=(), timed=True, costs=COSTS) -> PresetEstimates:
    presets = {}
    for name, (size, request) in costs.items():
        localize = request - 1.0
        seconds = {
            "finetune": build - localize,
            "localize": localize,
            "score": 0.0,
            "total": build,
            "request": request,
        }
        presets[name] = BuildEstimate(
            num_parameters=trained,
            num_trained=trained // 100 if name == "adapters" else trained,
            num_tasks=50,
            num_clusters=20,
            num_processes=1,
            rows_per_task=rows,
            learning_rate=5e-5,
            fraction_bits=16,
            memory_bytes=1,
            model_bytes=size,
            scratch_bytes=1,
            seconds=seconds if timed else None,
        )
    reasons = {name: f"no {name} here." for name in refused}
    kept = {name: estimate for name, estimate in presets.items() if name not in reasons}
    return PresetEstimates(own=presets["per-task"], presets=kept, refused=reasons)


LARGE = {"trained": 10**9}


@pytest.mark.parametrize(
    ("situation", "wishes", "preset", "keeps"),
    [
        ({}, {}, "per-task", True),
        ({}, {"ids_known": False}, "one-model", True),
        ({}, {"max_storage": 900}, "per-task", True),
        ({}, {"max_storage": 899}, "adapters", True),
        ({}, {"max_storage": 250}, "clusters", True),
        ({}, {"max_storage": 250, "max_request_seconds": 60.0}, "clusters", True),
        ({}, {"max_storage": 290, "max_request_seconds": 2.0}, "adapters", False),
        ({}, {"max_storage": 1}, "clusters", False),
        ({}, {"max_request_seconds": 0.5}, "per-task", False),
        ({}, {"ids_known": False, "max_storage": 50}, "one-model", False),
        ({"refused": ["adapters"]}, {"max_storage": 899}, "clusters", True),
        ({"refused": ["per-task", "adapters"]}, {}, "clusters", True),
        ({"timed": False}, {"max_request_seconds": 0.5}, "per-task", True),
        (LARGE, {}, "adapters", True),
        (LARGE, {"ids_known": False}, "one-model", True),
        (LARGE, {"max_storage": 299}, "clusters", True),
        ({**LARGE, "refused": ["adapters"]}, {"max_request_seconds": 2.0}, "per-task", True),
    ],
)
def test_the_table_of_cases(situation, wishes, preset, keeps):
    found = recommend(Wishes(**wishes), _estimates(**situation))
    assert (found.preset, found.keeps_budgets) == (preset, keeps)


@pytest.mark.parametrize(
    ("situation", "wishes", "sentence"),
    [
        ({}, {}, "a request retrains the forgotten task alone"),
        ({}, {"max_storage": 250}, "adapters would come before it, but its saved model takes 0.3 KiB of 0.2 KiB."),
        ({}, {"max_storage": 250}, "Under clusters a request learns all masks again"),
        (
            {"refused": ["per-task"]},
            {},
            "per-task would come before it, but it cannot be used here: no per-task here.",
        ),
        ({}, {"max_storage": 1}, "No preset keeps to the budgets; this one comes nearest: its saved model takes"),
        ({}, {"max_request_seconds": 0.5}, "With an archive"),
        ({"timed": False}, {"max_request_seconds": 0.5}, "its budget was not checked"),
        ({"rows": 3.0}, {}, "A task has 3.0 rows on average"),
        ({"build": 60.0}, {}, "The build takes 60 seconds or so"),
        (LARGE, {}, "The model is large"),
        ({}, {"ids_known": False}, "The task of an input is unknown"),
        ({}, {"ids_known": False}, "clamu evaluate --serving auto"),
    ],
)
def test_the_reasons_say_why(situation, wishes, sentence):
    plain = recommend(Wishes(), _estimates(trained=10, refused=["adapters"]))
    found = recommend(Wishes(**wishes), _estimates(**situation))
    assert sentence in " ".join(found.reasons)
    assert len(plain.reasons) == 1
    assert json.loads(json.dumps(found.to_dict()))["reasons"] == list(found.reasons)


def test_a_recipe_that_no_preset_goes_with_is_refused():
    with pytest.raises(RecipeError, match=r"No preset can be used with this recipe\. no one-model here"):
        recommend(Wishes(ids_known=False), _estimates(refused=["one-model"]))


@pytest.mark.parametrize("wishes", [{"max_storage": 0}, {"max_request_seconds": -1.0}])
def test_budgets_are_positive(wishes):
    with pytest.raises(RecipeError, match="must be above 0"):
        Wishes(**wishes)


@pytest.fixture
def recipe(tmp_path):
    lines = [json.dumps({"user": f"u{n % 4}", "text": f"text {n}", "label": "ab"[n % 2]}) for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = {
        "base_model": {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32},
        "tokenizer": "bytes",
        "data": {"files": "rows.jsonl", "task_column": "user", "text_column": "text", "label_column": "label"},
        "arguments": {"finetune_steps": 2, "num_threads": 1},
    }

    def make(**changes):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return make


def test_the_command_recommends(recipe, capsys):
    assert main(["plan", recipe()]) == 0
    text = capsys.readouterr().out
    assert f"Recommended: --preset per-task ({PRESETS['per-task'].summary})\n- The task of an input is known" in text
    assert re.search(r"^a request +[0-9.]+ seconds or so", text, flags=re.MULTILINE)
    assert all(f"\n{name} " in text for name in PRESETS)
    assert main(["plan", recipe(), "--inference-ids", "unknown", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["preset"] == "one-model"
    assert found["presets"].keys() == PRESETS.keys()
    assert found["presets"]["adapters"]["num_trained"] < found["presets"]["per-task"]["num_trained"]


def test_the_command_keeps_to_a_budget(recipe, capsys):
    assert main(["plan", recipe(), "--tasks", "5000", "--max-storage", "500KB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["presets"]["per-task"]["model_bytes"] > 500_000
    chosen = found["recommendation"]["preset"]
    assert found["presets"][chosen]["model_bytes"] <= 500_000


def test_presets_that_a_recipe_refuses_are_left_out(recipe, capsys):
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}
    path = recipe(peft_config=lora, peft_merging="product", arguments={"preset": "clusters", "finetune_steps": 2})
    assert main(["plan", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["preset"] == "clusters"
    assert "holds trained parameters to fixed signs" in found["recommendation"]["reasons"][1]


@pytest.mark.parametrize("size", ["12", "many", "5 apples", "1,5GB", "-1GB"])
def test_a_size_that_is_none(recipe, capsys, size):
    assert main(["plan", recipe(), "--max-storage", size]) == 2
    assert "--max-storage must be a size with its unit, such as 500MB or 1.5GiB" in capsys.readouterr().err
