"""A recipe that names no learning rate: a number by one rule, in every file, and the bytes of that number."""

from __future__ import annotations

import json
import logging

import pytest

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.loading import empty_model
from hf_clamu.cli import main
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.training import silent_progress

QUICK = {"finetune_steps": 2, "batch_size": 3, "mask_steps": 2, "num_threads": 1}
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn", "c_proj"]}


def _train(tiny, tasks=None, peft_config=None, **changes):
    return ClamuTrainer(
        tiny.config("text"),
        tiny.tasks("text") if tasks is None else tasks,
        ClamuArguments(**{**QUICK, **changes}),
        processing_class=tiny.processor("text"),
        peft_config=peft_config,
        progress=silent_progress,
    ).train()


def _rate(model):
    return model.clamu_config.arguments["learning_rate"]


def _gpt2(tiny, width):
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": width}
    return empty_model(config, tiny.tasks("lm").spec, num_labels=None)


@pytest.mark.parametrize(("width", "rate"), [(48, 2.1e-3), (64, 1.6e-3), (384, 2.6e-4), (768, 1.3e-4), (4096, 2.4e-5)])
def test_all_weights_get_a_rate_by_the_width(tiny, width, rate):
    assert resolved_arguments(ClamuArguments(), _gpt2(tiny, width), None).learning_rate == rate


@pytest.mark.parametrize(("width", "rate"), [(16, 1e-2), (384, 1e-2), (768, 5.2e-3), (4096, 9.8e-4)])
def test_adapters_get_a_higher_one(tiny, width, rate):
    space = PeftSpace.of(LORA)
    assert resolved_arguments(ClamuArguments(), _gpt2(tiny, width), space).learning_rate == rate


def test_a_configuration_without_a_hidden_size_counts_as_wide_as_its_largest_matrix(tiny):
    spec = tiny.tasks("image").spec
    resnet = {
        "model_type": "resnet",
        "layer_type": "basic",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 64],
        "depths": [1, 1],
    }
    model = empty_model(resnet, spec, num_labels=10)
    assert not isinstance(getattr(model.config, "hidden_size", None), int)
    assert resolved_arguments(ClamuArguments(), model, None).learning_rate == 1.6e-3


def test_a_rate_that_is_named_stays(tiny):
    arguments = ClamuArguments(learning_rate=5e-5, fraction_bits=28, linear_digest=False)
    assert resolved_arguments(arguments, _gpt2(tiny, 64), None) is arguments


@pytest.mark.parametrize(
    ("settings", "peft_config"),
    [({}, None), ({"preset": "clusters", "num_clusters": 2}, None), ({"preset": "adapters"}, LORA)],
    ids=["per-task", "clusters", "adapters"],
)
def test_the_bytes_are_those_of_the_number_and_forgetting_is_exact(tiny, tmp_path, settings, peft_config):
    tasks = tiny.tasks("text")
    model = _train(tiny, peft_config=peft_config, **settings)
    rate = _rate(model)
    assert isinstance(rate, float)
    model.save_pretrained(tmp_path / "open")
    _train(tiny, peft_config=peft_config, learning_rate=rate, **settings).save_pretrained(tmp_path / "named")
    assert tiny.digests(tmp_path / "open") == tiny.digests(tmp_path / "named")
    assert f"`{rate}`" in (tmp_path / "open/README.md").read_text(encoding="utf-8")

    forgetting = ClamuModel.from_pretrained(tmp_path / "open")
    assert forgetting.verify(data=tasks)
    forgetting.unmerge_task("user_1", data=tasks).save_pretrained(tmp_path / "unmerged")
    without = _train(tiny, tasks.without("user_1"), peft_config=peft_config, **settings)
    without.save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "without")
    added = ClamuModel.from_pretrained(tmp_path / "without").add_task(tasks.select("user_1"), data=tasks)
    added.save_pretrained(tmp_path / "added")
    assert tiny.digests(tmp_path / "added") == tiny.digests(tmp_path / "open")


def test_an_interrupted_build_goes_on_under_the_number(tiny, tmp_path):
    """The journal is kept for the settings as they were resolved."""
    finished = []

    def stopping(items, description):
        for item in items:
            if description == "finetune" and len(finished) == 2:
                raise KeyboardInterrupt
            yield item
            if description == "finetune":
                finished.append(item)

    def trainer(progress, **changes):
        return ClamuTrainer(
            tiny.config("text"),
            tiny.tasks("text"),
            ClamuArguments(**QUICK, **changes),
            processing_class=tiny.processor("text"),
            journal_dir=tmp_path / "journal",
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        trainer(stopping).train()
    trained = []

    def counting(items, description):
        for item in items:
            trained.extend([item] if description == "finetune" else [])
            yield item

    whole = _train(tiny)
    model = trainer(counting, learning_rate=_rate(whole)).train()
    assert model.state_digest() == whole.state_digest()
    assert len(trained) == 3


def test_merged_checkpoints_have_a_number_for_tasks_that_come_later(tiny, tmp_path):
    folders = tiny.local_models("text", tmp_path)
    model = ClamuModel.merge(tmp_path / "base", folders)
    assert _rate(model) == resolved_arguments(ClamuArguments(), model, None).learning_rate


def test_a_build_says_what_was_chosen_once(tiny, caplog):
    with caplog.at_level(logging.INFO, "hf_clamu"):
        _train(tiny)
        _train(tiny, learning_rate=1e-3)
        _train(tiny, peft_config=LORA)
    said = [text for text in caplog.messages if text.startswith("learning_rate")]
    assert said == [
        "learning_rate 6.3e-03, by the width of the model 16",
        "learning_rate 1.0e-02, for LORA in a model of the width 16",
    ]


def test_plan_and_train_choose_alike(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--sample"]) == 0
    recipe = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "learning_rate" not in recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("finetune_steps: 60", "finetune_steps: 1"), encoding="utf-8")
    capsys.readouterr()
    assert main(["plan", "recipe.yaml", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["presets"]["adapters"]["learning_rate"] == 1e-2
    assert main(["train", "recipe.yaml", "--output", "model", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["num_tasks"] == 12
    assert shown.err.count("learning_rate 1.6e-03, by the width of the model 64") == 1
    saved = json.loads((tmp_path / "model/config.json").read_bytes())
    assert planned["learning_rate"] == saved["arguments"]["learning_rate"] == 1.6e-3
    assert planned["fraction_bits"] == saved["arguments"]["fraction_bits"] == 16
    assert shown.err.count("fraction_bits 16, by the sum of the learning rates") == 1
