"""Adapter targets that are frozen, tied or embeddings: exact, or refused before training."""

from __future__ import annotations

import json

import pytest

from hf_clamu import ClamuModel, ClamuTrainer, RecipeError
from hf_clamu.training import silent_progress

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 257,
    "max_position_embeddings": 64,
}


def _trainer(tiny, targets, merging, tasks=None, tied=False, attention_bias=False, **changes):
    options = {key: changes.pop(key) for key in ("bias", "lora_bias") if key in changes}
    return ClamuTrainer(
        {**LLAMA, "tie_word_embeddings": tied, "attention_bias": attention_bias},
        tiny.tasks("lm") if tasks is None else tasks,
        tiny.arguments(**changes),
        processing_class=tiny.processor("lm"),
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": targets, **options},
        peft_merging=merging,
        progress=silent_progress,
    )


@pytest.mark.parametrize(
    ("targets", "merging", "options", "message"),
    [
        (["q_proj", "v_proj"], "product", {"freeze": ("*.v_proj.weight",)}, r"v_proj\.weight', which is frozen"),
        (["q_proj"], "product", {"attention_bias": True, "lora_bias": True, "freeze": ("*.bias",)}, "bias', which is"),
        (["q_proj", "lm_head"], "product", {"tied": True}, "shares its weight"),
        (["lm_head"], "frozen_a", {"tied": True}, "shares its weight"),
        (["embed_tokens"], "parameters", {"tied": True}, "shares its weight"),
        (["q_proj"], "product", {"lora_bias": True}, "cannot merge the adapter into"),
        (["q_proj"], "parameters", {"lora_bias": True}, "cannot merge the adapter into"),
        (["q_proj"], "frozen_a", {"lora_bias": True}, "cannot merge the adapter into"),
    ],
)
def test_what_cannot_be_undone_is_refused_before_training(tiny, targets, merging, options, message):
    trainer = _trainer(tiny, targets, merging, **options)
    with pytest.raises(RecipeError, match=message):
        trainer.train()


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
def test_an_embedding_learns_and_forgets(tiny, merging):
    tasks = tiny.tasks("lm")
    model = _trainer(tiny, ["embed_tokens", "q_proj"], merging).train()
    names = model.ledger["parameters"]
    for task in model.ledger["tasks"].values():
        moved = {name for name, bound in zip(names, task["bounds"], strict=True) if bound}
        assert any("embed_tokens" in name for name in moved)
        assert any("q_proj" in name for name in moved)
    without = _trainer(tiny, ["embed_tokens", "q_proj"], merging, tasks.without("user_1")).train()
    assert model.unmerge_task("user_1").state_digest() == without.state_digest()


def test_a_frozen_bias_that_merging_leaves_alone_is_fine(tiny):
    model = _trainer(tiny, ["q_proj"], "product", attention_bias=True, freeze=("*.bias",)).train()
    assert list(model.ledger["parameters"]) == ["model.layers.0.self_attn.q_proj.weight"]


_CROSS = {
    "model_type": "gpt2",
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 48,
    "vocab_size": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
    # Layers that are used with an encoder alone.
    "add_cross_attention": True,
}


def _cross(tiny, targets, merging):
    return ClamuTrainer(
        _CROSS,
        tiny.tasks("lm"),
        tiny.arguments(finetune_steps=1),
        processing_class=tiny.processor("lm"),
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": targets},
        peft_merging=merging,
        progress=silent_progress,
    )


@pytest.mark.parametrize("merging", ["frozen_a", "product"])
def test_layers_that_the_model_does_not_use_are_refused(tiny, merging):
    with pytest.raises(RecipeError, match="has a part in what the model computes"):
        _cross(tiny, ["q_attn"], merging).train()


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["c_attn", "q_attn"], "changed anything at transformer.h.0.crossattention"),
        (["mlp.c_fc"], None),
    ],
)
def test_parts_that_learn_nothing_are_named_once(tiny, caplog, targets, expected, merging):
    _cross(tiny, targets, merging).train().verify()
    others = "hf_clamu.merging.scoring"  # says how good the model is
    records = [record for record in caplog.records if record.name.startswith("hf_clamu") and record.name != others]
    warnings = [record.getMessage() for record in records]
    if expected is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert expected in warnings[0]


@pytest.mark.parametrize(("kind", "merging"), [("lm", "parameters"), ("text", "parameters"), ("text", "frozen_a")])
def test_an_adapter_that_can_learn_nothing_is_refused(tiny, kind, merging):
    def trainer(freeze, **options):
        return ClamuTrainer(
            tiny.config(kind),
            tiny.tasks(kind),
            tiny.arguments(freeze=freeze, finetune_steps=1),
            processing_class=tiny.processor(kind),
            peft_config={"peft_type": "LORA", "r": 2, "target_modules": ["c_attn", "c_fc"], **options},
            peft_merging=merging,
            progress=silent_progress,
        )

    with pytest.raises(RecipeError, match="freeze leaves the adapter nothing to learn"):
        trainer(("*lora_B*",)).train()
    if merging == "parameters":
        assert trainer(("*lora_B*",), init_lora_weights=False).train()
    assert trainer(("*c_fc.lora_B*", "*c_fc.lora_A*")).train()


def _all_linear(tiny, kind, merging, tasks=None, *, peft_type="LORA", **options):
    rank = {"r": 2} if peft_type != "IA3" else {"feedforward_modules": []}
    return ClamuTrainer(
        tiny.config(kind),
        tiny.tasks(kind) if tasks is None else tasks,
        tiny.arguments(),
        processing_class=tiny.processor(kind),
        peft_config={"peft_type": peft_type, "target_modules": "all-linear", **rank, **options},
        peft_merging=merging,
        progress=silent_progress,
    ).train()


def _of(model, module):
    return {name.partition(f"{module}.")[2] for name in model.ledger["parameters"] if f"{module}." in name}


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
@pytest.mark.parametrize(("kind", "head"), [("text", "score"), ("image", "classifier")])
def test_a_head_that_is_trained_as_a_whole_gets_no_adapter(tiny, tmp_path, kind, head, merging):
    tasks = tiny.tasks(kind)
    gone, *others = tasks.task_ids
    model = _all_linear(tiny, kind, merging)
    assert _of(model, head) == ({"weight"} if kind == "text" else {"weight", "bias"})
    bounds = dict(zip(model.ledger["parameters"], model.ledger["tasks"][gone]["bounds"], strict=True))
    assert bounds[f"{head}.weight"]
    model.save_pretrained(tmp_path / "m")
    saved = json.loads((tmp_path / "m/config.json").read_bytes())["peft_config"]
    assert saved["exclude_modules"] == head
    loaded = ClamuModel.from_pretrained(tmp_path / "m")
    assert loaded.verify(data=tasks)
    loaded.unmerge_task(gone, data=tasks).save_pretrained(tmp_path / "m")
    _all_linear(tiny, kind, merging, tasks.select(others)).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "without")


# All-linear as it stands in models that were saved when it had adapters around their heads, too.
_SAVED_BEFORE = ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "score"]


@pytest.mark.parametrize("merging", ["frozen_a", "product"])
@pytest.mark.parametrize(
    ("options", "peft_type", "excluded"),
    [
        ({"target_modules": _SAVED_BEFORE}, "LORA", None),
        ({"exclude_modules": ["c_proj"]}, "LORA", ["c_proj"]),
        ({"exclude_modules": []}, "LORA", []),
        ({"modules_to_save": []}, "LORA", None),
        ({}, "VERA", None),
    ],
    ids=["named", "excluded", "none excluded", "not trained as a whole", "cannot exclude"],
)
def test_what_the_user_or_a_saved_model_names_stays(tiny, tmp_path, options, peft_type, excluded, merging):
    tasks = tiny.tasks("text")
    merging = "parameters" if peft_type == "VERA" and merging == "frozen_a" else merging
    model = _all_linear(tiny, "text", merging, peft_type=peft_type, **options)
    if merging != "product":
        assert any("_B" in name or "lambda" in name for name in _of(model, "score"))
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_bytes())["peft_config"].get("exclude_modules") == excluded
    loaded = ClamuModel.from_pretrained(tmp_path / "m")
    loaded.unmerge_task("user_1", data=tasks).save_pretrained(tmp_path / "m")
    without = _all_linear(tiny, "text", merging, tasks.without("user_1"), peft_type=peft_type, **options)
    without.save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "without")
