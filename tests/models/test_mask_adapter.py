"""Mask adapters in PEFT and in transformers, bit for bit against a reference that reads the files alone."""

from __future__ import annotations

import copy
import functools
import gc
import json
import pickle
import shutil
import sys
import warnings

import peft
import pytest
import torch
import transformers
from catalogue import ADAPTED, KEY, base_of, bits, same
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hf_clamu import (
    CheckpointFormatError,
    ClamuModel,
    HubError,
    IncompatibleBaseError,
    StaleMaskError,
    WeightsChangedError,
)
from hf_clamu.exact import digest_tensors
from hf_clamu.models.mask_adapter import ClamuMaskConfig, ClamuMaskLayer, ClamuPeftType, attach_delta

pytestmark = [
    # PEFT and transformers warn of each other.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]


def _peft(folder, cluster, adapter_name="default", base=None, **kwargs):
    model = base_of(folder) if base is None else base
    return PeftModel.from_pretrained(model, folder, adapter_name, subfolder=f"masks/cluster_{cluster:03d}", **kwargs)


def _inputs(name):
    ids = torch.tensor([[5, 9, 3], [7, 2, 8]])
    if name in ("vit", "clip"):
        return {"pixel_values": torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)}
    return {"input_ids": ids, **({"decoder_input_ids": ids} if name == "t5" else {})}


def _logits(model, name):
    with torch.no_grad():
        return model.eval()(**_inputs(name)).logits


def _bytes_of_tensors():
    """What all tensors that are alive take, memory that several share counted once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


# -- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.matrix("peft", row="from_pretrained", column="{name}")
@pytest.mark.matrix("peft", row="load_adapter", column="{name}")
@pytest.mark.matrix("peft", row="set_adapter", column="{name}")
@pytest.mark.matrix("peft", row="disable_adapter", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_clusters_are_the_reference_bit_for_bit(name, saved, references):
    folder, expected = saved(name), references(name)
    plain = base_of(folder)
    keys = [n for n, _ in plain.named_modules()]
    at_base = _logits(plain, name)
    model = _peft(folder, 0, "k0", base=plain)
    assert same(bits(model), expected[0])
    for cluster, adapter in ((1, "k1"), (2, "k2")):
        result = model.load_adapter(folder, adapter, subfolder=f"masks/cluster_{cluster:03d}")
        assert result.missing_keys == []
        assert same(bits(model), expected[0])  # loading does not select
    outputs = {}
    for cluster in (1, 0, 2, 2, 2, 1, 0, 1, 2, 0):
        adapter = f"k{cluster}"
        model.set_adapter(adapter)
        assert same(bits(model), expected[cluster])
        assert model.active_adapters == [adapter]
        logits = _logits(model, name)
        assert torch.equal(outputs.setdefault(cluster, logits), logits)
        with model.disable_adapter():
            assert same(bits(model), expected[None])
            assert torch.equal(_logits(model, name), at_base)
        assert same(bits(model), expected[cluster])
    assert not torch.equal(outputs[0], outputs[1])
    assert not any(torch.equal(outputs[cluster], at_base) for cluster in outputs)
    assert [p.dtype for n, p in model.named_parameters() if "clamu_mask" in n] == [torch.uint8] * 3
    # Nothing is wrapped, and nothing but the side module is added.
    inside = [n for n, _ in model.base_model.model.named_modules() if not n.startswith("clamu_adapters")]
    assert inside == keys


@pytest.mark.matrix("peft", row="merge_and_unload", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_merge_and_unload(name, saved, references):
    folder, expected = saved(name), references(name)
    model = _peft(folder, 0)
    model.load_adapter(folder, "other", subfolder="masks/cluster_002")
    model.set_adapter("other")
    logits = _logits(model, name)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(base_of(folder))
    assert same(bits(plain), expected[2])
    assert torch.equal(_logits(plain, name), logits)
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in base_of(folder).named_modules()]
    assert plain.state_dict().keys() == base_of(folder).state_dict().keys()
    assert not hasattr(plain, "peft_config")
    assert not plain._forward_pre_hooks


def test_merge_another_than_the_active(saved, references):
    model = _peft(saved("bert"), 0, "k0")
    model.load_adapter(saved("bert"), "k1", subfolder="masks/cluster_001")
    with pytest.raises(ValueError, match="do not add up"):
        model.merge_and_unload(adapter_names=["k0", "k1"])
    assert same(bits(model), references("bert")[0])
    assert same(bits(model.merge_and_unload(adapter_names=["k1"])), references("bert")[1])


@pytest.mark.matrix("peft", row="unload", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_unload_and_load_again(name, saved, references):
    folder, expected = saved(name), references(name)
    plain = _peft(folder, 1).unload()
    assert same(bits(plain), expected[None])
    assert not hasattr(plain, "peft_config")
    assert same(bits(_peft(folder, 2, base=plain)), expected[2])


def test_merge_adapter_and_unmerge_adapter(saved, references):
    model = _peft(saved("bert"), 0, "k0")
    model.load_adapter(saved("bert"), "k1", subfolder="masks/cluster_001")
    model.merge_adapter(["k1"])
    assert same(bits(model), references("bert")[1])
    model.unmerge_adapter()
    assert same(bits(model), references("bert")[1])


@pytest.mark.matrix("peft", row="delete_adapter", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_delete_adapter(name, saved, references):
    folder, expected = saved(name), references(name)
    model = _peft(folder, 0, "k0")
    model.load_adapter(folder, "k1", subfolder="masks/cluster_001")
    model.load_adapter(folder, "k2", subfolder="masks/cluster_002")
    model.delete_adapter("k1")
    assert same(bits(model), expected[0])
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("k0")
    assert model.active_adapters == ["k2"]
    assert same(bits(model), expected[2])
    assert sorted(n for n, _ in model.named_parameters() if "clamu" in n) == [f"{KEY}.k2"]
    model.delete_adapter("k2")
    assert same(bits(model), expected[None])
    model.load_adapter(folder, "d", subfolder="masks/cluster_001")
    model.set_adapter("d")
    assert same(bits(model), expected[1])


@pytest.mark.matrix("peft", row="low_cpu_mem_usage", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_low_cpu_mem_usage(name, saved, references):
    model = _peft(saved(name), 1, "k0", low_cpu_mem_usage=True)
    assert same(bits(model), references(name)[1])
    model.load_adapter(saved(name), "k1", subfolder="masks/cluster_002", low_cpu_mem_usage=True)
    model.set_adapter("k1")
    assert same(bits(model), references(name)[2])
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.matrix("peft", row="save_pretrained", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_saved_again_it_is_the_same_bytes(name, saved, tmp_path):
    folder = saved(name)
    model = _peft(folder, 1)
    model.load_adapter(folder, "other", subfolder="masks/cluster_002")
    model.save_pretrained(tmp_path)
    for written, cluster in ((tmp_path, 1), (tmp_path / "other", 2)):
        original = folder / f"masks/cluster_{cluster:03d}"
        tensors = "adapter_model.safetensors"
        assert (written / tensors).read_bytes() == (original / tensors).read_bytes()
        assert str(folder) not in (written / "adapter_config.json").read_text(encoding="utf-8")
        config = "adapter_config.json"
        assert (written / config).read_bytes() == (original / config).read_bytes()
    # Neither merged model nor base model has an id on the Hub, and folders are nobody's business.
    card = ModelCard.load(tmp_path / "README.md")
    assert str(folder) not in card.content
    assert (card.data.library_name, card.data.base_model, card.data.get("base_model_relation")) == ("peft", None, None)
    assert "clamu" in card.data.tags


def test_other_cards_are_left_alone(saved, tmp_path):
    card = "---\nlibrary_name: transformers\nbase_model: org/base\n---\n# Mine\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    _peft(saved("bert"), 1).peft_config["default"].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card


@pytest.mark.matrix("peft", row="auto", column="{name}")
@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("gpt2", peft.AutoPeftModelForCausalLM),
        ("llama", peft.AutoPeftModelForCausalLM),
        ("bert", peft.AutoPeftModelForSequenceClassification),
        ("bert", peft.AutoPeftModel),
        ("vit", peft.AutoPeftModel),
        ("clip", peft.AutoPeftModel),
        ("t5", peft.AutoPeftModelForSeq2SeqLM),
    ],
)
def test_auto_classes(name, auto, saved, references, tmp_path):
    folder = shutil.copytree(saved(name), tmp_path / "model")
    path = folder / "masks/cluster_001/adapter_config.json"
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, "base_model_name_or_path": str(folder / "base_model")}), encoding="utf-8")
    model = auto.from_pretrained(str(path.parent))
    assert isinstance(model, getattr(peft, auto.__name__.replace("Auto", "")))
    assert same(bits(model), references(name)[1])
    model.save_pretrained(tmp_path / "alone")
    assert json.loads((tmp_path / "alone/adapter_config.json").read_bytes()) == values  # without the folder


def test_task_types_add_no_modules_to_save(saved, references, tmp_path):
    folder = shutil.copytree(saved("bert"), tmp_path / "model")
    path = folder / "masks/cluster_001/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "task_type": "SEQ_CLS"}), encoding="utf-8")
    model = _peft(folder, 1)
    assert type(model) is peft.PeftModelForSequenceClassification
    assert same(bits(model), references("bert")[1])
    model.save_pretrained(tmp_path / "alone")
    assert list(load_file(tmp_path / "alone/adapter_model.safetensors")) == [KEY]
    assert json.loads((tmp_path / "alone/adapter_config.json").read_bytes())["task_type"] == "SEQ_CLS"


@pytest.mark.matrix("peft", row="generate", column="{name}")
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generate(name, saved):
    folder = saved(name)
    ids = torch.tensor([[5, 9, 3]])
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
    model = _peft(folder, 2)
    found = model.generate(input_ids=ids, **options)
    assert torch.equal(found, model.merge_and_unload().generate(input_ids=ids, **options))


def test_forward_without_gradients(saved, references):
    model = _peft(saved("bert"), 0, "k0")
    model.load_adapter(saved("bert"), "k1", subfolder="masks/cluster_001")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            for adapter, cluster in (("k1", 1), ("k0", 0), ("k1", 1)):
                model.set_adapter(adapter)
                model(**_inputs("bert"))
                assert same(bits(model), references("bert")[cluster])
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_switch_on_their_own(how, saved, references):
    model = _peft(saved("gpt2"), 0, "k0")
    model.load_adapter(saved("gpt2"), "k1", subfolder="masks/cluster_001")
    other = how(model)
    other.set_adapter("k1")
    other(**_inputs("gpt2"))
    assert same(bits(other), references("gpt2")[1])
    assert same(bits(model), references("gpt2")[0])
    assert same(bits(other.unload()), references("gpt2")[None])
    model.set_adapter("k1")
    assert same(bits(model), references("gpt2")[1])


def test_status_and_size(saved):
    model = _peft(saved("gpt2"), 0)
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.num_adapter_layers) == (True, ["default"], 1)
    assert (status.trainable_params, status.requires_grad) == (0, {"default": False})
    assert status.peft_types == {"default": "CLAMU_MASK"}
    assert model.peft_type is ClamuPeftType.CLAMU_MASK
    layer = model.base_model.model.clamu_adapters
    assert isinstance(layer, ClamuMaskLayer)
    assert not hasattr(layer, "weight")
    assert not hasattr(layer, "bias")


# -- several hundred -------------------------------------------------------------------------------------------------


def _calls(act):
    """How many Python functions are entered: a cost that no other process disturbs."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.matrix("peft", row="hundreds", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_two_hundred_adapters_cost_their_bits_alone(name, saved, references, tmp_path):
    folder = shutil.copytree(saved(name), tmp_path / "model")
    model = _peft(folder, 0, "first")
    # The delta is loaded once: from here on it need not be there.
    (folder / "delta.safetensors").unlink()
    (folder / "config.json").unlink()
    layer = model.base_model.model.clamu_adapters
    delta, switch, parameters = layer.delta, layer.delta.switch, len(list(model.named_parameters()))
    held = _bytes_of_tensors()
    costs = []
    for number in range(200):
        cluster = number % 3
        arguments = {"adapter_name": f"number{number}", "subfolder": f"masks/cluster_{cluster:03d}"}
        costs.append(_calls(functools.partial(model.load_adapter, folder, **arguments)))
    assert layer.delta is delta
    assert layer.delta.switch is switch
    assert _bytes_of_tensors() == held + 200 * delta.num_bytes
    assert len(list(model.named_parameters())) == parameters + 200
    assert sum(bits.numel() for bits in layer.clamu_mask.values()) == 201 * delta.num_bytes
    # PEFT itself walks over the names of the adapters: a few steps of a loop for each, next to thousands for a load.
    assert (costs[199] - costs[1]) / 198 < 10 < costs[1] / 100
    for number in (199, 0, 100, 101, 57):
        model.set_adapter(f"number{number}")
        assert same(bits(model), references(name)[number % 3])


# -- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.matrix("peft", row="transformers load", column="{name}")
@pytest.mark.matrix("peft", row="transformers set", column="{name}")
@pytest.mark.matrix("peft", row="transformers disable", column="{name}")
@pytest.mark.matrix("peft", row="transformers delete", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_load_adapter_of_transformers(name, saved, references, tmp_path):
    folder, expected = saved(name), references(name)
    model = attach_delta(base_of(folder), str(folder))
    assert same(bits(model), expected[None])
    model.load_adapter(str(folder / "masks/cluster_000"), "k0")
    assert same(bits(model), expected[0])
    model.load_adapter(str(folder), "k1", adapter_kwargs={"subfolder": "masks/cluster_001"})
    model(**_inputs(name))
    assert model.active_adapters() == ["k1"]
    assert same(bits(model), expected[1])
    model.set_adapter("k0")
    assert same(bits(model), expected[0])
    model.disable_adapters()
    assert same(bits(model), expected[None])
    model.enable_adapters()
    assert same(bits(model), expected[0])
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    original = folder / "masks/cluster_000/adapter_model.safetensors"
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == original.read_bytes()
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("k0")
    assert same(bits(model), expected[1])
    model.delete_adapter("k1")
    assert same(bits(model), expected[None])


def test_load_adapter_of_transformers_with_a_config(saved, references):
    folder = saved("bert")
    config = ClamuMaskConfig.from_pretrained(folder, subfolder="masks/cluster_002")
    model = base_of(folder)
    model.load_adapter(str(folder / "masks/cluster_002"), peft_config=config)
    assert same(bits(model), references("bert")[2])


def test_load_adapter_of_transformers_without_the_delta(saved, references):
    model = base_of(saved("bert"))
    with pytest.raises(CheckpointFormatError, match=r"attach_delta\(model, folder_or_hub_id\)"):
        model.load_adapter(str(saved("bert") / "masks/cluster_002"))
    assert same(bits(model), references("bert")[None])
    assert not hasattr(model, "clamu_adapters")


# -- where the delta comes from --------------------------------------------------------------------------------------


def test_an_adapter_saved_alone(saved, references, tmp_path):
    folder = saved("bert")
    _peft(folder, 1).save_pretrained(tmp_path / "a/b/alone")
    alone = tmp_path / "a/b/alone"
    with pytest.raises(CheckpointFormatError, match="holds no saved ClAMU model"):
        PeftModel.from_pretrained(base_of(folder), alone)
    attached = attach_delta(base_of(folder), str(folder))
    with pytest.raises(ValueError, match="attached already"):
        attach_delta(attached, str(folder))
    assert same(bits(PeftModel.from_pretrained(attached, alone)), references("bert")[1])
    beside = _peft(folder, 0)
    beside.load_adapter(alone, "alone")
    beside.set_adapter("alone")
    assert same(bits(beside), references("bert")[1])
    config = ClamuMaskConfig.from_pretrained(alone)
    config.name_delta(None)
    config.delta_name_or_path = str(folder)
    named = PeftModel.from_pretrained(base_of(folder), alone, config=config)
    assert same(bits(named), references("bert")[1])
    named.save_pretrained(tmp_path / "again")
    assert str(folder) not in (tmp_path / "again/adapter_config.json").read_text(encoding="utf-8")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _into_cache(cache, repo_id, folder):
    """Put a folder into a Hub cache, as if it had been downloaded."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    commit = digest_tensors(load_file(next(folder.rglob("*.safetensors"))))[:40]
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    return commit


def test_an_adapter_in_a_repo_of_its_own(saved, references, tmp_path, offline):
    folder, cache = saved("bert"), tmp_path / "hub"
    _into_cache(cache, "org/clamu", folder)
    attached = attach_delta(base_of(folder), "org/clamu", cache_dir=cache)
    model = PeftModel.from_pretrained(attached, folder / "masks/cluster_001")
    assert same(bits(model), references("bert")[1])
    model.save_pretrained(tmp_path / "mask")
    written = json.loads((tmp_path / "mask/adapter_config.json").read_bytes())
    assert written["delta_name_or_path"] == "org/clamu"
    assert "delta_revision" not in written  # a later delta of that repo refuses this mask
    assert str(tmp_path) not in json.dumps(written)
    _into_cache(cache, "org/mask", tmp_path / "mask")
    pulled = PeftModel.from_pretrained(base_of(folder), "org/mask", cache_dir=cache, token="hf_secret")
    assert same(bits(pulled), references("bert")[1])
    assert "hf_secret" not in repr(vars(pulled.peft_config["default"]))
    pulled.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/adapter_config.json").read_bytes()) == written
    other = _peft(saved("gpt2"), 0)
    with pytest.raises(StaleMaskError):
        other.load_adapter("org/mask", "pulled", cache_dir=cache)


def test_the_delta_of_a_repo_is_looked_for_beside_its_masks(saved, tmp_path, offline):
    commit = _into_cache(tmp_path, "org/clamu", saved("bert"))
    config = ClamuMaskConfig.from_pretrained("org/clamu", subfolder="masks/cluster_001", cache_dir=tmp_path)
    source = config.delta_source.pinned()
    assert (source.name_or_path, source.revision, source.subfolder) == ("org/clamu", commit, "")
    assert source.file("delta.safetensors").read_bytes() == (saved("bert") / "delta.safetensors").read_bytes()
    with pytest.raises(HubError, match=r"org/none.* could not be downloaded"):
        attach_delta(base_of(saved("bert")), "org/none", cache_dir=tmp_path)
    with pytest.raises(CheckpointFormatError, match="neither a folder nor the id"):
        attach_delta(base_of(saved("bert")), "no/such/folder", cache_dir=tmp_path)


def test_on_a_clamu_model(tiny, saved, references):
    folder, expected = saved("bert"), references("bert")
    model = ClamuModel.from_pretrained(folder)
    before = bits(model)
    model.set_cluster(0).set_cluster(None)  # from here on it has all that switching needs
    held = _bytes_of_tensors()
    adapters = _peft(folder, 1, base=model)
    assert same(bits(model), expected[1])
    # Its mask, and as it is served: the delta of the model is taken, not read again.
    assert _bytes_of_tensors() == held + 2 * adapters.base_model.model.clamu_adapters.delta.num_bytes
    with adapters.disable_adapter():
        assert same(bits(model), before)  # as it was before the first adapter
    model.set_cluster(2)
    adapters(**_inputs("bert"))
    assert same(bits(model), expected[1])  # the active adapter is what serves
    assert adapters.unload() is model
    assert same(bits(model), before)
    model.load_adapter(str(folder / "masks/cluster_002"))
    assert same(bits(model), expected[2])


def test_on_a_clamu_model_of_another_delta(tiny, saved):
    folder = saved("bert")
    model = ClamuModel.from_pretrained(folder).unmerge_task("user_1", data=tiny.tasks("text"))
    before = bits(model)
    with pytest.raises(StaleMaskError, match="another merged delta"):
        _peft(folder, 1, base=model)
    assert same(bits(model), before)
    assert not hasattr(model, "clamu_adapters")


def test_a_head_that_the_base_checkpoint_lacks(saved, references, tmp_path):
    # The saved model's own head goes to base_init.safetensors when the base comes from the Hub.
    folder = shutil.copytree(saved("bert"), tmp_path / "model")
    head = {n: v for n, v in base_of(folder).state_dict().items() if n.startswith("classifier.")}
    save_file(head, folder / "base_init.safetensors", metadata={"format": "pt"})

    def other(num_labels):
        model = transformers.BertForSequenceClassification.from_pretrained(
            folder / "base_model", num_labels=num_labels, ignore_mismatched_sizes=True
        )
        with torch.no_grad():
            model.classifier.weight.fill_(0.5)
        return model

    assert same(bits(_peft(folder, 1, base=other(3))), references("bert")[1])
    with pytest.raises(IncompatibleBaseError, match="num_labels="):
        _peft(folder, 1, base=other(2))
    changed = other(3)
    with torch.no_grad():
        changed.bert.pooler.dense.bias += 1
    with pytest.raises(IncompatibleBaseError, match="its digest differs"):
        _peft(folder, 1, base=changed)
    assert bool((changed.classifier.weight == 0.5).all())


# -- refused ---------------------------------------------------------------------------------------------------------


def _edited(folder, target, **changes):
    shutil.copytree(folder, target)
    for path in target.glob("masks/*/adapter_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}), encoding="utf-8")
    return target


@pytest.mark.parametrize("change", [{"delta_digest": "0" * 64}, {"alpha": 0.7}], ids=["delta", "alpha"])
def test_a_mask_of_another_delta(change, saved, references, tmp_path):
    stale = _edited(saved("bert"), tmp_path / "stale", **change)
    base = base_of(stale)
    with pytest.raises(StaleMaskError, match="from the same saved model"):
        _peft(stale, 1, base=base)
    assert same(bits(base), references("bert")[None])
    assert not hasattr(base, "clamu_adapters")
    model = _peft(saved("bert"), 0, base=base)
    with pytest.raises(StaleMaskError):
        model.load_adapter(stale, "stale", subfolder="masks/cluster_001")
    assert list(model.peft_config) == ["default"]
    assert same(bits(model), references("bert")[0])
    with pytest.raises(StaleMaskError):
        base.load_adapter(str(stale / "masks/cluster_001"), "stale")
    assert list(model.peft_config) == ["default"]


def test_another_base(saved):
    for wrong in (base_of(saved("gpt2")), base_of(saved("bert")).to(torch.bfloat16)):
        with pytest.raises(IncompatibleBaseError, match=r"its digest differs.*dtype=torch.float32"):
            _peft(saved("bert"), 1, base=wrong)
        assert not hasattr(wrong, "clamu_adapters")


def test_a_damaged_delta_or_mask(saved, tmp_path):
    folder = shutil.copytree(saved("bert"), tmp_path / "model")
    mask = load_file(folder / "masks/cluster_001/adapter_model.safetensors")[KEY]
    save_file({KEY: mask[:-1].clone()}, folder / "masks/cluster_001/adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        _peft(folder, 1)
    delta = load_file(folder / "delta.safetensors")
    next(iter(delta.values())).view(-1)[0] += 1
    save_file(delta, folder / "delta.safetensors")
    with pytest.raises(CheckpointFormatError, match="not the delta"):
        _peft(folder, 0)
    (folder / "delta.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match=r"has no delta\.safetensors"):
        _peft(folder, 0)
    base = base_of(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointFormatError):
        _peft(folder, 0, base=base)


def test_weights_changed_underneath(saved):
    model = _peft(saved("bert"), 0, "k0")
    model.load_adapter(saved("bert"), "k1", subfolder="masks/cluster_001")
    with torch.no_grad():
        model.get_parameter("base_model.model.classifier.bias").add_(1)
    changed = bits(model)
    for act in (
        lambda: model.base_model.set_adapter("k1"),
        lambda: model.base_model.disable_adapter_layers(),
        lambda: model.base_model.model.clamu_adapters.delete_adapter("k0"),
        lambda: model.merge_and_unload(),
        lambda: model.unload(),
    ):
        with pytest.raises(WeightsChangedError):
            act()
        assert same(bits(model), changed)
    layer = model.base_model.model.clamu_adapters
    assert (layer.active_adapter, layer.disable_adapters, sorted(layer.clamu_mask)) == (["k0"], False, ["k0", "k1"])


def test_batches_of_several_adapters(saved):
    model = _peft(saved("bert"), 0)
    for act in (
        lambda: model(**_inputs("bert"), adapter_names=["default", "__base__"]),
        lambda: model.base_model.model(**_inputs("bert"), adapter_names=["default", "__base__"]),
    ):
        with pytest.raises(ValueError, match="Group the samples by adapter"):
            act()
    lm = _peft(saved("gpt2"), 0)
    with pytest.raises(ValueError, match="Group the samples by adapter"):
        lm.generate(input_ids=torch.tensor([[1]]), adapter_names=["default"], max_new_tokens=1)


def test_training_and_two_at_once(saved, references):
    with pytest.raises(ValueError, match="ClamuTrainer learns them"):
        _peft(saved("bert"), 0, is_trainable=True)
    model = _peft(saved("bert"), 0, "k0")
    model.load_adapter(saved("bert"), "k1", subfolder="masks/cluster_001")
    with pytest.raises(ValueError, match="ClamuTrainer learns them"):
        model.set_requires_grad("k0")
    with pytest.raises(ValueError, match="One mask is active at a time"):
        model.base_model.set_adapter(["k0", "k1"])
    with pytest.raises(ValueError, match="no mask adapter 'k2'"):
        model.base_model.set_adapter("k2")
    assert same(bits(model), references("bert")[0])
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("other", peft.LoraConfig(target_modules=["query"]))


def test_config_survives_its_file(tmp_path):
    config = ClamuMaskConfig(cluster=4, delta_digest="d", alpha=0.5, base_model_name_or_path="org/base", revision="r")
    config.auto_mapping = {"base_model_class": "BertModel", "parent_library": "transformers"}
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(found, ClamuMaskConfig)
    assert found.to_dict() == config.to_dict()
    assert "peft_version" not in json.loads((tmp_path / "adapter_config.json").read_bytes())
    for path in (str(tmp_path), "/somewhere/base", "models\\base"):
        config.base_model_name_or_path = path
        written = config.to_file_dict()["base_model_name_or_path"]
        assert path not in written
        assert written.startswith("none: the base model is in base_model/")


@pytest.mark.parametrize("change", ["a bit", "padding", "zeros"])
def test_a_damaged_mask_is_refused_by_peft_too(tiny, tmp_path, change):
    """A file that PEFT loads by itself is compared with the digest in the adapter's configuration."""
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    tiny.train("text").save_pretrained(tmp_path / "m")
    path = tmp_path / "m/masks/cluster_000/adapter_model.safetensors"
    (key, bits), *_ = load_file(path).items()
    if change == "zeros":
        bits = torch.zeros_like(bits)
    else:
        bits[-1 if change == "padding" else 5] ^= 128 if change == "padding" else 1
    save_file({key: bits}, path, metadata={"format": "pt"})
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m/base_model")
    with pytest.raises(CheckpointFormatError, match=r"not those that were saved|unused bits"):
        PeftModel.from_pretrained(base, tmp_path / "m", subfolder="masks/cluster_000")(torch.tensor([[1, 2, 256]]))
