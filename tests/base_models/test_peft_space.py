"""Finetuning through PEFT adapters: the same promise in the adapter's space."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClamuTrainer, IncompatibleBaseError, RecipeError
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.tasks import traits_of
from hf_clamu.training import silent_progress

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"]}
_QV = {"target_modules": ["q_proj", "v_proj"]}
VIT = {"peft_type": "LORA", "r": 2, **_QV}
IA3 = {"peft_type": "IA3", "target_modules": ["c_attn"], "feedforward_modules": []}
VERA = {"peft_type": "VERA", "r": 4, "target_modules": ["c_attn"]}
# The kind of the tasks, the adapter, and how it is merged.
SPACES = {
    "lora-frozen_a": ("text", LORA, "frozen_a"),
    "lora-parameters": ("text", LORA, "parameters"),
    "lora-product": ("text", LORA, "product"),
    "lora-frozen_a-lm": ("lm", LORA, "frozen_a"),
    "rslora-dropout-product-lm": ("lm", {**LORA, "lora_dropout": 0.2, "use_rslora": True}, "product"),
    "lora-frozen_a-image": ("image", VIT, "frozen_a"),
    "dora-parameters": ("text", {**LORA, "use_dora": True}, "parameters"),
    "loha-parameters-image": ("image", {**VIT, "peft_type": "LOHA"}, "parameters"),
    "lokr-product-image": ("image", {**VIT, "peft_type": "LOKR"}, "product"),
    "oft-parameters-image": ("image", {"peft_type": "OFT", "oft_block_size": 4, **_QV}, "parameters"),
    "ia3-parameters": ("text", IA3, "parameters"),
    "ia3-product": ("text", IA3, "product"),
    "vera-parameters": ("text", VERA, "parameters"),
}
# The first six: of LoRA.
PLAIN_LORA = tuple(SPACES)[:6]
LIVE = tuple(name for name, (_, _, merging) in SPACES.items() if merging != "product")


def _train(tiny, kind, config, merging, tasks=None, base=None, **changes):
    return ClamuTrainer(
        tiny.config(kind) if base is None else base,
        tiny.tasks(kind) if tasks is None else tasks,
        tiny.arguments(**changes),
        processing_class=tiny.processor(kind),
        peft_config=config,
        peft_merging=merging,
        progress=silent_progress,
    ).train()


def _answer(model, kind):
    """The outputs of a model for a fixed input."""
    given = {"input_ids": torch.tensor([[72, 101, 108, 108, 111]])}
    if kind == "image":
        given = {"pixel_values": torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)}
    return model(**given).logits


@pytest.mark.matrix("spaces", row="{name}", column="unmerge")
@pytest.mark.parametrize("name", SPACES)
def test_unmerging_is_exact(tiny, tmp_path, name):
    kind, config, merging = SPACES[name]
    tasks = tiny.tasks(kind)
    gone = tasks.task_ids[1]
    model = _train(tiny, kind, config, merging)
    model.save_pretrained(tmp_path / "model")
    loaded = ClamuModel.from_pretrained(tmp_path / "model")
    for number in (0, 1):
        model.set_cluster(number)
        loaded.set_cluster(number)
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded.unmerge_task(gone, data=tasks).save_pretrained(tmp_path / "model")
    without = tasks.select([task_id for task_id in tasks.task_ids if task_id != gone])
    _train(tiny, kind, config, merging, tasks=without).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "model") == tiny.digests(tmp_path / "without")
    assert loaded.verify(data=tasks)


@pytest.mark.parametrize("name", PLAIN_LORA)
def test_only_the_space_is_merged(tiny, name):
    kind, config, merging = SPACES[name]
    model = _train(tiny, kind, config, merging)
    names = model.ledger["parameters"]
    heads = [name for name in names if name.startswith(("score.", "classifier."))]
    assert bool(heads) == (kind != "lm")
    others = [name for name in names if name not in heads]
    assert others
    if merging == "product":
        assert not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())
        targets = tuple(f".{target}." for target in config["target_modules"])
        assert all(any(target in name for target in targets) for name in others)
    else:
        assert all(".lora_" in name for name in others)
        assert any(".lora_A." in name for name in others) == (merging == "parameters")


@pytest.mark.matrix("spaces", row="{name}", column="export")
@pytest.mark.parametrize("name", SPACES)
def test_an_export_is_a_plain_model_with_the_same_answers(tiny, tmp_path, name):
    kind, config, merging = SPACES[name]
    model = _train(tiny, kind, config, merging)
    auto = getattr(transformers, traits_of(model.clamu_config.task_spec["kind"]).auto_class)
    for cluster in (0, None):
        model.set_cluster(cluster)
        expected = _answer(model, kind)
        model.export(tmp_path / f"plain-{cluster}", cluster=cluster)
        plain = auto.from_pretrained(tmp_path / f"plain-{cluster}")
        assert type(plain).__module__.startswith("transformers.")
        torch.testing.assert_close(_answer(plain, kind), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(_answer(model, kind), expected, rtol=0, atol=0)
    assert not torch.equal(_answer(model.set_cluster(0), kind), expected)


# PEFT asks transformers for it by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.matrix("spaces", row="{name}", column="adapter")
@pytest.mark.parametrize("name", [name for name in LIVE if name != "vera-parameters"])
def test_an_unmerged_export_is_an_adapter_for_peft(tiny, tmp_path, name):
    kind, config, merging = SPACES[name]
    model = _train(tiny, kind, config, merging)
    model.save_pretrained(tmp_path / "model")
    model.export(tmp_path / "adapter", cluster=1, merge=False)
    auto = getattr(transformers, traits_of(model.clamu_config.task_spec["kind"]).auto_class)
    adapted = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "model/base_model"), tmp_path / "adapter")
    assert torch.equal(_answer(adapted.eval(), kind), _answer(model.set_cluster(1), kind))
    assert not torch.equal(_answer(adapted, kind), _answer(model.set_cluster(0), kind))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("vera-parameters", RecipeError, r"cannot write a VERA adapter.*\(merge=True\)"),
        ("lora-product", ValueError, "this model has none inside"),
    ],
)
def test_where_there_is_no_adapter_to_write(tiny, tmp_path, name, error, message):
    model = _train(tiny, *SPACES[name])
    with pytest.raises(error, match=message):
        model.export(tmp_path / "adapter", cluster=1, merge=False)
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_a_adds_products(tiny, tmp_path):
    """The global model at alpha 1 holds the sum of the products that the tasks would have alone."""
    tasks = tiny.tasks("text")
    settings = {"scaling": "sum", "localization": "global"}
    model = _train(tiny, "text", LORA, "frozen_a", **settings)
    layer = model.transformer.h[0].attn.c_attn
    merged = layer.get_delta_weight("default").double()
    alone = torch.zeros_like(merged)
    for task_id in tasks.task_ids:
        one = _train(tiny, "text", LORA, "frozen_a", tasks=tasks.select([task_id]), num_clusters=1, **settings)
        alone += one.transformer.h[0].attn.c_attn.get_delta_weight("default").double()
    assert merged.abs().max() > 1e-4
    torch.testing.assert_close(merged, alone, rtol=1e-4, atol=1e-7)


def test_peft_is_told_that_masks_of_an_adapter_need_clamu(tiny, tmp_path):
    import transformers

    _train(tiny, "text", LORA, "frozen_a").save_pretrained(tmp_path / "model")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model" / "base_model")
    with pytest.raises(IncompatibleBaseError, match="of a LORA adapter's parameters"):
        PeftModel.from_pretrained(base, tmp_path / "model", subfolder="masks/cluster_000")


def test_the_base_inside_has_no_adapter(tiny, tmp_path):
    model = _train(tiny, "text", LORA, "frozen_a")
    model.save_pretrained(tmp_path / "model")
    base = load_file(tmp_path / "model/base_model/model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in base)
    fresh = load_file(tmp_path / "model/base_init.safetensors")
    assert fresh
    assert all(".lora_" in name for name in fresh)


@pytest.mark.parametrize("merging", [None, "parameters"])
def test_what_cannot_train_on_after_it_was_saved_is_refused(merging):
    osf = {"peft_type": "OSF", "target_modules": ["q_proj"]}
    with pytest.raises(RecipeError, match=r"Parameters of OSF .*peft_merging='product'"):
        PeftSpace.of(osf, merging)
    assert PeftSpace.of(osf, "product").peft_type == "OSF"


def test_settings_are_kept_in_full(tiny):
    from peft import LoraConfig

    given = PeftSpace.of(LoraConfig(r=3, target_modules=["b", "a"], rank_pattern={"x": 2}))
    assert given.to_dict() == {"peft_type": "LORA", "r": 3, "rank_pattern": {"x": 2}, "target_modules": ["a", "b"]}
    assert given.merging == "frozen_a"
    assert PeftSpace.of(given.to_dict(), given.merging) == given
    assert PeftSpace.of({"peft_type": "LOHA"}).merging == "parameters"


@pytest.mark.parametrize(
    ("config", "merging", "message"),
    [
        ({"r": 2}, None, "peft_type that PEFT knows, got None"),
        ({"peft_type": "LORAA"}, None, "Did you mean 'LORA'"),
        ({"peft_type": "LORA", "rr": 2}, None, "no setting 'rr'"),
        ({"peft_type": "LORA", "r": 2}, "sum", "peft_merging must be one of"),
        ({"peft_type": "IA3"}, "frozen_a", "is for LORA"),
        ({"peft_type": "PROMPT_TUNING"}, None, "cannot be merged by adding"),
        ({"peft_type": "ADALORA"}, None, "cannot be merged by adding"),
        (None, "product", "there is no peft_config"),
    ],
)
def test_what_cannot_be_merged_is_refused(config, merging, message):
    with pytest.raises(RecipeError, match=message):
        PeftSpace.of(config, merging)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LORA, "target_modules": ["nowhere"]}, r"LORA adapter into a GPT2ForSeq.*\. Give a peft_config whose"),
        ({**LORA, "modules_to_save": ["nowhere"]}, "modules_to_save names 'nowhere'"),
        ({**LORA, "init_lora_weights": "pissa"}, "changes the base weight"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(tiny, config, message):
    with pytest.raises(RecipeError, match=message):
        _train(tiny, "text", config, None)
