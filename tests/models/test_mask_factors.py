"""Factors that are learned beside masks: in files, PEFT and exports as in the live model, and exact."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from catalogue import base_of, bits, same
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_clamu import CheckpointFormatError, ClamuModel, StaleMaskError
from hf_clamu.exact import canonical_json, unpack_mask
from hf_clamu.models.mask_adapter import attach_delta

pytestmark = [
    # PEFT and transformers warn of each other.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]
FACTORS = {"mask_factors": "tensor", "mask_gradient_norm": "unit", "mask_steps": 6, "global_scaling": 1.0}


@pytest.fixture(scope="module")
def saved_with(tiny, tmp_path_factory):
    """Gives the folder of a model with factors, without some tasks; not to be changed."""
    folders = {}

    def folder_of(kind, *without):
        if (kind, without) not in folders:
            tasks = tiny.tasks(kind)
            kept = tasks.select([task_id for task_id in tasks if task_id not in without])
            folders[kind, without] = tmp_path_factory.mktemp("factors") / kind
            tiny.train(kind, kept, **FACTORS).save_pretrained(folders[kind, without])
        return folders[kind, without]

    return folder_of


def factors_in(folder, cluster):
    path = folder / f"masks/cluster_{cluster:03d}/adapter_config.json"
    return json.loads(path.read_bytes()).get("factors")


def by_files(folder, cluster, dtype=torch.float32):
    """The weights of a cluster by its files alone, in float64 and rounded at the end."""
    config = json.loads((folder / "config.json").read_bytes())
    alpha, step = config["alpha"], 0.5 ** config["arguments"]["fraction_bits"]
    delta, base = load_file(folder / "delta.safetensors"), dict(base_of(folder).named_parameters())
    (packed,) = load_file(folder / f"masks/cluster_{cluster:03d}/adapter_model.safetensors").values()
    found, start = {}, 0
    for name in sorted(delta):
        scale = alpha * factors_in(folder, cluster)[name]
        moved = (base[name].detach().double() + delta[name].double() * (scale * step)).float()
        size = -(-delta[name].numel() // 8)
        mask = unpack_mask(packed[start : start + size], delta[name].shape)
        start += size
        found[name] = torch.where(mask, moved, base[name].detach()).to(dtype)
    return found


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def adapted(folder, cluster, name="default", model=None):
    model = base_of(folder) if model is None else model
    return PeftModel.from_pretrained(model, folder, name, subfolder=f"masks/cluster_{cluster:03d}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_every_cluster_is_what_its_files_say(saved_with, kind, dtype):
    folder = saved_with(kind)
    model = ClamuModel.from_pretrained(folder, dtype=dtype)
    numbers = range(len(model.clusters))
    assert len({value for number in numbers for value in factors_in(folder, number).values()}) > 10
    merged = weights(model)
    # By several ways: cluster to cluster changes scales, and the global model has one of its own.
    for number in (*numbers, None, *reversed(numbers)):
        model.set_cluster(number)
        expected = merged if number is None else by_files(folder, number, dtype)
        assert same(weights(model), expected)


def test_factors_are_float32_values_of_every_parameter(saved_with):
    folder = saved_with("text")
    names = json.loads((folder / "ledger.json").read_bytes())["parameters"]
    for number in range(3):
        factors = factors_in(folder, number)
        assert sorted(factors) == names
        assert all(float(np.float32(value)) == value and 0 <= value <= 8 for value in factors.values())


def test_nothing_of_them_is_written_without(saved_text):
    assert factors_in(saved_text, 0) is None
    assert b'factors":' not in (saved_text / "masks/cluster_000/adapter_config.json").read_bytes()


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_forgotten_is_built_without(tiny, saved_with, kind, tmp_path):
    gone = list(tiny.tasks(kind))[1:3]
    model = ClamuModel.from_pretrained(saved_with(kind))
    model.unmerge_task(gone, data=tiny.tasks(kind)).save_pretrained(tmp_path / "out")
    assert tiny.digests(tmp_path / "out") == tiny.digests(saved_with(kind, *gone))
    assert tiny.digests(tmp_path / "out") != tiny.digests(saved_with(kind))


def test_added_and_updated_is_built_with(tiny, saved_with, tmp_path):
    tasks = tiny.tasks("text")
    gone = list(tasks)[2]
    model = ClamuModel.from_pretrained(saved_with("text", gone))
    model.add_task(tasks.select([gone]), data=tasks).save_pretrained(tmp_path / "added")
    assert tiny.digests(tmp_path / "added") == tiny.digests(saved_with("text"))
    model.update_task(tasks.select([gone]), data=tasks).save_pretrained(tmp_path / "updated")
    assert tiny.digests(tmp_path / "updated") == tiny.digests(saved_with("text"))


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
def test_peft_serves_the_same_bits(saved_with, kind):
    folder = saved_with(kind)
    before = bits(base_of(folder))
    model = adapted(folder, 0, "0")
    for number in (1, 2):
        model.load_adapter(folder, str(number), subfolder=f"masks/cluster_{number:03d}")
    for number in (2, 0, 1, 0):
        model.set_adapter(str(number))
        assert same(bits(model), {name: one.view(torch.int32) for name, one in by_files(folder, number).items()})
    assert same(bits(model.unload()), before)


def test_an_adapter_that_is_saved_again_keeps_its_factors(saved_with, tmp_path):
    folder = saved_with("text")
    adapted(folder, 1).save_pretrained(tmp_path / "alone")
    config = json.loads((tmp_path / "alone/adapter_config.json").read_bytes())
    assert config["factors"] == factors_in(folder, 1)
    base = attach_delta(base_of(folder), str(folder))
    model = PeftModel.from_pretrained(base, tmp_path / "alone")
    assert same(bits(model), {name: one.view(torch.int32) for name, one in by_files(folder, 1).items()})


def test_on_a_live_model_and_by_transformers(saved_with):
    folder = saved_with("text")
    expected = {name: one.view(torch.int32) for name, one in by_files(folder, 2).items()}
    assert same(bits(adapted(folder, 2, model=ClamuModel.from_pretrained(folder))), expected)
    model = attach_delta(base_of(folder), str(folder))
    model.load_adapter(str(folder), adapter_kwargs={"subfolder": "masks/cluster_002"})
    assert same(bits(model), expected)


@pytest.mark.parametrize("number", [0, 2])
def test_an_export_has_the_weights_of_the_cluster(saved_with, number, tmp_path):
    folder = saved_with("text")
    ClamuModel.from_pretrained(folder).export(tmp_path / "plain", cluster=number)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert same(weights(model), by_files(folder, number))


def changed_copy(saved, folder, change):
    """A copy of a saved model with other factors of its second cluster."""
    shutil.copytree(saved, folder)
    path = folder / "masks/cluster_001/adapter_config.json"
    values = json.loads(path.read_bytes())
    path.write_bytes(canonical_json({**values, "factors": change(values["factors"])}))
    return folder


def _one_other(factors):
    name = sorted(factors)[0]
    return {**factors, name: float(np.float32(factors[name] + 0.25))}


def _one_less(factors):
    return {name: factors[name] for name in sorted(factors)[1:]}


def _one(value):
    return lambda factors: {**factors, sorted(factors)[0]: value}


@pytest.mark.parametrize(
    "change",
    [
        _one_less,
        _one(0.1),
        _one(-1.0),
        _one(float("1e39")),
        _one("1.0"),
        _one(True),
        lambda factors: [1.0],
        lambda _: None,
    ],
    ids=["less", "no-float32", "below-0", "too-large", "text", "bool", "list", "none"],
)
def test_factors_that_no_mask_has_are_refused(tiny, saved_with, change, tmp_path):
    folder = changed_copy(saved_with("text"), tmp_path / "model", change)
    tiny.reseal(folder)
    with pytest.raises(CheckpointFormatError, match=r"factors .*cluster_001"):
        ClamuModel.from_pretrained(folder)
    if factors_in(folder, 1) is not None:
        with pytest.raises(CheckpointFormatError, match="factors"):
            adapted(folder, 1)


@pytest.mark.parametrize("change", [_one_other, lambda _: None], ids=["other", "none"])
def test_peft_refuses_other_factors_than_were_saved(saved_with, change, tmp_path):
    folder = changed_copy(saved_with("text"), tmp_path / "model", change)
    with pytest.raises(CheckpointFormatError, match="digest differs"):
        adapted(folder, 1)


def test_a_mask_of_before_a_request_is_refused(tiny, saved_with, tmp_path):
    gone = next(iter(tiny.tasks("text")))
    old, new = saved_with("text"), saved_with("text", gone)
    base = attach_delta(base_of(new), str(new))
    adapted(old, 0).save_pretrained(tmp_path / "alone")
    with pytest.raises(StaleMaskError):
        PeftModel.from_pretrained(base, tmp_path / "alone")


def test_factors_are_counted(tiny, saved_with):
    with_factors, without = (
        tiny.train("text", **{**FACTORS, **changes}) for changes in ({}, {"mask_factors": "none"})
    )
    states = with_factors.merged.state, without.merged.state
    assert states[0].num_bytes - states[1].num_bytes == 4 * 3 * len(states[0].delta)


def test_the_card_counts_their_bytes(saved_with, saved_text):
    names = json.loads((saved_with("text") / "ledger.json").read_bytes())["parameters"]
    counted = f"| factors | {4 * 3 * len(names):,} bytes, four per tensor and cluster |"
    assert counted in (saved_with("text") / "README.md").read_text(encoding="utf-8")
    assert "| factors |" not in (saved_text / "README.md").read_text(encoding="utf-8")
