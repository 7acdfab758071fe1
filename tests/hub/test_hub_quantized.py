"""A base model on the Hub that is quantised at each load: nothing of it is saved, and requests load it the same."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from hub_client import ClientError

HERE = "__import__('importlib').import_module('tests.hub.quantized_steps')"
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 64, "vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTIZATIONS = {
    "nf4": NF4,
    "nf4-double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.matrix("quantized", row="{name}", column="hub")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_base_on_the_hub_is_quantised_at_each_load(name, client, tiny, tmp_path):
    quantization = QUANTIZATIONS[name]

    def step(name, *given):
        return client.call(f"{HERE}.{name}", *(one if isinstance(one, dict) else str(one) for one in given))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    base.save_pretrained(tmp_path / "base")
    step("push_base", tmp_path / "base")
    gone = tiny.tasks("lm").task_ids[1]
    step("build", quantization, tmp_path / "m")
    step("build", quantization, tmp_path / "expected", gone)
    recorded = json.loads((tmp_path / "m/config.json").read_bytes())
    assert recorded["base_model"]["quantization_config"].items() >= quantization.items()
    assert "quantization_config" not in recorded["base_config"]
    assert not (tmp_path / "m/base_model").exists()
    step("push", tmp_path / "m")
    assert step("forget", gone, tmp_path / "left") is True
    assert tiny.digests(tmp_path / "left") == tiny.digests(tmp_path / "expected")
    # The base model as it is on the Hub is another one.
    del recorded["base_model"]["quantization_config"]
    (tmp_path / "m/config.json").write_text(json.dumps(recorded), encoding="utf-8")
    tiny.reseal(tmp_path / "m")
    with pytest.raises(ClientError, match="has other weights"):
        step("load", tmp_path / "m")
