"""QLoRA: adapters on a frozen base in 4 or 8 bits, where what is left of a build is that of a build without a task."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import bitsandbytes
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, IncompatibleBaseError, RecipeError
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import base_digest, base_weights
from hf_clamu.base_models.loading import load_base
from hf_clamu.base_models.quantization.modules import quantized_layers
from hf_clamu.base_models.quantization.scales import quantize_scales
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.cli import main
from hf_clamu.errors import ExactnessError
from hf_clamu.planning import estimate_build
from hf_clamu.recipe import Recipe
from hf_clamu.training import silent_progress
from hf_clamu.training.outside import Outside

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTIZATIONS = {
    "nf4": NF4,
    "nf4-double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "down_proj"]}
IDS = torch.tensor([[72, 105, 33, 9], [7, 1, 44, 250]])
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 96, "vocab_size": 257, "attention_bias": True, "tie_word_embeddings": False}
LLAMA |= {"bos_token_id": 256, "eos_token_id": 256, "max_position_embeddings": 64}


def _saved_base(folder, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
        for parameter in base.parameters():
            parameter.data.normal_(std=0.2)
    base.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a base model with whole weights."""
    return _saved_base(tmp_path_factory.mktemp("base") / "llama", LLAMA)


@pytest.fixture(scope="module")
def built(tiny, base, tmp_path_factory):
    """Gives a merged model that is not to be changed, and its folder."""
    found = {}

    def model_of(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("built") / "m"
            model = _trainer(tiny, base, QUANTIZATIONS[name]).train()
            model.save_pretrained(folder)
            found[name] = (model, folder)
        return found[name]

    return model_of


def _trainer(tiny, base, quantization, kind="lm", tasks=None, trainer=None, **changes):
    options = {"peft_config": LORA, "quantization_config": quantization, **(trainer or {})}
    return ClamuTrainer(
        base,
        tiny.tasks(kind) if tasks is None else tasks,
        tiny.arguments(**changes),
        processing_class=tiny.processor(kind),
        progress=silent_progress,
        **options,
    )


def _forgotten_and_without(tiny, base, quantization, folder, **options):
    """Save a build after a task was forgotten, and a build without it; return the model that forgot."""
    kind = options.get("kind", "lm")
    tasks = tiny.tasks(kind)
    gone = tasks.task_ids[1]
    _trainer(tiny, base, quantization, **options).train().save_pretrained(folder / "m")
    without = tasks.without(gone)
    _trainer(tiny, base, quantization, tasks=without, **options).train().save_pretrained(folder / "expected")
    model = ClamuModel.from_pretrained(folder / "m").unmerge_task(gone, data=tasks)
    model.save_pretrained(folder / "m")
    return model


@pytest.mark.matrix("quantized", row="{name}", column="unmerge")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_forgetting_is_exact(name, tiny, base, tmp_path):
    model = _forgotten_and_without(tiny, base, QUANTIZATIONS[name], tmp_path)
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")
    assert model.verify(data=tiny.tasks("lm").without(tiny.tasks("lm").task_ids[1]))
    weights = load_file(tmp_path / "m/base_model/model.safetensors")
    whole = load_file(base / "model.safetensors")
    kind = torch.int8 if name == "int8" else torch.uint8
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == kind
    assert weights["lm_head.weight"].equal(whole["lm_head.weight"])
    recorded = json.loads((tmp_path / "m/config.json").read_bytes())
    assert "quantization_config" not in recorded["base_model"]
    assert recorded["base_config"]["quantization_config"] == Quantization.of(QUANTIZATIONS[name]).to_dict()
    environment = json.loads((tmp_path / "m/ledger.json").read_bytes())["environment"]
    assert environment["libraries"]["bitsandbytes"]


GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 48}
GPT2 |= {"bos_token_id": 256, "eos_token_id": 256, "vocab_size": 257}
CASES = {
    "bfloat16": ({**NF4, "bnb_4bit_compute_dtype": "bfloat16"}, {"trainer": {"dtype": "bfloat16"}}),
    "autocast": ({**NF4, "bnb_4bit_compute_dtype": "bfloat16"}, {"bf16": True}),
    "int8-bfloat16": ({"load_in_8bit": True, "llm_int8_threshold": 1.0}, {"trainer": {"dtype": "bfloat16"}}),
    "parameters": (NF4, {"trainer": {"peft_merging": "parameters"}}),
    "scores": (QUANTIZATIONS["nf4-double"], {"localization": "tall", "scaling": "auto"}),
    "classifier": (NF4, {"kind": "text"}),
    "skipped": ({**NF4, "llm_int8_skip_modules": ["down_proj", "lm_head"]}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_forgetting_is_exact_with_other_settings(name, tiny, base, tmp_path):
    quantization, options = CASES[name]
    _forgotten_and_without(tiny, base, quantization, tmp_path, **options)
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")


def test_a_task_that_comes_back_is_as_it_was(tiny, built, tmp_path):
    _, folder = built("nf4-double")
    tasks = tiny.tasks("lm")
    gone = tasks.task_ids[2]
    model = ClamuModel.from_pretrained(folder).unmerge_task(gone, data=tasks)
    model.add_task(tasks.select([gone]), data=tasks.without(gone)).save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(folder)


def test_a_reader_is_told(tiny, built, capsys):
    _, folder = built("int8")
    assert main(["info", str(folder)]) == 0
    assert "base (inside, base_model/), in 8 bits" in capsys.readouterr().out
    assert "frozen, its linear layers in 8 bits (bitsandbytes)" in (folder / "README.md").read_text(encoding="utf-8")


def test_forgetting_is_exact_with_the_preset(tiny, base, tmp_path):
    tasks = tiny.tasks("lm")
    gone = tasks.task_ids[1]
    arguments = ClamuArguments(preset="adapters", finetune_steps=3, mask_steps=3, batch_size=3, num_threads=1)

    def trained(some):
        options = {"processing_class": tiny.processor("lm"), "progress": silent_progress}
        return ClamuTrainer(base, some, arguments, quantization_config=NF4, **options).train()

    trained(tasks).unmerge_task(gone).save_pretrained(tmp_path / "m")
    trained(tasks.without(gone)).save_pretrained(tmp_path / "expected")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_transposed_layers_are_quantised(name, tiny, tmp_path):
    _saved_base(tmp_path / "base", GPT2)
    adapter = {"trainer": {"peft_config": {**LORA, "target_modules": ["c_attn", "c_proj"]}}}
    _forgotten_and_without(tiny, tmp_path / "base", QUANTIZATIONS[name], tmp_path, **adapter)
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")


ELSEWHERE = """
import json, sys
import torch
from hf_clamu import ClamuModel
from safetensors.torch import save_file
folder, ids, target = sys.argv[1], torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
model = ClamuModel.from_pretrained(folder)
found = {}
with torch.no_grad():
    for number in range(len(model.clusters)):
        model.set_cluster(number)
        found[str(number)] = model(ids).logits.contiguous()
save_file(found, target)
"""


@pytest.mark.matrix("quantized", row="{name}", column="process")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_another_process_serves_the_same(name, built, tmp_path):
    model, folder = built(name)
    command = [sys.executable, "-c", ELSEWHERE, folder, json.dumps(IDS.tolist()), tmp_path / "logits"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = load_file(tmp_path / "logits")
    answers = set()
    for number in range(len(model.clusters)):
        with torch.no_grad(), model.serving(number):
            logits = model(IDS).logits
        assert torch.equal(elsewhere[str(number)], logits)
        answers.add(logits.numpy().tobytes())
    assert len(answers) == len(model.clusters) > 1


@pytest.mark.matrix("quantized", row="{name}", column="stored")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantised_files_are_a_base_as_well(name, tiny, base, built, tmp_path):
    """The same model follows from whole weights that are quantised here and from files that were quantised before."""
    if name == "nf4-double":  # transformers' own scales follow the number of threads
        shutil.copytree(built(name)[1] / "base_model", tmp_path / "stored")
    else:
        settings = Quantization.of(QUANTIZATIONS[name]).transformers_config()
        # As here: a GPU rounds one integer in many thousands to the next one.
        options = {"quantization_config": settings, "device_map": {"": "cpu"}}
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, **options)
        plain.__dict__.pop("hf_device_map", None)
        plain.save_pretrained(tmp_path / "stored")
    _trainer(tiny, tmp_path / "stored", None).train().save_pretrained(tmp_path / "before")
    assert tiny.digests(built(name)[1]) == tiny.digests(tmp_path / "before")
    with pytest.raises(IncompatibleBaseError, match="quantised already"):
        _trainer(tiny, tmp_path / "stored", QUANTIZATIONS[name]).train()
    with pytest.raises(IncompatibleBaseError, match=r"is quantised .*finetune through LoRA"):
        _trainer(tiny, tmp_path / "stored", None, trainer={"peft_config": None}).train()


# -- identity --------------------------------------------------------------------------------------------------------


def _loaded(tiny, base, quantization):
    space = PeftSpace.of(LORA)
    return load_base(
        str(base),
        tiny.tasks("lm").spec,
        num_labels=None,
        processor=tiny.processor("lm"),
        space=space,
        quantization=Quantization.of(quantization),
    )


def test_the_digest_covers_every_option(tiny, base):
    given = [
        *QUANTIZATIONS.values(),
        {**NF4, "bnb_4bit_quant_type": "fp4"},
        {**NF4, "bnb_4bit_compute_dtype": "bfloat16"},
        {**NF4, "llm_int8_skip_modules": ["lm_head", "q_proj"]},
        {"load_in_8bit": True, "llm_int8_threshold": 5},
    ]
    digests = [_loaded(tiny, base, one).digest for one in given]
    assert len(set(digests)) == len(given)
    # Written in another way, they are the same.
    said = {**NF4, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_storage": "uint8", "load_in_8bit": False}
    assert _loaded(tiny, base, said).digest == digests[0]
    assert _loaded(tiny, base, transformers.BitsAndBytesConfig(**NF4)).digest == digests[0]


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_digest_covers_every_stored_byte(name, tiny, base):
    found = _loaded(tiny, base, QUANTIZATIONS[name])
    weights = base_weights(found.model, frozenset(found.fresh))
    assert base_digest(found.model, frozenset(found.fresh)) == found.digest
    stored = found.model.state_dict()
    assert {one.replace(".base_layer.", ".") for one in stored} - set(found.fresh) <= {*weights}
    module = "model.layers.1.mlp.down_proj"
    own = {one.removeprefix(f"{module}.") for one in weights if one.startswith(f"{module}.")}
    scales = {"nf4": {"weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"}, "int8": {"SCB"}}
    scales["nf4-double"] = {*scales["nf4"], "weight.nested_absmax", "weight.nested_quant_map"}
    assert {"weight", *scales[name]} <= own


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_answers_and_training_leave_the_stored_bytes_alone(name, built):
    model, _ = built(name)
    recorded = model.clamu_config.base_model["digest"]
    adapter = frozenset(model.merged.checkpoint.fresh)
    with model.held():
        model.set_base()
        assert base_digest(model, adapter) == recorded
        with torch.no_grad():
            model.eval()(IDS)
        assert base_digest(model, adapter) == recorded
    # On processors with bfloat16 products, an evaluation would pack the weights otherwise and round their scales.
    if name != "int8":
        assert not any(layer.support_avx512bf16_for_cpu for layer in quantized_layers(model).values())


@pytest.mark.matrix("quantized", row="{name}", column="refused")
@pytest.mark.parametrize("part", ["weight", "scale", "option"])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_another_base_is_refused(name, part, tiny, built, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(built(name)[1], folder)
    path, module = folder / "base_model/model.safetensors", "model.layers.1.mlp.up_proj"
    if part == "option":
        for one in (folder / "config.json", folder / "base_model/config.json"):
            values = json.loads(one.read_bytes())
            settings = values.get("base_config", values)["quantization_config"]
            if name == "int8":
                settings["llm_int8_threshold"] = 5.0
            else:
                settings["bnb_4bit_compute_dtype"] = "bfloat16"
            one.write_text(json.dumps(values), encoding="utf-8")
    else:
        weights = load_file(path)
        scale = "SCB" if name == "int8" else "weight.absmax"
        changed = weights[f"{module}.{'weight' if part == 'weight' else scale}"].view(torch.uint8).view(-1)
        changed[3] ^= 1
        save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    with pytest.raises(IncompatibleBaseError, match="has other weights"):
        ClamuModel.from_pretrained(folder)


def test_double_quantisation_follows_no_number_of_threads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torch.randn(3072, 1024)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            weight = bitsandbytes.nn.Params4bit(whole, quant_type="nf4", compress_statistics=False).to("cpu")
            scales = weight.quant_state.absmax
            quantize_scales(weight)
            found.append(weight.quant_state.as_dict(packed=True))
    finally:
        torch.set_num_threads(before)
    assert scales.numel() > 32768  # torch adds up fewer in one thread
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[key], found[0][key]) for key in other)
    restored = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    weight.quant_state.absmax, weight.quant_state.nested = scales, False
    single = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert 0 < (restored - single).abs().max() < 0.02 * single.abs().max()


def test_training_that_changes_a_scale_is_noticed(tiny, base):
    found = _loaded(tiny, base, NF4).model
    outside = Outside(found, [])
    outside.check()
    layer = next(iter(quantized_layers(found).values()))
    layer.weight.quant_state.absmax[0] += 1
    with pytest.raises(ExactnessError, match=r"weight\.absmax"):
        outside.check()


# -- what leaves -----------------------------------------------------------------------------------------------------

ALONE = """
import json, sys
import torch, transformers
from peft import PeftModel
from safetensors.torch import save_file
folder, base, settings, ids = sys.argv[1:5]
routes = json.load(open(f"{folder}/routes.json"))
again = {"quantization_config": transformers.BitsAndBytesConfig(**json.loads(settings))}
for number, (name, options) in enumerate({f"{folder}/{routes['base_model']}": {}, base: again}.items()):
    found = {}
    for cluster, own in routes["adapters"].items():
        plain = transformers.AutoModelForCausalLM.from_pretrained(name, device_map={"": "cpu"}, **options)
        model = PeftModel.from_pretrained(plain, f"{folder}/{own}").eval()
        with torch.no_grad():
            found[cluster] = model(torch.tensor(json.loads(ids))).logits.contiguous()
    save_file(found, f"{folder}/{number}.safetensors")
assert "hf_clamu" not in sys.modules
"""


@pytest.mark.matrix("quantized", row="{name}", column="peft")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_peft_alone_answers_with_the_adapters(name, base, built, tmp_path):
    """On the base model that was exported with them, and on the one that transformers quantises."""
    model, _ = built(name)
    model.export_adapters(tmp_path / "out", format="lora")
    given = [tmp_path / "out", base, json.dumps(QUANTIZATIONS[name]), json.dumps(IDS.tolist())]
    command = [sys.executable, "-c", ALONE, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packs = name != "int8" and bitsandbytes.functional.has_avx512bf16()  # transformers' own model computes otherwise
    for number in (0, 1):
        # Scales that transformers quantises follow the number of threads.
        nearly = packs or (name == "nf4-double" and number == 1)
        alone = load_file(tmp_path / f"out/{number}.safetensors")
        for cluster in (None, *range(len(model.clusters))):
            with torch.no_grad(), model.serving(cluster):
                live = model.eval()(IDS).logits
            logits = alone[_name(model, cluster)]
            if nearly:
                assert (logits - live).abs().max() < (0.05 if packs else 1e-3) * live.abs().max()
            else:
                assert torch.equal(logits, live)


def _name(model, cluster):
    return "global" if cluster is None else model.cluster_names[cluster]


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_an_adapter_is_not_merged_into_few_bits(name, built, tmp_path):
    model, _ = built(name)
    with pytest.raises(RecipeError, match=r"stored in \d bits.*merge=False"):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.export(tmp_path / "out", cluster=1, merge=False)
    assert (tmp_path / "out/adapter_config.json").exists()


def test_it_is_served_in_the_type_of_the_build(built):
    _, folder = built("nf4")
    assert ClamuModel.from_pretrained(folder, dtype="float32", device_map="cpu").dtype == torch.float32
    with pytest.raises(ValueError, match=r"stored in 4 bits .*Leave dtype out"):
        ClamuModel.from_pretrained(folder, dtype="bfloat16")


# -- before any training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load_in_4bits": True}, "unknown key 'load_in_4bits'. Did you mean 'load_in_4bit'"),
        ({"bnb_4bit_quant_type": "nf4"}, "needs one of load_in_4bit: true and load_in_8bit: true"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "needs one of"),
        ({"load_in_4bit": "yes"}, "needs one of"),
        ({**NF4, "bnb_4bit_quant_type": "nf3"}, "must be one of fp4, nf4, got 'nf3'"),
        ({**NF4, "bnb_4bit_compute_dtype": "int8"}, "bnb_4bit_compute_dtype must be one of"),
        ({**NF4, "bnb_4bit_use_double_quant": "no"}, "bnb_4bit_use_double_quant must be true or false"),
        ({**NF4, "bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage must be 'uint8'"),
        ({**NF4, "llm_int8_skip_modules": [3]}, "must be a list of module names"),
        ({**NF4, "llm_int8_skip_modules": "lm_head"}, "must be a list of module names"),
        ({"load_in_8bit": True, "llm_int8_threshold": "six"}, "must be a number from 0 on"),
        ({"load_in_8bit": True, "llm_int8_threshold": float("inf")}, "must be a number from 0 on"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight must be False"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method is 'gptq', and bitsandbytes alone is covered"),
        ("nf4", "must be a mapping such as"),
        ({}, "must be a mapping such as"),
    ],
)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        Quantization.of(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer": {"peft_config": None}}, "but all weights are finetuned. Choose preset: adapters"),
        ({"trainer": {"peft_merging": "product"}}, "peft_merging='product' adds to the weights"),
        ({"trainer": {"peft_config": {"peft_type": "LOHA", "r": 2}}}, "but the adapter is LOHA"),
        ({"portable": True}, "portable=True holds the kernels"),
    ],
)
def test_only_lora_inside_the_model_goes_with_it(options, message, tiny, base):
    with pytest.raises(RecipeError, match=message):
        _trainer(tiny, base, NF4, **options)


def test_autocast_does_not_go_with_8_bits(tiny, base):
    with pytest.raises(RecipeError, match="Choose dtype: bfloat16"):
        _trainer(tiny, base, QUANTIZATIONS["int8"], bf16=True)


def test_a_base_without_files_is_refused(tiny, base):
    with pytest.raises(RecipeError, match=r"from a folder or the Hub.*is a dict"):
        _trainer(tiny, LLAMA, NF4)
    whole = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(RecipeError, match="this one is a LlamaForCausalLM"):
        _trainer(tiny, whole, NF4)
    settings = transformers.BitsAndBytesConfig(**NF4)
    quantized = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=settings)
    with pytest.raises(IncompatibleBaseError, match="is quantised"):
        _trainer(tiny, quantized, None).train()


def test_a_missing_library_is_named(monkeypatch, tiny, base):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(RecipeError, match=r"not installed. Install it: pip install 'hf-clamu\[quantization\]'"):
        _trainer(tiny, base, NF4)


def test_what_is_trained_as_a_whole_is_not_quantised(tiny, base, tmp_path):
    trained = {"trainer": {"peft_config": {**LORA, "modules_to_save": ["up_proj"]}}}
    with pytest.raises(RecipeError, match=r"Name 'model\.layers\.0\.mlp\.up_proj' in llm_int8_skip_modules"):
        _trainer(tiny, base, NF4, **trained).train()
    kept = {**NF4, "llm_int8_skip_modules": ["up_proj", "lm_head"]}
    _forgotten_and_without(tiny, base, kept, tmp_path, **trained)
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_adapters_from_elsewhere_are_merged_as_they_are(name, tiny, built, tmp_path):
    model, _ = built(name)
    model.export_adapters(tmp_path / "out")
    adapters = {name: tmp_path / f"out/cluster_00{number}" for number, name in enumerate("abc")}
    merged = ClamuModel.merge(str(tmp_path / "out/base_model"), adapters)
    merged.save_pretrained(tmp_path / "m")
    kept = {name: adapters[name] for name in "ac"}
    ClamuModel.merge(str(tmp_path / "out/base_model"), kept).save_pretrained(tmp_path / "expected")
    loaded = ClamuModel.from_pretrained(tmp_path / "m")
    loaded.unmerge_task("b", checkpoints=adapters).save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")
    with pytest.raises(IncompatibleBaseError, match=r"is quantised .* adds to whole weights"):
        ClamuModel.merge(str(tmp_path / "out/base_model"), adapters, peft_merging="product")


# -- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_plan_counts_its_bytes(name, tiny, base, tmp_path):
    Dataset.from_dict(tiny.rows("lm")).to_csv(tmp_path / "rows.csv")
    rows = {"files": "rows.csv", "task_column": "user", "prompt_column": "text", "completion_column": "label"}
    values = {"base_model": str(base), "data": rows, "tokenizer": "bytes", "peft_config": LORA}
    values["arguments"] = {"num_clusters": 3}

    def planned(**more):
        return estimate_build(Recipe.from_dict({**values, **more}, folder=tmp_path), tokens=10)

    less = planned().memory_bytes - planned(quantization_config=QUANTIZATIONS[name]).memory_bytes
    stored = _loaded(tiny, base, QUANTIZATIONS[name])
    names = {one.removesuffix(".base_layer") for one in quantized_layers(stored.model)}
    parts = {
        key: value
        for key, value in base_weights(stored.model).items()
        if key.startswith(tuple(f"{one}." for one in names)) and not key.endswith(("bias", "weight_format"))
    }
    taken = sum(value.nbytes for key, value in parts.items() if "quant_state" not in key and ".lora_" not in key)
    offsets = 4 * len(names) if name == "nf4-double" else 0  # a number of each layer that is in no tensor
    whole = sum(4 * layer.in_features * layer.out_features for layer in quantized_layers(stored.model).values())
    assert less == whole - taken - offsets
