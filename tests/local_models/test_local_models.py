"""Checkpoints that were finetuned elsewhere: what is read, and what is refused before anything is merged."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
import torch
import transformers
from catalogue import CATALOGUE
from safetensors.torch import load_file, save_file

from hf_clamu import (
    CheckpointFormatError,
    ClamuArguments,
    ClamuModel,
    ClamuTrainer,
    FixedPointOverflowError,
    IncompatibleBaseError,
    TaskDataError,
)
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import FixedPoint
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.training import Workspace, seeded

ARGUMENTS = ClamuArguments(localization="emr", clustering="none", fraction_bits=28)
_KINDS = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            n_layer=1, n_embd=8, n_head=2, n_positions=8, vocab_size=11, bos_token_id=1, eos_token_id=1
        ),
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=11),
    ),
    "resnet": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3),
    ),
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            num_labels=3,
        ),
    ),
}


def _made(kind, seed, folder, **changes):
    """Save a model of a kind; seeds differ by less than the grid's range."""
    architecture, config = _KINDS[kind]
    with seeded(1):
        model = architecture(type(config)(**{**config.to_dict(), **changes})).eval()
    with torch.no_grad(), seeded(seed):
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01 * (seed > 1))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def two(tmp_path):
    """Return a function that makes a base and two local models of a kind: base and folders by task id."""

    def make(kind):
        _made(kind, 1, tmp_path / "base")
        for seed, name in ((2, "a"), (3, "b")):
            _made(kind, seed, tmp_path / name)
        return tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"}

    return make


def _rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", CATALOGUE)
def test_checkpoints_of_every_architecture_are_read(tiny, name, tmp_path):
    """Whatever transformers calls their tensors in a file: what was exported and is merged again is the same."""
    kind, config = CATALOGUE[name]
    settings = {"localization": "global", "clustering": "none", "score_validation": False, "scaling": "sum"}
    settings |= {"fraction_bits": 28}
    tasks = tiny.tasks(kind).select(tiny.tasks(kind).task_ids[:1])
    model = tiny.train(kind, tasks, base=config, **settings)
    model.export(tmp_path / "local", task=tasks.task_ids[0])
    model.save_pretrained(tmp_path / "model")
    merged = ClamuModel.merge(
        tmp_path / "model" / "base_model",
        {"a": tmp_path / "local"},
        ClamuArguments(**settings),
        processing_class=tiny.processor(kind),  # its padding token is in the local model's settings
    )
    ours, theirs = merged.ledger, model.ledger
    assert ours["parameters"] == theirs["parameters"]
    # The export rounds to float32 what the delta holds on the grid, so steps may differ in the last place.
    merged.save_pretrained(tmp_path / "merged")
    delta, expected = (read_checkpoint(tmp_path / name).state.delta for name in ("merged", "model"))
    assert max(int((delta[one] - expected[one]).abs().max()) for one in expected) <= 1
    assert any(bool(steps.any()) for steps in delta.values())


@pytest.mark.parametrize("kind", _KINDS)
def test_every_weight_arrives(two, kind, tmp_path):
    base, folders = two(kind)
    model = ClamuModel.merge(base, folders, ClamuArguments(localization="global", clustering="none", scaling="sum"))
    assert type(model).__name__ == _KINDS[kind][0].__name__
    theta_0, theta = _KINDS[kind][0].from_pretrained(base), dict(model.named_parameters())
    moved = [dict(_KINDS[kind][0].from_pretrained(folder).named_parameters()) for folder in folders.values()]
    for name, start in theta_0.named_parameters():
        expected = start.double() + sum(one[name].double() - start.double() for one in moved)
        assert torch.allclose(theta[name].double(), expected, rtol=0, atol=1e-6), name
        assert not torch.equal(theta[name], start), name


def test_a_base_that_is_written_to_meanwhile_does_not_show(two, tmp_path):
    base, folders = two("gpt2")
    digest = ClamuModel.merge(base, folders, ARGUMENTS).state_digest()

    def progress(items, description):
        # Weights that transformers loads are mapped from the file.
        with (base / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(struct.pack("<f", 0.5))
        yield from items

    assert ClamuModel.merge(base, folders, ARGUMENTS, progress=progress).state_digest() == digest
    assert ClamuModel.merge(base, folders, ARGUMENTS).state_digest() != digest, "the file did change"


def test_tied_weights_count_once_whatever_they_are_called(two):
    base, folders = two("gpt2")
    model = ClamuModel.merge(base, folders, ARGUMENTS)
    assert "lm_head.weight" not in model.ledger["parameters"]
    digest = model.state_digest()

    def also(tensors):  # as older releases saved it
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    def only(tensors):
        tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")

    _rewrite(folders["a"], also)
    _rewrite(folders["b"], only)
    assert ClamuModel.merge(base, folders, ARGUMENTS).state_digest() == digest

    def untied(tensors):
        tensors["lm_head.weight"][0, 0] += 1

    _rewrite(folders["a"], untied)
    with pytest.raises(
        IncompatibleBaseError, match=r"'a': .*'lm_head.weight' with other values than 'transformer.wte"
    ):
        ClamuModel.merge(base, folders, ARGUMENTS)


def test_what_transformers_passes_over_is_passed_over(two):
    base, folders = two("gpt2")
    digest = ClamuModel.merge(base, folders, ARGUMENTS).state_digest()
    _rewrite(folders["a"], lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}))
    assert ClamuModel.merge(base, folders, ARGUMENTS).state_digest() == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast_exactly(two, dtype):
    base, folders = two("vit")
    for folder in folders.values():
        _rewrite(folder, lambda tensors: tensors.update({name: one.to(dtype) for name, one in tensors.items()}))
    half = ClamuModel.merge(base, folders, ARGUMENTS)
    for folder in folders.values():
        _rewrite(folder, lambda tensors: tensors.update({name: one.float() for name, one in tensors.items()}))
    whole = ClamuModel.merge(base, folders, ARGUMENTS)
    assert half.state_digest() == whole.state_digest()
    assert half.dtype == torch.float32


def test_buffers_that_differ_are_refused(two):
    base, folders = two("resnet")
    name = next(name for name in load_file(base / "model.safetensors") if name.endswith("running_mean"))
    _rewrite(folders["b"], lambda tensors: tensors[name].add_(1.0))
    with pytest.raises(IncompatibleBaseError, match=rf"'b': .*other values in '{name}'.*batch normalisation"):
        ClamuModel.merge(base, folders, ARGUMENTS)


def _drop(tensors):
    del tensors["classifier.bias"]


def _extra(tensors):
    tensors["vit.lora_A.weight"] = torch.zeros(2)


def _other_shape(tensors):
    tensors["classifier.bias"] = torch.zeros(4)


def _quantised(tensors):
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.int8)


def _nan(tensors):
    tensors["classifier.weight"][0, 0] = float("nan")


def _infinite(tensors):
    tensors["classifier.weight"][0, 0] = float("inf")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_drop, IncompatibleBaseError, "lacks the parameter 'classifier.bias'"),
        (_extra, IncompatibleBaseError, r"model.safetensors has the tensor 'vit.lora_A.weight', which the base"),
        (_other_shape, IncompatibleBaseError, r"model.safetensors has 'classifier.bias' of shape \(4,\).* has \(3,\)"),
        (_quantised, IncompatibleBaseError, "'classifier.weight' as I8; weights must be float32"),
        (_nan, FixedPointOverflowError, "model.safetensors: Parameter 'classifier.weight' moved by nan"),
        (_infinite, FixedPointOverflowError, "'classifier.weight' moved by inf"),
    ],
)
def test_tensors_that_do_not_fit(two, change, error, message):
    base, folders = two("vit")
    _rewrite(folders["b"], change)
    with pytest.raises(error, match=f"Task 'b'.*{message}"):
        ClamuModel.merge(base, folders, ARGUMENTS)


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _bin_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _merged(folder):
    _configure(folder, model_type="clamu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("model.safetensors"), "has neither model.safetensors nor"),
        (_bin_only, r"only pytorch_model.bin, which can run code"),
        (_truncate, "cannot be read as safetensors"),
        (_remove("config.json"), "has neither config.json nor adapter_config.json"),
        (_merged, "holds a merged ClAMU model"),
    ],
)
def test_damaged_folders(two, damage, message):
    base, folders = two("vit")
    damage(folders["b"])
    with pytest.raises(CheckpointFormatError, match=message):
        ClamuModel.merge(base, folders, ARGUMENTS)


def _no_map(index):
    index["weight_map"] = None


def _outside(index):
    index["weight_map"]["classifier.bias"] = "../a/model.safetensors"


def _wrong_shard(index):
    files = sorted(set(index["weight_map"].values()))
    other = next(file for file in files if file != index["weight_map"]["classifier.bias"])
    index["weight_map"]["classifier.bias"] = other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_map, "has no weight_map"),
        (_outside, "which is outside the folder"),
        (_wrong_shard, "lacks 'classifier.bias', which model.safetensors.index.json says"),
        (None, "model-00001-of.* is missing"),
    ],
)
def test_damaged_shards(two, change, message):
    base, folders = two("vit")
    model = transformers.ViTForImageClassification.from_pretrained(folders["b"])
    shutil.rmtree(folders["b"])
    model.save_pretrained(folders["b"], max_shard_size="1KB")
    if change is None:
        sorted(folders["b"].glob("*.safetensors"))[0].unlink()
    else:
        path = folders["b"] / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))
    with pytest.raises(CheckpointFormatError, match=message):
        ClamuModel.merge(base, folders, ARGUMENTS)


def test_other_kinds_of_models(two, tmp_path):
    base, folders = two("vit")
    _made("vit", 2, tmp_path / "heads", num_attention_heads=4)
    _made("vit", 2, tmp_path / "names", id2label={0: "x", 1: "y", 2: "z"})
    _made("gpt2", 2, tmp_path / "gpt2")
    vit = transformers.ViTForImageClassification.from_pretrained(folders["a"])
    vit.base_model.save_pretrained(tmp_path / "headless")
    refusals = {
        "heads": "'c': .*num_attention_heads = 4, the base model has 2",
        "names": r"'c': .*labels x, y, z \(id2label\), task 'a' has LABEL_0, LABEL_1, LABEL_2",
        "gpt2": "'c' is a causal-lm model and task 'a' one for image-classification",
        "headless": "'c': .* is a ViTModel. Local models must be one of",
    }
    for name, message in refusals.items():
        with pytest.raises(IncompatibleBaseError, match=message):
            ClamuModel.merge(base, {**folders, "c": tmp_path / name}, ARGUMENTS)
    with pytest.raises(IncompatibleBaseError):
        ClamuModel.merge(base, {"c": tmp_path / "gpt2"}, ARGUMENTS)


def test_a_base_without_the_head_gets_one(two, tmp_path, tiny):
    _, folders = two("vit")
    transformers.ViTForImageClassification.from_pretrained(folders["a"]).base_model.save_pretrained(tmp_path / "bare")
    for name, chosen in (("all", folders), ("b", {"b": folders["b"]})):
        ClamuModel.merge(tmp_path / "bare", chosen, ARGUMENTS).save_pretrained(tmp_path / f"of-{name}")
    model = ClamuModel.from_pretrained(tmp_path / "of-all").unmerge_task("a", checkpoints=folders)
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "of-b")


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ({"c": "no/such/folder"}, "'c': there is no folder no/such/folder"),
        ({"c": 3}, "'c': expected a folder or Hub id, got int"),
        ({"": "x"}, "a string that is not empty"),
        (["a", "b"], "must be a mapping"),
    ],
)
def test_what_is_no_folder(checkpoints, message):
    with pytest.raises(TaskDataError, match=message):
        LocalModels.find(checkpoints)


def test_buffers_are_shared_by_all_checkpoints(two):
    base, folders = two("vit")
    workspace = Workspace(transformers.ViTForImageClassification.from_pretrained(base))
    local_models = LocalModels.find(folders)
    first = local_models.read("a", workspace, ARGUMENTS.codec)
    places = {name: n.data_ptr() for name, n in first.steps.items()}
    kept = {name: n.clone() for name, n in first.steps.items()}
    second = local_models.read("b", workspace, ARGUMENTS.codec)
    assert {name: n.data_ptr() for name, n in second.steps.items()} == places
    assert second.digest != first.digest
    again = local_models.read("a", workspace, ARGUMENTS.codec)
    assert all(torch.equal(again.steps[name], kept[name]) for name in kept)


def test_predictions_and_rows_need_no_more_than_a_merge_knows(tiny, tmp_path):
    """Columns have their usual names, so that later data can be used without a recipe."""
    folders = tiny.local_models("text", tmp_path)
    model = ClamuModel.merge(tmp_path / "base", folders, ARGUMENTS)
    model.save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": "user_0", "text": "poor 1", "label": "bad"}\n')
    tasks = ClamuModel.from_pretrained(tmp_path / "model").load_tasks(rows)
    assert (tasks.task_ids, tasks.spec.label_names) == (("user_0",), ("bad", "good", "mixed"))
    with pytest.raises(TaskDataError, match="names no source"):
        model.load_tasks()


def test_an_adapter_space_takes_no_whole_models(tiny, tmp_path):
    model = ClamuTrainer(
        tiny.config("text"),
        tiny.tasks("text"),
        tiny.arguments(),
        processing_class=tiny.processor("text"),
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]},
        progress=lambda items, _: items,
    ).train()
    with pytest.raises(TaskDataError, match="merges the parameters of an adapter, and checkpoints are whole models"):
        model.unmerge_task("user_0", checkpoints={"user_0": tmp_path})


def test_a_file_that_was_written_again_is_another_one(tmp_path):
    _made("gpt2", 0, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"

    def fingerprint():
        return LocalModels.find({"a": tmp_path / "a"}).fingerprint("a")

    first, state = fingerprint(), path.stat()
    assert fingerprint() == first
    data = path.read_bytes()
    # In place, of the same size, and with the old times: only the time of change tells.
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True, .* has False"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"layer_norm_epsilon": 0.1}, "layer_norm_epsilon = 0.1"),
        ("gpt2", {"pad_token_id": 3}, "pad_token_id = 3"),
        ("vit", {"qkv_bias": False}, "qkv_bias = False"),
    ],
)
def test_every_setting_that_is_computed_with_is_compared(two, kind, changes, message):
    base, folders = two(kind)
    if "pad_token_id" in changes:
        for folder in (base, folders["a"]):
            _configure(folder, pad_token_id=5)
    _configure(folders["b"], **changes)
    with pytest.raises(IncompatibleBaseError, match=f"'b': .*{message}"):
        ClamuModel.merge(base, folders, ARGUMENTS)


def test_settings_that_change_nothing_pass(two):
    base, folders = two("gpt2")
    changes = {"attn_pdrop": 0.5, "transformers_version": "4.0.0", "use_cache": False, "initializer_range": 1.0}
    changes |= {"_name_or_path": "elsewhere", "torch_dtype": "float16", "temperature": 0.5, "own_note": "x"}
    _configure(folders["b"], **changes)
    assert len(ClamuModel.merge(base, folders, ARGUMENTS).tasks) == 2


def _numbered_otherwise(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] = {token: 255 - number for token, number in values["model"]["vocab"].items()}
    path.write_text(json.dumps(values))


def _lower_case(folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Lowercase"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_numbered_otherwise, r"'b': the tokenizer .* numbers '!' 255, the base model's 0"),
        (_lower_case, r"'b': the tokenizer .* reads 'Abc XYZ' as"),
        (lambda folder: (folder / "tokenizer.json").write_text("{ broken"), "tokenizer of .*b' cannot be loaded"),
    ],
)
@pytest.mark.parametrize("whose", ["base", "each other"])
def test_another_tokenizer_is_refused(two, change, message, whose):
    base, folders = two("gpt2")
    for seed, folder in enumerate([base, *folders.values()], start=1):
        _made("gpt2", seed, folder, vocab_size=257)
    for folder in ([base] if whose == "base" else []) + [folders["b"], folders["a"]]:
        byte_tokenizer().save_pretrained(folder)
    assert len(ClamuModel.merge(base, folders, ARGUMENTS).tasks) == 2
    change(folders["b"])
    with pytest.raises(IncompatibleBaseError, match=message):
        ClamuModel.merge(base, folders, ARGUMENTS)


def test_another_image_processor_is_refused(two):
    base, folders = two("vit")
    for folder in (base, *folders.values()):
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    assert len(ClamuModel.merge(base, folders, ARGUMENTS).tasks) == 2
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0, 0, 0]).save_pretrained(folders["b"])
    with pytest.raises(IncompatibleBaseError, match=r"'b': .*image_mean = \(0, 0, 0\)"):
        ClamuModel.merge(base, folders, ARGUMENTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": 7},
        {"architectures": {"a": 1}},
        {"architectures": "GPT2LMHeadModel"},
        {"id2label": 7},
        {"model_type": "bert"},
        {"n_head": "many"},
        {"num_labels": "x"},
    ],
)
@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_strange_configurations_are_one_sentence(two, kind, changes):
    base, folders = two(kind)
    if kind == "vit" and "n_head" in changes:
        changes = {"num_attention_heads": "many"}
    _configure(folders["b"], **changes)
    if kind == "gpt2" and changes.keys() & {"id2label", "num_labels"}:
        changes = {"n_layer": None}
        _configure(folders["b"], **changes)
    with pytest.raises((CheckpointFormatError, IncompatibleBaseError), match="'b'") as caught:
        ClamuModel.merge(base, folders, ARGUMENTS)
    assert "\n" not in str(caught.value)


def test_pointers_and_lists(two):
    base, folders = two("vit")
    (folders["b"] / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointFormatError, match=r"'b': .*pointer of Git LFS"):
        ClamuModel.merge(base, folders, ARGUMENTS)
    with pytest.raises(TaskDataError, match=r"must be a mapping of task ids .* got list"):
        ClamuModel.merge(base, [folders["a"]], ARGUMENTS)
    del folders["b"]
    model = ClamuModel.merge(base, folders, ARGUMENTS)
    with pytest.raises(TaskDataError, match=r"must be a mapping of task ids .* got list"):
        model.unmerge_task("a", checkpoints=["a"])


def test_files_that_change_after_their_check_are_checked_again(two):
    base, folders = two("gpt2")
    models = LocalModels(folders)
    workspace = Workspace(transformers.GPT2LMHeadModel.from_pretrained(base))
    models.check(workspace.model, "causal-lm")
    before = models.read("b", workspace, FixedPoint()).digest
    _rewrite(folders["b"], lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(3)}))
    with pytest.raises(IncompatibleBaseError, match=r"'b': .*'transformer.ln_f.bias' of shape \(3,\)"):
        models.read("b", workspace, FixedPoint())
    _rewrite(folders["b"], lambda tensors: tensors.update({"transformer.ln_f.bias": torch.ones(8)}))
    assert models.read("b", workspace, FixedPoint()).digest != before
    (folders["b"] / "model.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match="is missing"):
        models.read("b", workspace, FixedPoint())
