"""Adapters from elsewhere that PEFT computes otherwise than by a product, or that could leave something of a task."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hf_clamu import ClamuArguments, ClamuModel, IncompatibleBaseError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
ARGUMENTS = ClamuArguments(localization="emr", clustering="none")
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 31,
}
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
MODULES = ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]


def _base(folder, kind="CausalLM", **settings):
    torch.manual_seed(7)
    getattr(transformers, f"LlamaFor{kind}")(transformers.LlamaConfig(**LLAMA, **settings)).save_pretrained(folder)
    return folder


def _save(base, folder, seed, kind="CausalLM", config=LoraConfig, **settings):
    """Save an adapter of which all parameters but the factor A have moved."""
    torch.manual_seed(1)
    plain = getattr(transformers, f"LlamaFor{kind}").from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied embeddings
        model = get_peft_model(plain, config(**{**LORA, **settings}))
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_A" not in name:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        model.save_pretrained(folder)
    return folder


def _merge(base, adapters, merging=None):
    return ClamuModel.merge(base, adapters, ARGUMENTS, peft_merging=merging)


def _edited(folder, target, change):
    shutil.copytree(folder, target)
    path = target / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return target


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dropout": 0.1},
        {"target_modules": MODULES},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"target_modules": ["q_proj", "down_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"layers_to_transform": [0]},
    ],
    ids=["dropout", "full-names", "pattern", "excluded", "layers"],
)
def test_forgetting_all_but_an_added_adapter_leaves_nothing_of_the_first(settings, tmp_path, tiny):
    base = _base(tmp_path / "base")
    both = {"a": _save(base, tmp_path / "a", 1), "b": _save(base, tmp_path / "b", 2, **settings)}
    _merge(base, {"a": both["a"]}).save_pretrained(tmp_path / "first")
    added = ClamuModel.from_pretrained(tmp_path / "first").add_task(checkpoints=both)
    added.save_pretrained(tmp_path / "added")
    _merge(base, both, "frozen_a").save_pretrained(tmp_path / "both")
    assert tiny.digests(tmp_path / "added") == tiny.digests(tmp_path / "both")
    added.unmerge_task("a", checkpoints=both).save_pretrained(tmp_path / "after")
    _merge(base, {"b": both["b"]}).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")


def test_the_sign_of_a_zero_tells_factors_apart(tmp_path):
    def zero(sign):
        return lambda tensors: {
            name: torch.copysign(torch.zeros_like(one), torch.tensor(sign)) if "lora_A" in name else one
            for name, one in tensors.items()
        }

    base = _base(tmp_path / "base")
    plain = _save(base, tmp_path / "plain", 1)
    signs = {name: _edited(plain, tmp_path / name, zero(sign)) for name, sign in (("a", -1.0), ("b", 1.0))}
    with pytest.raises(IncompatibleBaseError, match="another factor A"):
        _merge(base, signs, "frozen_a")
    model = _merge(base, {"a": signs["a"]}, "frozen_a")
    with pytest.raises(IncompatibleBaseError, match="other values than the model's"):
        model.add_task(checkpoints=signs)


def test_heads_that_a_configuration_names_in_vain_share_factors(tmp_path, tiny):
    # PEFT names classifier and score for every classifier.
    base = _base(tmp_path / "base", "SequenceClassification", num_labels=3, pad_token_id=0)
    adapters = {
        name: _save(base, tmp_path / name, seed, "SequenceClassification", task_type="SEQ_CLS")
        for seed, name in enumerate("abc")
    }
    model = _merge(base, adapters)
    assert model.merged.space.merging == "frozen_a"
    assert model.merged.space.options["modules_to_save"] == ["score"]
    assert "score.weight" in model.merged.checkpoint.state.delta
    model.unmerge_task("a", checkpoints=adapters).save_pretrained(tmp_path / "after")
    del adapters["a"]
    _merge(base, adapters).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")


def test_an_added_adapter_trained_the_modules_that_the_model_trains(tmp_path):
    base = _base(tmp_path / "base")
    plain, head = _save(base, tmp_path / "a", 1), _save(base, tmp_path / "b", 2, modules_to_save=["lm_head"])
    with pytest.raises(IncompatibleBaseError, match=r"'lm_head.weight', which the model trains and it does not"):
        _merge(base, {"b": head}).add_task(checkpoints={"a": plain, "b": head})
    with pytest.raises(IncompatibleBaseError, match=r"'lm_head.weight', which it trained and the model does not"):
        _merge(base, {"a": plain}).add_task(checkpoints={"a": plain, "b": head})
    assert _merge(base, {"a": plain, "b": head}).merged.space is None


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_adapters_that_change_the_base_at_each_load_are_refused(start, tmp_path):
    base = _base(tmp_path / "base")
    adapters = {
        "a": _save(base, tmp_path / "a", 1),
        "b": _save(base, tmp_path / "b", 2, init_lora_weights=start),
    }
    for merging in (None, "product"):
        with pytest.raises(IncompatibleBaseError, match=rf"'{start}', with which PEFT changes the base weights"):
            _merge(base, adapters, merging)
    with pytest.raises(IncompatibleBaseError, match=r"PEFT changes the base weights when it loads .*b\. Choose"):
        _merge(base, {"b": adapters["b"]}, "frozen_a")


@pytest.mark.filterwarnings("ignore:aLoRA is currently only supported")
def test_an_adapter_that_works_from_some_token_on_is_no_product(tmp_path):
    base = _base(tmp_path / "base")
    adapters = {"a": _save(base, tmp_path / "a", 1, alora_invocation_tokens=[1, 2])}
    with pytest.raises(IncompatibleBaseError, match="aLoRA does not support merging"):
        _merge(base, adapters)


def test_weights_that_were_trained_apart_from_their_twins_are_refused(tmp_path):
    base = _base(tmp_path / "base", tie_word_embeddings=True)
    for name, other in (("lm_head", "model.embed_tokens"), ("embed_tokens", "lm_head")):
        apart = _save(base, tmp_path / name, 1, modules_to_save=[name])
        with pytest.raises(IncompatibleBaseError, match=rf"{name}.weight' apart from '{other}.weight'.*ensure_weight"):
            _merge(base, {"a": apart}, "product")
    with pytest.raises(IncompatibleBaseError, match=r"embed_tokens.weight' apart from 'lm_head.weight'"):
        _merge(base, {"a": apart}, "frozen_a")
    both = _save(base, tmp_path / "both", 1, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(IncompatibleBaseError, match=r"'model.embed_tokens.weight' with other values than 'lm_head.w"):
        _merge(base, {"a": both}, "product")


def test_adapters_without_numbers_and_of_shared_parts_are_told(tmp_path):
    base = _base(tmp_path / "base")
    plain = _save(base, tmp_path / "plain", 1)
    for name, change, said in (
        ("empty", lambda tensors: {}, "it lacks 'model.layers.0.mlp.down_proj.lora_A.weight'"),
        ("whole", lambda tensors: {key: one.int() for key, one in tensors.items()}, "has numbers of type torch.int32"),
    ):
        with pytest.raises(IncompatibleBaseError, match=said):
            _merge(base, {"a": plain, "b": _edited(plain, tmp_path / name, change)}, "product")
    shared = _save(base, tmp_path / "shared", 1, config=VeraConfig, target_modules=["q_proj"])
    with pytest.raises(IncompatibleBaseError, match="PEFT does not read a VERA adapter without its own model"):
        _merge(base, {"a": shared})


@pytest.mark.parametrize(
    "config", [{"target_modules": "("}, {"rank_pattern": {"(": 3}}, {"exclude_modules": "["}, {"peft_type": ["LORA"]}]
)
def test_patterns_and_types_that_are_none_are_told(config, tmp_path):
    base = _base(tmp_path / "base")
    folder = _save(base, tmp_path / "a", 1)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | config))
    with pytest.raises(IncompatibleBaseError, match=r"Task 'a': the adapter in .*/a cannot be merged: "):
        _merge(base, {"a": folder}, "product")


def test_a_head_of_several_layers_shares_factors(tmp_path, tiny):
    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(**sizes, vocab_size=31, num_labels=3, max_position_embeddings=20)
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    adapters = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(1)
        plain = transformers.RobertaForSequenceClassification.from_pretrained(tmp_path / "base")
        model = get_peft_model(plain, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_A" not in key:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        adapters[name] = tmp_path / name
        model.save_pretrained(adapters[name])
    merged = _merge(tmp_path / "base", adapters)
    assert merged.merged.space.options["modules_to_save"] == ["classifier"]
    assert {"classifier.dense.bias", "classifier.out_proj.weight"} <= merged.merged.checkpoint.state.delta.keys()
    merged.export_adapters(tmp_path / "out")
    merged.unmerge_task("b", checkpoints=adapters).save_pretrained(tmp_path / "after")
    _merge(tmp_path / "base", {"a": adapters["a"]}).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")
