"""What loads plain checkpoints refuses a saved model: it would take the integers of the merged delta for weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from hub_double import HubDouble

# Without an import of hf_clamu: what a colleague does who has the folder alone.
_ELSEWHERE = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers
from peft import PeftModel

folder, plain = sys.argv[1], json.loads(sys.argv[2])
architecture = getattr(transformers, plain["architectures"][0])
config = architecture.config_class(**plain)


def said(load):
    try:
        return f"loaded {type(load())}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


ways = {
    "concrete": lambda: architecture.from_pretrained(folder),
    "float32": lambda: architecture.from_pretrained(folder, dtype=torch.float32),
    "auto": lambda: architecture.from_pretrained(folder, dtype="auto"),
    "half": lambda: architecture.from_pretrained(folder, torch_dtype="bfloat16"),
    "safetensors": lambda: architecture.from_pretrained(folder, use_safetensors=True),
    "labels": lambda: architecture.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True),
    "own config": lambda: architecture.from_pretrained(folder, config=config, dtype=torch.float32),
    "without a head": lambda: architecture.base_model_prefix and getattr(
        transformers, type(architecture(config).base_model).__name__
    ).from_pretrained(folder),
    "AutoModel": lambda: transformers.AutoModel.from_pretrained(folder),
    "PEFT": lambda: PeftModel.from_pretrained(architecture(config), f"{folder}/masks/cluster_000"),
}
found = {name: said(load) for name, load in ways.items()}
assert "hf_clamu" not in sys.modules
print(json.dumps(found))
"""


def _elsewhere(folder):
    config = json.loads((folder / "config.json").read_bytes())["base_config"]
    del config["transformers_weights"]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(folder), json.dumps(config)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """The folder of a model that was finetuned through LoRA; the delta is of the adapter's weights."""
    from hf_clamu import ClamuTrainer

    folder = tmp_path_factory.mktemp("lora") / "model"
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = ClamuTrainer(tiny.config("image"), tiny.tasks("image"), tiny.arguments(), peft_config=adapter)
    trainer.train().save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "bert", "vit", "lora"])
def name(request):
    return request.param


@pytest.fixture
def folder(name, saved, lora):
    return lora if name == "lora" else saved(name)


def test_nothing_loads_it_without_hf_clamu(folder):
    found = _elsewhere(folder)
    for name in ("concrete", "float32", "auto", "half", "safetensors", "labels", "without a head"):
        assert found[name].startswith("ValueError"), found[name]
        assert "load it with hf_clamu.ClamuModel.from_pretrained" in found[name]
        assert "`clamu export` makes a plain checkpoint" in found[name]
    assert found["own config"].startswith("OSError: Error no file named model.safetensors")
    assert found["AutoModel"].startswith("ValueError: The checkpoint you are trying to load has model type `clamu`")
    assert found["PEFT"] == "KeyError: 'CLAMU_MASK'"
    # What the two have to go by.
    assert "import hf_clamu" in json.loads((folder / "config.json").read_bytes())["transformers_weights"]
    adapter = json.loads((folder / "masks/cluster_000/adapter_config.json").read_bytes())
    assert adapter["requires_import"] == "hf_clamu"


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"dtype": "auto"}, {"dtype": torch.bfloat16}])
def test_a_class_of_transformers_says_what_to_do(folder, options):
    architecture = json.loads((folder / "config.json").read_bytes())["architecture"]
    with pytest.raises(ValueError, match=r"load it with hf_clamu\.ClamuModel\.from_pretrained"):
        getattr(transformers, architecture).from_pretrained(folder, **options)


def test_a_class_of_another_architecture_says_it_too(saved):
    with pytest.raises(ValueError, match=r"load it with hf_clamu\.ClamuModel\.from_pretrained"):
        transformers.BertModel.from_pretrained(saved("vit"))


def test_the_base_model_inside_loads(saved, references):
    model = transformers.ViTForImageClassification.from_pretrained(saved("vit"), subfolder="base_model")
    for name, weights in model.named_parameters():
        assert torch.equal(weights.detach().view(torch.int32), references("vit")[None][name])


_BASE_INSIDE = """
import json, sys
import hf_clamu, peft, transformers

found = []
for auto in (peft.AutoPeftModel, peft.AutoPeftModelForSequenceClassification, transformers.AutoModel):
    try:
        auto.from_pretrained(sys.argv[1])
    except OSError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_auto_classes_ask_nobody_for_a_base_model_inside(saved):
    """They take the adapter's entry for a name; of null they made six requests for a repository `None`."""
    given = os.environ | {"HF_HUB_OFFLINE": "0"} | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
    with HubDouble() as hub:
        found = subprocess.run(
            [sys.executable, "-c", _BASE_INSIDE, str(saved("bert") / "masks/cluster_000")],
            env={**given, "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            check=True,
        )
        assert hub.requests == []
    messages = json.loads(found.stdout)
    assert len(messages) == 3
    assert all("load it from there and give it to PeftModel" in message for message in messages)
