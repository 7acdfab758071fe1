"""Adapters that PEFT trained elsewhere: merged as what they change in the weights, or as they are."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuArguments, ClamuModel, IncompatibleBaseError, RecipeError
from hf_clamu.errors import DigestMismatchError, FixedPointOverflowError, TaskDataError
from hf_clamu.exact import FixedPoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]
ARGUMENTS = ClamuArguments(localization="emr", clustering="none")
GPT2 = {
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 16,
    "vocab_size": 31,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 31,
}
BASES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "biased": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True)
    ),
    "classifier": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**GPT2, num_labels=3, pad_token_id=0)
    ),
}
LORA = {"peft_type": "LORA", "r": 3, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "gpt2": ("gpt2", {**LORA, "target_modules": ["c_attn", "c_fc"]}),
    "linear": ("llama", LORA),
    "rslora": ("llama", {**LORA, "use_rslora": True, "lora_alpha": 5}),
    "patterns": ("llama", {**LORA, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"down_proj": 7}}),
    "dora": ("llama", {**LORA, "use_dora": True}),
    "biases": ("biased", {**LORA, "bias": "all"}),
    "bias-of-lora": ("biased", {**LORA, "lora_bias": True}),
    "embedding": ("llama", {**LORA, "target_modules": ["embed_tokens", "v_proj"]}),
    "head": ("classifier", {**LORA, "target_modules": ["c_attn"], "task_type": "SEQ_CLS"}),
    "loha": ("llama", {**LORA, "peft_type": "LOHA"}),
    "lokr": ("llama", {**LORA, "peft_type": "LOKR"}),
    "ia3": ("llama", {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["k_proj", "down_proj"],
                      "feedforward_modules": ["down_proj"]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of base models, by name."""
    root = tmp_path_factory.mktemp("bases")
    for name, make in BASES.items():
        torch.manual_seed(7)
        make().save_pretrained(root / name)
    return root


def _auto(base):
    return getattr(transformers, json.loads((base / "config.json").read_bytes())["architectures"][0])


def _save(base, settings, folder, seed, shares_a=False):
    """Save an adapter as somebody else's training leaves it: every parameter has moved."""
    values = {key: value for key, value in settings.items() if key != "peft_type"}
    torch.manual_seed(1 if shares_a else seed)
    model = get_peft_model(
        _auto(base).from_pretrained(base), PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]](**values)
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not (shares_a and "lora_A" in name):
                parameter.add_(0.02 * torch.randn(parameter.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings, and of a bias that it takes for a shard
        model.save_pretrained(folder)
    return folder


def _adapters(base, settings, root, count=3, **options):
    return {f"t{n:02d}": _save(base, settings, root / f"t{n:02d}", 100 + n, **options) for n in range(count)}


def _dense(base, folder):
    """Weights of the base model with an adapter merged by PEFT, in float64."""
    plain = _auto(base).from_pretrained(base).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False).double().merge_and_unload()
    return {name: one.detach() for name, one in merged.named_parameters()}


def _merge(base, adapters, arguments=ARGUMENTS, **options):
    return ClamuModel.merge(base, adapters, arguments, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_merged_is_the_dense_sum_and_forgetting_is_exact(kind, bases, tmp_path, tiny):
    name, settings = KINDS[kind]
    base, adapters = bases / name, _adapters(bases / name, settings, tmp_path)
    model = _merge(base, adapters, peft_merging="product")
    theta_0 = {key: one.detach().double() for key, one in _auto(base).from_pretrained(base).named_parameters()}
    vectors = [{key: one - theta_0[key] for key, one in _dense(base, folder).items()} for folder in adapters.values()]
    bits = model.merged.checkpoint.arguments.fraction_bits
    step = FixedPoint(fraction_bits=bits).step
    moved = 0
    for key, n in model.merged.checkpoint.state.delta.items():
        expected = sum(vector[key] for vector in vectors)
        # Half a step for each task, and what float32 leaves open where PEFT itself rounds.
        assert (n.double() * step - expected).abs().max() <= len(adapters) * 0.5 * step + 1e-7, key
        moved += int(expected.abs().max() > 100 * step)
    assert moved >= 2
    model.save_pretrained(tmp_path / "all")
    gone = ClamuModel.from_pretrained(tmp_path / "all").unmerge_task("t01", checkpoints=adapters)
    gone.save_pretrained(tmp_path / "gone")
    left = {one: folder for one, folder in adapters.items() if one != "t01"}
    _merge(base, left, peft_merging="product").save_pretrained(tmp_path / "left")
    assert tiny.digests(tmp_path / "gone") == tiny.digests(tmp_path / "left")
    environment = json.loads((tmp_path / "all/ledger.json").read_bytes())["environment"]
    # A product of two factors has the same bits everywhere.
    assert (environment is None) == (kind not in ("dora", "embedding", "loha", "lokr", "ia3"))


def test_sixteen_adapters_of_different_factors(bases, tmp_path, tiny):
    base = bases / "llama"
    adapters = _adapters(base, LORA, tmp_path / "adapters", count=16)
    model = _merge(base, adapters)
    assert model.merged.space is None
    theta_0 = {key: one.detach().double() for key, one in _auto(base).from_pretrained(base).named_parameters()}
    dense = [_dense(base, folder) for folder in adapters.values()]
    step = FixedPoint(fraction_bits=model.merged.checkpoint.arguments.fraction_bits).step
    for key, n in model.merged.checkpoint.state.delta.items():
        expected = sum(one[key] - theta_0[key] for one in dense)
        assert (n.double() * step - expected).abs().max() <= 16 * 0.5 * step + 1e-12, key
    model.save_pretrained(tmp_path / "m")
    again = ClamuModel.from_pretrained(tmp_path / "m")
    again.unmerge_task(["t03", "t11"], checkpoints=adapters).save_pretrained(tmp_path / "after")
    left = {one: folder for one, folder in adapters.items() if one not in ("t03", "t11")}
    _merge(base, left).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")
    assert ClamuModel.from_pretrained(tmp_path / "after").verify(checkpoints=left).identical


def test_peft_combines_factors_where_we_add_products(bases, tmp_path):
    base = bases / "llama"
    adapters = _adapters(base, LORA, tmp_path)
    plain = PeftModel.from_pretrained(_auto(base).from_pretrained(base), adapters["t00"], adapter_name="t00")
    for name in ("t01", "t02"):
        plain.load_adapter(adapters[name], adapter_name=name)
    plain.add_weighted_adapter(["t00", "t01", "t02"], [1.0] * 3, "sum", combination_type="linear")
    plain.set_adapter("sum")
    theirs = {key: one.detach().double() for key, one in plain.merge_and_unload().named_parameters()}
    theta_0 = {key: one.detach().double() for key, one in _auto(base).from_pretrained(base).named_parameters()}
    expected = sum(_dense(base, one)["model.layers.0.self_attn.q_proj.weight"] for one in adapters.values())
    key = "model.layers.0.self_attn.q_proj.weight"
    expected = expected - 3 * theta_0[key]
    model = _merge(base, adapters)
    step = FixedPoint(fraction_bits=model.merged.checkpoint.arguments.fraction_bits).step
    ours = model.merged.checkpoint.state.delta[key].double() * step
    assert (theirs[key] - theta_0[key] - expected).abs().max() > 1e4 * (ours - expected).abs().max()


def test_adapters_of_one_factor_stay_an_adapter(bases, tmp_path, tiny):
    base = bases / "llama"
    adapters = _adapters(base, LORA, tmp_path / "adapters", shares_a=True)
    model = _merge(base, adapters)
    assert model.merged.space.merging == "frozen_a"
    model.save_pretrained(tmp_path / "m")
    theirs = [load_file(one / "adapter_model.safetensors") for one in adapters.values()]
    step = FixedPoint(fraction_bits=model.merged.checkpoint.arguments.fraction_bits).step
    for name, n in model.merged.checkpoint.state.delta.items():
        assert "lora_B" in name
        key = f"base_model.model.{name.replace('.default', '')}"
        expected = sum(one[key].double() for one in theirs)
        assert (n.double() * step - expected).abs().max() <= len(theirs) * 0.5 * step
    model.export_adapters(tmp_path / "out")
    found = load_file(tmp_path / "out/cluster_000/adapter_model.safetensors")
    assert found.keys() == theirs[0].keys()
    assert all(torch.equal(found[key], theirs[0][key]) == ("lora_A" in key) for key in found)
    again = ClamuModel.from_pretrained(tmp_path / "m")
    again.unmerge_task("t02", checkpoints=adapters).save_pretrained(tmp_path / "after")
    left = {one: adapters[one] for one in ("t00", "t01")}
    _merge(base, left).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")
    back = ClamuModel.from_pretrained(tmp_path / "after").add_task(checkpoints=adapters)
    back.save_pretrained(tmp_path / "back")
    assert tiny.digests(tmp_path / "back") == tiny.digests(tmp_path / "m")
    # One more, of another factor, or of another shape.
    other = _save(base, LORA, tmp_path / "other", 9)
    with pytest.raises(
        IncompatibleBaseError, match=r"lora_A.*has other values than the model's, which all tasks share"
    ):
        ClamuModel.from_pretrained(tmp_path / "m").add_task(checkpoints={"other": other})
    wide = _save(base, {**LORA, "r": 4}, tmp_path / "wide", 9)
    with pytest.raises(IncompatibleBaseError, match=r"it has r = 4, the adapter inside the model has 3"):
        ClamuModel.from_pretrained(tmp_path / "m").add_task(checkpoints={"wide": wide})
    plain = tmp_path / "plain"
    _auto(base).from_pretrained(base).save_pretrained(plain)
    with pytest.raises(TaskDataError, match="checkpoints are whole models"):
        ClamuModel.from_pretrained(tmp_path / "m").add_task(checkpoints={"plain": plain})


def test_the_way_of_merging_is_chosen_and_refused(bases, tmp_path, caplog):
    base = bases / "llama"
    shared = _adapters(base, LORA, tmp_path / "shared", shares_a=True)
    assert _merge(base, shared, peft_merging="product").merged.space is None
    mixed = {**shared, "t09": _save(base, LORA, tmp_path / "t09", 9)}
    with caplog.at_level("INFO", logger="hf_clamu"):
        assert _merge(base, mixed).merged.space is None
    assert f"{tmp_path / 't09'} has another factor A than {tmp_path / 'shared/t00'}" in caplog.text
    with pytest.raises(IncompatibleBaseError, match="another factor A"):
        _merge(base, mixed, peft_merging="frozen_a")
    with pytest.raises(RecipeError, match="must be product or frozen_a, got 'sum'"):
        _merge(base, mixed, peft_merging="sum")
    whole = tmp_path / "whole"
    model = _auto(base).from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    model.save_pretrained(whole)
    assert len(_merge(base, {**shared, "whole": whole}).tasks) == 4
    with pytest.raises(RecipeError, match="no checkpoint is one"):
        _merge(base, {"whole": whole}, peft_merging="product")


def _rewritten(folder, target, change_config=None, change_tensors=None):
    shutil.copytree(folder, target)
    path = target / "adapter_config.json"
    if change_config is not None:
        path.write_text(json.dumps(json.loads(path.read_bytes()) | change_config))
    if change_tensors is not None:
        save_file(
            change_tensors(load_file(target / "adapter_model.safetensors")), target / "adapter_model.safetensors"
        )
    return target


def _nan(tensors):
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("config", "tensors", "error", "said"),
    [
        ({"peft_type": "PROMPT_TUNING"}, None, IncompatibleBaseError, "PROMPT_TUNING cannot be merged by adding"),
        ({"peft_type": "LORRA"}, None, IncompatibleBaseError, "a peft_type that PEFT knows, got 'LORRA'"),
        ({"target_modules": ["nobody"]}, None, IncompatibleBaseError, "target_modules"),
        ({"layer_replication": [[0, 1]]}, None, IncompatibleBaseError, "layer_replication cannot be merged"),
        ({"from_the_future": 3}, None, IncompatibleBaseError, "LORA has no setting 'from_the_future'"),
        ({"task_type": None}, None, IncompatibleBaseError, "has task_type = None; to merge without data"),
        ({"r": 2}, None, IncompatibleBaseError, r"of shape \(3, 16\); with the base model it would have \(2, 16\)"),
        (None, lambda one: dict(list(one.items())[1:]), IncompatibleBaseError, "it lacks 'model"),
        (None, lambda one: {**one, "base_model.model.x.lora_A.weight": torch.ones(1)}, IncompatibleBaseError,
         "it has 'x.lora_A.weight', which its settings do not"),
        (None, lambda one: {**one, "base_model.model.lm_head.weight": torch.ones(2, 16)}, IncompatibleBaseError,
         r"'lm_head.weight' of shape \(2, 16\), the base model's has \(31, 16\)"),
        (None, _nan, FixedPointOverflowError, "Task 'bad', .*moved by nan"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused_by_name(config, tensors, error, said, bases, tmp_path):
    base = bases / "llama"
    good = _adapters(base, LORA, tmp_path / "good", count=2)
    bad = _rewritten(good["t00"], tmp_path / "bad", config, tensors)
    with pytest.raises(error, match=said) as caught:
        _merge(base, {**good, "bad": bad}, peft_merging="product")
    assert str(bad) in str(caught.value)
    before = {name: one.clone() for name, one in _auto(base).from_pretrained(base).state_dict().items()}
    assert all(torch.equal(one, before[name]) for name, one in _auto(base).from_pretrained(base).state_dict().items())


def test_a_new_setting_that_says_nothing_is_passed_over(bases, tmp_path):
    good = _adapters(bases / "llama", LORA, tmp_path / "good", count=2)
    good["new"] = _rewritten(good["t00"], tmp_path / "new", {"from_the_future": None})
    assert len(_merge(bases / "llama", good, peft_merging="product").tasks) == 3


def test_files_that_are_missing_or_changed_are_told(bases, tmp_path):
    base = bases / "llama"
    good = _adapters(base, LORA, tmp_path / "good", count=2)
    gone = _rewritten(good["t00"], tmp_path / "gone")
    (gone / "adapter_model.safetensors").rename(gone / "adapter_model.bin")
    with pytest.raises(CheckpointFormatError, match=r"adapter_model\.bin alone, which can run code"):
        _merge(base, {**good, "gone": gone}, peft_merging="product")
    (gone / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointFormatError, match=r"adapter_model\.safetensors is missing"):
        _merge(base, {**good, "gone": gone}, peft_merging="product")
    model = _merge(base, good)
    model.save_pretrained(tmp_path / "m")
    changed = _rewritten(good["t00"], tmp_path / "changed", None, lambda one: {k: 2 * v for k, v in one.items()})
    with pytest.raises(DigestMismatchError):
        ClamuModel.from_pretrained(tmp_path / "m").unmerge_task("t00", checkpoints={**good, "t00": changed})


def test_tied_weights_are_refused_by_name(bases, tmp_path):
    settings = {**LORA, "target_modules": ["wte"]}
    with pytest.raises(IncompatibleBaseError, match=r"target 'transformer.wte.weight' shares its weight"):
        _merge(bases / "gpt2", _adapters(bases / "gpt2", settings, tmp_path), peft_merging="product")


def test_training_elsewhere_by_a_real_optimizer(bases, tmp_path):
    base, texts = bases / "llama", torch.randint(0, 31, (3, 8))
    adapters = {}
    for number, ids in enumerate(texts):
        torch.manual_seed(number)
        settings = {key: value for key, value in LORA.items() if key != "peft_type"}
        model = get_peft_model(_auto(base).from_pretrained(base), LoraConfig(**settings))
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
        for _ in range(20):
            model(input_ids=ids[None], labels=ids[None]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapters[f"u{number}"] = tmp_path / f"u{number}"
        model.save_pretrained(adapters[f"u{number}"])
    merged = _merge(base, adapters, ClamuArguments(localization="emr", clustering="none", scaling="sum"))
    plain = _auto(base).from_pretrained(base)
    with torch.no_grad():
        for number, ids in enumerate(texts):
            with merged.serving(task=f"u{number}"):
                own = merged(input_ids=ids[None], labels=ids[None]).loss
            assert own < plain(input_ids=ids[None], labels=ids[None]).loss - 0.05


def test_the_command_line_merges_a_folder_of_adapters(bases, tmp_path, monkeypatch, capsys):
    from hf_clamu.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["clamu", "merge", "adapters", "--output", "m", "--json"])
    _adapters(bases / "llama", LORA, Path("adapters"))
    main()
    assert json.loads(capsys.readouterr().out)["num_tasks"] == 3
    config = json.loads(Path("m/config.json").read_bytes())
    assert config["peft_config"] is None
