"""Recipes: what they read, and readable sentences for every mistake."""

from __future__ import annotations

import json

import pytest

from hf_clamu import ClamuModel, Recipe, RecipeError, TaskDataError

GOOD = """
base_model: {model_type: gpt2, n_layer: 1, n_embd: 16, n_head: 2, n_positions: 48, vocab_size: 257}
tokenizer: bytes
data:
  files: rows.jsonl
  task_column: user
  text_column: text
  label_column: label
  label_names: [bad, good, mixed]
arguments: {finetune_steps: 2, num_clusters: 2, mask_steps: 2, num_threads: 1, batch_size: 4}
"""


@pytest.fixture
def recipe(tiny, tmp_path):
    rows = tiny.rows("text")
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_a_recipe_trains_and_unmerges_without_naming_its_data_again(tiny, recipe, tmp_path):
    from hf_clamu.training import silent_progress

    model = Recipe.load(recipe).trainer(progress=silent_progress).train()
    model.save_pretrained(tmp_path / "model")
    # The data lie beside the folder: the ledger's source finds them.
    loaded = ClamuModel.from_pretrained(tmp_path / "model")
    assert loaded.ledger["source"]["files"] == "rows.jsonl"
    loaded.unmerge_task("user_1").save_pretrained(tmp_path / "unmerged")
    lines = recipe.with_name("rows.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if '"user_1"' not in line]
    assert len(kept) == len(lines) - 7
    (tmp_path / "less").mkdir()
    (tmp_path / "less/rows.jsonl").write_text("\n".join(kept), encoding="utf-8")
    (tmp_path / "less/recipe.yaml").write_text(GOOD, encoding="utf-8")
    without = Recipe.load(tmp_path / "less/recipe.yaml").trainer(progress=silent_progress).train()
    without.save_pretrained(tmp_path / "less/model")
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "less/model")


def test_a_folder_beside_the_recipe(tiny, recipe, tmp_path):
    tiny.processor("text").save_pretrained(tmp_path / "tokens")
    recipe.write_text(GOOD.replace("tokenizer: bytes", "tokenizer: tokens"), encoding="utf-8")
    trainer = Recipe.load(recipe).trainer()
    assert len(trainer.processing_class) == 257
    assert trainer.tasks.task_ids == tuple(f"user_{number}" for number in range(5))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model:", "base_modle:", "unknown key 'base_modle'. Did you mean 'base_model'?"),
        (
            "tokenizer: bytes",
            "zzz: 1",
            "unknown key 'zzz'. Known ones: base_model, revision, dtype, quantization",
        ),
        ("tokenizer: bytes", "quantization_config: nf4", "quantization_config must be a mapping, got 'nf4'"),
        ("tokenizer: bytes", "quantization_config: {load_in_4bits: true}", "Did you mean 'load_in_4bit'?"),
        ("base_model: {", "base_model: 3 #{", "base_model must be a Hub id, a folder or a configuration"),
        ("arguments: {", "arguments: [1] #", "arguments must be a mapping, got [1]"),
        ("finetune_steps: 2", "finetun_steps: 2", "'finetun_steps' in arguments. Did you mean 'finetune_steps'?"),
        ("finetune_steps: 2", "finetune_steps: 0", "finetune_steps must be at least 1, got 0"),
        ("finetune_steps: 2", "finetune_steps: many", "finetune_steps must be a"),
        ("finetune_steps: 2", "learning_rate: '5e-5'", "without quotes"),
        ("finetune_steps: 2", "localization: talls", "localization must be one of clamu, sift, tall, emr, global"),
        ("finetune_steps: 2", "clustering: 5", "clustering must be one of"),
        ("finetune_steps: 2", "scaling: big", "scaling"),
        ("num_threads: 1", "num_threads: 0", "num_threads must be 1 to 1024"),
        ("num_threads: 1", "num_threads: two", "num_threads"),
        ("finetune_steps: 2", "freeze: 3", "freeze"),
        ("finetune_steps: 2", "seed: 1.5", "seed must be a"),
        ("  task_column: user", "  task_colum: user", "Did you mean 'task_column'?"),
        ("  task_column: user", "  {}", "cannot be read as YAML"),
        ("tokenizer: bytes", "tokenizer: no/such/tokenizer", "The tokenizer 'no/such/tokenizer' could not be loaded"),
        ("tokenizer: bytes", "tokenizer: 5", "tokenizer must be a string"),
        ("tokenizer: bytes", "revision: 5", "revision must be a string"),
        ("tokenizer: bytes", "report_to: 5", "report_to must be a tracker or a list of trackers, got 5"),
        ("tokenizer: bytes", "report_to: []", "report_to must be a tracker or a list of trackers, got []"),
        ("tokenizer: bytes", "logging_dir: 5", "logging_dir must be a string"),
        ("tokenizer: bytes", "report_to: wandbe", "unknown tracker 'wandbe'. Did you mean 'wandb'?"),
        ("model_type: gpt2", "model_type: gtp2", "Did you mean 'gpt2'?"),
    ],
)
def test_mistakes(recipe, old, new, message):
    assert old in GOOD
    recipe.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(recipe).trainer().train()
    sentence = str(caught.value)
    assert message in sentence
    assert "\n" not in sentence
    assert len(sentence) > 25


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "3"])
def test_not_a_mapping(recipe, text):
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe.yaml must be a mapping with base_model, data and arguments"):
        Recipe.load(recipe)


@pytest.mark.parametrize("key", ["base_model", "data"])
def test_missing_keys(key):
    values = {"base_model": "org/base", "data": {"builtin": "digits"}}
    del values[key]
    with pytest.raises(RecipeError, match=f"lacks '{key}'"):
        Recipe.from_dict(values)


def test_wrong_syntax_is_one_sentence_with_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("base_model: gpt2\ndata: {files: [\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "r.yaml")
    where = f"The recipe {tmp_path / 'r.yaml'}, line 3, cannot be read as YAML: "
    assert str(caught.value).startswith(where)
    assert "<unicode string>" not in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_unreadable_files(tmp_path):
    with pytest.raises(RecipeError, match=r"There is no recipe .*absent.yaml"):
        Recipe.load(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path)
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("a: !!python/object/apply:os.system ['true']", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        Recipe.load(tmp_path / "r.yaml")


def test_missing_data(recipe):
    recipe.with_name("rows.jsonl").unlink()
    with pytest.raises(TaskDataError, match=r"rows.jsonl.*was not found"):
        Recipe.load(recipe).trainer()


def test_a_recipe_can_name_an_adapter(tiny, tmp_path):
    import json

    rows = tiny.rows("text")
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = Recipe.from_dict(
        {
            "base_model": tiny.config("text"),
            "tokenizer": "bytes",
            "data": {"files": "rows.jsonl", "task_column": "user", "text_column": "text", "label_column": "label"},
            "arguments": {"finetune_steps": 1, "mask_steps": 1, "num_clusters": 2, "num_threads": 1},
            "peft_config": {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]},
            "peft_merging": "product",
        },
        folder=tmp_path,
    )
    trainer = recipe.trainer()
    assert trainer.space.merging == "product"
    assert "transformer.h.0.attn.c_attn.weight" in trainer.train().ledger["parameters"]
    with pytest.raises(RecipeError, match="peft_config must be a mapping"):
        Recipe.from_dict({"base_model": "x", "data": {"files": "y"}, "peft_config": "LORA"})
