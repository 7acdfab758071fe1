"""What is exported answers, loaded as others load it, as the live model; adapters do not point to other weights."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from catalogue import CATALOGUE
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClamuTrainer, ExactnessError
from hf_clamu.training import silent_progress

# PEFT asks transformers in a way that transformers will drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]

IDS = torch.tensor([[72, 105, 33, 9]])
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "vocab_size": 257, "max_position_embeddings": 64}
ROBERTA = {**BERT, "model_type": "roberta", "max_position_embeddings": 330}
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 16, "vocab_size": 257, "tie_word_embeddings": True}


def _build(tiny, base, lora, kind="text", merging=None, **changes):
    return ClamuTrainer(
        base,
        tiny.tasks(kind),
        tiny.arguments(scaling="sum", learning_rate=0.02, **changes),
        processing_class=tiny.processor(kind),
        peft_config={"peft_type": "LORA", "r": 2, **lora},
        peft_merging=merging,
        progress=silent_progress,
    ).train()


@torch.no_grad()
def _apart(left, right):
    return (left(IDS).logits - right(IDS).logits).abs().max().item()


@pytest.mark.parametrize("merging", ["frozen_a", "parameters"])
@pytest.mark.parametrize(
    ("base", "lora", "head"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}, ["score"]),
        ("gpt2", {"target_modules": "all-linear"}, ["score"]),
        (BERT, {"target_modules": "all-linear", "exclude_modules": ["query"]}, ["classifier"]),
        (BERT, {"target_modules": ["query", "classifier"], "bias": "all"}, ["classifier"]),
        (ROBERTA, {"target_modules": "all-linear"}, ["classifier"]),
        (ROBERTA, {"target_modules": r".*\.(key|out_proj)"}, ["classifier"]),
    ],
    ids=["gpt2", "gpt2-all", "bert-all", "bert-head", "roberta-all", "roberta-pattern"],
)
def test_peft_answers_with_an_exported_adapter_as_the_live_model(base, lora, head, merging, tiny, tmp_path):
    model = _build(tiny, tiny.config("text") if base == "gpt2" else base, lora, merging=merging)
    model.save_pretrained(tmp_path / "m")
    auto = transformers.AutoModelForSequenceClassification
    for cluster in (None, 1):
        model.export(tmp_path / f"adapter{cluster}", cluster=cluster, merge=False)
        model.export(tmp_path / f"plain{cluster}", cluster=cluster)
        plain = auto.from_pretrained(tmp_path / "m/base_model")
        model.set_base()
        moved = _apart(model, model.set_cluster(cluster)), _apart(plain, model)
        assert moved[1] > 1e-3
        assert _apart(PeftModel.from_pretrained(plain, tmp_path / f"adapter{cluster}").eval(), model) < 1e-6
        assert _apart(auto.from_pretrained(tmp_path / f"plain{cluster}"), model) < 1e-6
    config = json.loads((tmp_path / "adapter1/adapter_config.json").read_bytes())
    assert config["modules_to_save"] == head
    kept = load_file(tmp_path / "adapter1/adapter_model.safetensors")
    assert any(f".{head[0]}." in name and name.endswith(".weight") and "lora" not in name for name in kept)


def test_tied_heads_are_exported_tied(tiny, tmp_path):
    model = _build(tiny, LLAMA, {"target_modules": ["q_proj", "down_proj"]}, kind="lm")
    model.save_pretrained(tmp_path / "m")
    auto = transformers.AutoModelForCausalLM
    for cluster in (None, 0):
        model.export(tmp_path / f"plain{cluster}", cluster=cluster)
        model.export(tmp_path / f"adapter{cluster}", cluster=cluster, merge=False)
        model.set_cluster(cluster)
        plain = auto.from_pretrained(tmp_path / f"plain{cluster}")
        assert plain.lm_head.weight is plain.model.embed_tokens.weight
        assert _apart(plain, model) < 1e-6
        base = auto.from_pretrained(tmp_path / "m/base_model")
        assert _apart(base, model) > 1e-4
        assert _apart(PeftModel.from_pretrained(base, tmp_path / f"adapter{cluster}").eval(), model) < 1e-6


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_architecture_is_exported_and_compared(name, saved, tmp_path):
    model = ClamuModel.from_pretrained(saved(name), cluster=1)
    model.train()
    model.export(tmp_path / "plain", cluster=2)
    assert (tmp_path / "plain/config.json").exists()
    assert model.training
    assert model.cluster == 1
    # The comparison is made, and sees a difference: a live model that answers otherwise than its weights say.
    head = list(model.modules())[-1] if not hasattr(model, "get_output_embeddings") else model.get_output_embeddings()
    for module in model.modules() if head is None else [head]:
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, output: output * 1.5 + 0.5)
    with pytest.raises(ExactnessError, match="apart from those of the live model"):
        model.export(tmp_path / "other", cluster=2)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize("merge", [True, False])
def test_an_export_that_answers_otherwise_is_removed(merge, tiny, tmp_path):
    model = _build(tiny, tiny.config("text"), {"target_modules": ["c_attn"]})
    model.set_cluster(2)
    handle = model.score.register_forward_hook(lambda module, args, output: output + 0.01)
    with pytest.raises(ExactnessError, match=r"0\.01 apart from those of the live model\. The export was removed"):
        model.export(tmp_path / "x", cluster=1, merge=merge)
    assert list(tmp_path.iterdir()) == []
    assert model.cluster == 2
    handle.remove()
    model.export(tmp_path / "x", cluster=1, merge=merge)


# -- adapters that are trained on top --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [0, None, "base"])
def test_an_adapter_on_top_of_a_cluster_names_no_other_weights(state, saved_text, tmp_path):
    model = ClamuModel.from_pretrained(saved_text)
    model.set_base() if state == "base" else model.set_cluster(state)
    tuned = get_peft_model(
        model, LoraConfig(target_modules=["c_attn"], task_type="SEQ_CLS", init_lora_weights=False, fan_in_fan_out=True)
    )
    expected = tuned.eval()(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(tmp_path / "adapter")
    if state == "base":
        again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
        assert torch.equal(again.eval()(IDS).logits, expected)
    else:
        with pytest.raises(OSError, match="export it and name that folder"):
            AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    # On an export of the cluster it is what it was.
    plain = ClamuModel.from_pretrained(saved_text)
    if state != "base":
        plain.export(tmp_path / "plain", cluster=state)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
        assert torch.equal(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits, expected)


# -- dropout ---------------------------------------------------------------------------------------------------------

OPTIONS = {
    "LoRA": (None, {"target_modules": ["c_attn"], "lora_dropout": 0.5}),
    "LoKr": (BERT, {"peft_type": "LOKR", "target_modules": ["query"], "module_dropout": 0.9, "rank_dropout": 0.5}),
    "LoHa": (BERT, {"peft_type": "LOHA", "target_modules": ["query"], "module_dropout": 0.9}),
}


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
@pytest.mark.parametrize("name", OPTIONS)
def test_dropout_is_off_after_every_way_of_loading(name, merging, tiny, tmp_path):
    base, options = OPTIONS[name]
    if merging == "frozen_a" and "peft_type" in options:
        merging = None
    built = _build(tiny, base or tiny.config("text"), options, merging=merging, localization="emr")
    built.save_pretrained(tmp_path / "m")
    tasks = tiny.tasks("text")

    def loaded():
        return ClamuModel.from_pretrained(tmp_path / "m")

    ways = {
        "built": lambda: built,
        "loaded": loaded,
        "Auto class": lambda: transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m"),
        "cluster": lambda: ClamuModel.from_pretrained(tmp_path / "m", cluster=1),
        "type": lambda: ClamuModel.from_pretrained(tmp_path / "m", dtype="bfloat16"),
        "pipeline": lambda: transformers.pipeline("text-classification", str(tmp_path / "m"), device="cpu").model,
        "unmerged": lambda: loaded().unmerge_task("user_1", data=tasks),
        "unmerged in training": lambda: loaded().train().unmerge_task("user_1", data=tasks),
        "saved": lambda: [model := loaded(), model.save_pretrained(tmp_path / "n")][0],
        "exported": lambda: [model := loaded(), model.export(tmp_path / "x")][0],
    }
    for way, load in ways.items():
        model = load()
        assert [part for part, module in model.named_modules() if module.training] == [], way
        with torch.no_grad():
            answers = [model(IDS).logits for _ in range(3)]
        assert all(torch.equal(answer, answers[0]) for answer in answers), way
