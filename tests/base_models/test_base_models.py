"""Base models from a configuration, a folder, memory and the Hub's cache; fresh heads; wrong bases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClamuTrainer, IncompatibleBaseError, RecipeError
from hf_clamu.base_models.config import refuse_misspelt
from hf_clamu.base_models.identity import base_digest
from hf_clamu.base_models.loading import load_base
from hf_clamu.tasks import TaskDataset

TESTS = Path(__file__).parents[1]


@pytest.fixture
def plain(tiny, tmp_path):
    """The folder of a language model: a base without a classification head."""
    values = tiny.config("text")
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    tiny.processor("text").save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_configuration_gives_the_same_base_again(tiny, tmp_path):
    for name, noise in (("a", 1), ("b", 2)):
        torch.rand(noise)
        tiny.train("text").save_pretrained(tmp_path / name)
    assert tiny.digests(tmp_path / "a") == tiny.digests(tmp_path / "b")
    tiny.train("text", seed=1).save_pretrained(tmp_path / "c")
    assert (
        tiny.digests(tmp_path / "a")["base_model/model.safetensors"]
        != tiny.digests(tmp_path / "c")["base_model/model.safetensors"]
    )


_SCRIPT = """
import sys
import torch
from conftest import Tiny
from hf_clamu import ClamuModel

torch.rand(int(sys.argv[3]))
model = Tiny.train("text", base=sys.argv[1])
model.save_pretrained(sys.argv[2])
"""


def _processes(commands, **environment):
    # Two at a time, each with an order of sets of its own.
    running = []
    for number, command in enumerate(commands):
        values = {**os.environ, "PYTHONHASHSEED": str(number + 3), **environment}
        values["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        running.append(
            subprocess.Popen([sys.executable, "-c", *command], env=values, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, problems = process.communicate(timeout=300)
        assert process.returncode == 0, problems


def test_a_folder_without_the_head_gets_the_same_one_in_every_process(tiny, plain, tmp_path):
    _processes([[_SCRIPT, str(plain), str(tmp_path / name), number] for name, number in (("a", "1"), ("b", "2"))])
    first = tiny.digests(tmp_path / "a")
    assert tiny.digests(tmp_path / "b") == first
    model = tiny.train("text", base=plain)
    model.save_pretrained(tmp_path / "c")
    assert tiny.digests(tmp_path / "c") == first
    assert str(plain).encode() not in (tmp_path / "c/config.json").read_bytes()
    base = load_file(tmp_path / "c/base_model/model.safetensors")
    assert base["score.weight"].shape == (3, 16)
    given = load_file(plain / "model.safetensors")
    assert len(given) > 10
    for name, weight in given.items():
        assert torch.equal(base[name], weight)
    loaded = ClamuModel.from_pretrained(tmp_path / "c").unmerge_task("user_1", data=tiny.tasks("text"))
    loaded.save_pretrained(tmp_path / "d")
    tiny.train("text", tiny.tasks("text").without("user_1"), base=plain).save_pretrained(tmp_path / "e")
    assert tiny.digests(tmp_path / "d") == tiny.digests(tmp_path / "e")


_HUB_SCRIPT = """
import sys
import torch
from conftest import Tiny
from hf_clamu import ClamuModel

job, target, folder = sys.argv[1:]
if job == "build":
    Tiny.train("text", base="org/base").save_pretrained(target)
    Tiny.train("text", Tiny.tasks("text").without("user_1"), base="org/base").save_pretrained(target + "-without")
else:
    torch.rand(5)
    model = ClamuModel.from_pretrained(folder)
    model.unmerge_task("user_1", data=Tiny.tasks("text")).save_pretrained(target)
"""


def test_a_base_from_the_hub_is_a_reference(tiny, plain, tmp_path):
    # What a download leaves behind, and no network.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub/models--org--base"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit, encoding="utf-8")
    (repo / "snapshots").mkdir()
    plain.rename(repo / "snapshots" / commit)
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    built, unmerged = tmp_path / "built", tmp_path / "unmerged"
    _processes([[_HUB_SCRIPT, "build", str(built), ""]], **offline)
    _processes([[_HUB_SCRIPT, "unmerge", str(unmerged), str(built)]], **offline)
    assert tiny.digests(unmerged) == tiny.digests(tmp_path / "built-without")
    config = json.loads((built / "config.json").read_bytes())
    assert config["base_model"].pop("digest")
    reference = {"name_or_path": "org/base", "revision": commit, "embedded": False, "dtype": "float32"}
    assert config["base_model"] == reference
    assert not (built / "base_model").exists()
    assert list(load_file(built / "base_init.safetensors")) == ["score.weight"]
    assert "base_model: org/base" in (built / "README.md").read_text(encoding="utf-8")
    mask = json.loads((built / "masks/cluster_000/adapter_config.json").read_bytes())
    assert (mask["base_model_name_or_path"], mask["revision"]) == ("org/base", commit)
    # Another base under the recorded name and revision.
    path = repo / "snapshots" / commit / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AssertionError, match=r"IncompatibleBaseError(.|\n)*its digest differs"):
        _processes([[_HUB_SCRIPT, "unmerge", str(tmp_path / "x"), str(built)]], **offline)
    assert not (tmp_path / "x").exists()


def test_a_model_in_memory_is_not_changed(tiny, plain, tmp_path):
    labels = {"num_labels": 3, "pad_token_id": 0}
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        plain, **labels, id2label=dict(enumerate(("bad", "good", "mixed")))
    )
    base.train()
    base.score.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = base.config.to_dict()
    model = tiny.train("text", base=base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert base.config.to_dict() == config
    assert base.training
    assert not base.score.weight.requires_grad
    assert type(base) is transformers.GPT2ForSequenceClassification
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), base.parameters(), strict=True))
    # Frozen by the caller: it takes no part.
    assert "score.weight" not in model.ledger["parameters"]
    model.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m")["base_model/model.safetensors"]
    assert torch.equal(load_file(tmp_path / "m/base_model/model.safetensors")["score.weight"], before["score.weight"])


def test_a_frozen_base_is_unmerged_exactly(tiny, plain, tmp_path):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(plain, num_labels=3)
    base.transformer.wte.weight.requires_grad_(False)
    model = tiny.train("text", base=base)
    model.save_pretrained(tmp_path / "m")
    loaded = ClamuModel.from_pretrained(tmp_path / "m")
    loaded.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(tmp_path / "ours")
    model.unmerge_task("user_1").save_pretrained(tmp_path / "memory")
    tiny.train("text", tiny.tasks("text").without("user_1"), base=base).save_pretrained(tmp_path / "fresh")
    assert tiny.digests(tmp_path / "memory") == tiny.digests(tmp_path / "fresh")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "fresh")


_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# Padding is another token for each of them than for the tokenizer, whose 256 is also the end of a text.
_PADDED = {
    "bert": {"model_type": "bert", **_SMALL, "vocab_size": 257},
    "roberta": {"model_type": "roberta", **_SMALL, "vocab_size": 257, "max_position_embeddings": 400},
    "llama": {"model_type": "llama", **_SMALL, "vocab_size": 257, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module")
def padded_tasks(tiny):
    """Texts that hold the padding tokens of tokenizer and bases: whether their embeddings learn shows in the bits."""
    rows = tiny.rows("text")
    rows["text"] = [f'<|endoftext|>{text} !"' for text in rows["text"]]
    columns = {"task_column": "user", "text_column": "text", "label_column": "label"}
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns, validation_fraction=0.3)


def _unmerged_is_built_without(tiny, model, base, tasks, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = ClamuModel.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[256, 5, 9, 3]])
    with torch.no_grad():
        # Not bit for bit: memory of a file may be aligned differently.
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-6)
    loaded.unmerge_task("user_1", data=tasks).save_pretrained(tmp_path / "loaded")
    model.unmerge_task("user_1").save_pretrained(tmp_path / "memory")
    tiny.train("text", tasks.without("user_1"), base=base).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "loaded") == tiny.digests(tmp_path / "without")
    assert tiny.digests(tmp_path / "memory") == tiny.digests(tmp_path / "without")


@pytest.mark.parametrize("name", _PADDED)
def test_the_padding_token_is_settled_before_the_base_is_made(tiny, padded_tasks, name, tmp_path):
    model = tiny.train("text", padded_tasks, base=_PADDED[name])
    assert model.config.pad_token_id == 256
    _unmerged_is_built_without(tiny, model, _PADDED[name], padded_tasks, tmp_path)


def test_a_folder_gets_the_padding_token_of_the_tokenizer(tiny, padded_tasks, tmp_path):
    config = transformers.BertConfig(**{key: value for key, value in _PADDED["bert"].items() if key != "model_type"})
    transformers.BertModel(config).save_pretrained(tmp_path / "plain")
    model = tiny.train("text", padded_tasks, base=tmp_path / "plain")
    assert model.get_input_embeddings().padding_idx == 256
    _unmerged_is_built_without(tiny, model, tmp_path / "plain", padded_tasks, tmp_path)


def test_what_was_set_on_a_model_in_memory_is_settled(tiny, padded_tasks, tmp_path):
    settings = {key: value for key, value in _PADDED["llama"].items() if key != "model_type"}
    config = transformers.LlamaConfig(**settings, num_labels=3, attn_implementation="eager")
    base = transformers.LlamaForSequenceClassification(config)
    base.config.pad_token_id = 256
    base.register_forward_pre_hook(lambda *_: pytest.fail("a hook of the caller's model"))
    assert base.model.embed_tokens.padding_idx is None
    model = tiny.train("text", padded_tasks, base=base)
    assert model.model.embed_tokens.padding_idx == 256
    _unmerged_is_built_without(tiny, model, base, padded_tasks, tmp_path)


def test_a_model_in_memory_that_no_file_can_hold_is_refused(tiny):
    base = transformers.AutoModelForSequenceClassification.from_config(
        transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=257, num_labels=3)
    )
    base.transformer.extra = torch.nn.Linear(2, 2)
    with pytest.raises(IncompatibleBaseError, match=r"do not fit its own configuration.*transformer\.extra"):
        tiny.train("text", base=base)


def test_a_padding_token_without_an_embedding_is_refused(tiny):
    base = {**_PADDED["roberta"], "max_position_embeddings": 48}
    with pytest.raises(IncompatibleBaseError, match="cannot be made with the tokenizer's padding token 256"):
        tiny.train("text", base=base)


def test_the_digest_of_a_base_sees_every_weight(plain):
    base = transformers.AutoModelForCausalLM.from_pretrained(plain)
    before = base_digest(base)
    for name, parameter in base.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.view(-1)[-1] += 1
            assert base_digest(base) != before, name
            parameter.copy_(kept)
    assert base_digest(base) == before


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ({"model_type": "gtp2"}, RecipeError, "Did you mean 'gpt2'"),
        ({"n_layer": 1}, RecipeError, "got None"),
        ({"model_type": "gpt2", "n_layers": 1}, RecipeError, "unknown key 'n_layers'.* Did you mean 'n_layer'"),
        ({"model_type": "gpt2", "num_layers": 1}, RecipeError, "Did you mean 'n_layer'"),
        ({"model_type": "bert", "num_hidden_layer": 1}, RecipeError, "Did you mean 'num_hidden_layers'"),
        ({"model_type": "gpt2", "n_layer": 10**9}, RecipeError, "n_layer may be 10,000 at most, got 1000000000"),
        ({"model_type": "bert", "num_hidden_layers": 10**6}, RecipeError, "num_hidden_layers may be"),
        ({"model_type": "gpt2", "n_embd": 10**100, "n_head": 1}, RecipeError, "n_embd may be"),
        ({"model_type": "gpt2", "n_embd": -16}, RecipeError, "gpt2 that transformers does not make"),
        ({"model_type": "gpt2", "n_embd": 32, "n_head": 5}, RecipeError, "gpt2 that transformers does not make"),
        ({"model_type": "gpt2", "vocab_size": 2**39}, RecipeError, "gpt2 that transformers does not make"),
        ({"model_type": "vit", "hiden_size": 1}, RecipeError, "Did you mean 'hidden_size'"),
        ("does/not/exist", IncompatibleBaseError, "could not be loaded"),
    ],
)
def test_wrong_bases(tiny, base, error, message):
    with pytest.raises(error, match=message):
        tiny.train("text", base=base)


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "llama", "t5", "bart", "vit", "recurrent_gemma"])
def test_generic_and_older_keys_of_a_configuration_pass(model_type):
    values = transformers.AutoConfig.for_model(model_type).to_dict()
    older = {"torch_dtype": "float32", "position_embedding_type": "absolute", "gradient_checkpointing": False}
    older |= {"sep_token_id": 2, "rope_theta": 1e4, "static_position_embeddings": False, "temperature": 1.0}
    generic = {"max_length": 20, "tie_word_embeddings": True, "attn_implementation": "eager", "use_return_dict": True}
    kind = transformers.CONFIG_MAPPING[model_type]
    refuse_misspelt(kind, {**values, **older, **generic, **dict.fromkeys(kind.attribute_map)})


def test_a_folder_without_a_model(tiny, tmp_path):
    with pytest.raises(IncompatibleBaseError, match="could not be loaded"):
        tiny.train("text", base=tmp_path)


def test_a_model_with_another_head(tiny, plain):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(plain, num_labels=7)
    with pytest.raises(IncompatibleBaseError, match=r"has 7 labels, but the tasks have 3 \(bad, good, mixed\)"):
        tiny.train("text", base=base)


def test_text_without_a_tokenizer(tiny):
    spec = tiny.tasks("text").spec
    with pytest.raises(
        IncompatibleBaseError, match=r"without a tokenizer.*processing_class= \(in a recipe: tokenizer\)"
    ):
        load_base(tiny.config("text"), spec, num_labels=3)


def test_tasks_of_another_type():
    with pytest.raises(RecipeError, match=r"got list; make one with TaskDataset.from_dataset"):
        ClamuTrainer({"model_type": "gpt2"}, [])
