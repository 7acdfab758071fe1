"""Clusters bit for bit, copies of a model, changed weights, export and pipelines."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClusterNotFoundError, TaskNotFoundError, WeightsChangedError


def _bits(model):
    return {name: parameter.detach().clone().view(torch.int32) for name, parameter in model.named_parameters()}


def _same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _base(folder):
    config = json.loads((folder / "config.json").read_bytes())
    return getattr(transformers, config["architecture"]).from_pretrained(folder / "base_model").state_dict()


def _reference(folder, cluster):
    """M0 + alpha * (mask * delta) of the files alone: sums in float64, then one rounding."""
    config = json.loads((folder / "config.json").read_bytes())
    base = _base(folder)
    delta = load_file(folder / "delta.safetensors")
    mask = None if cluster is None else load_file(folder / f"masks/cluster_{cluster:03d}/adapter_model.safetensors")
    alpha = config["global_alpha" if cluster is None else "alpha"]
    found = {}
    start = 0
    for name in sorted(delta):
        steps = delta[name]
        moved = alpha * steps.numpy().astype(np.float64) * 0.5 ** config["arguments"]["fraction_bits"]
        weights = base[name].numpy()
        served = (weights.astype(np.float64) + moved).astype(np.float32)
        if mask is not None:
            packed = mask["base_model.model.clamu_adapters.clamu_mask"].numpy()[start:]
            start += -(-steps.numel() // 8)
            bits = np.unpackbits(packed, bitorder="little")[: steps.numel()].reshape(weights.shape)
            served = np.where(bits == 1, served, weights)
        found[name] = torch.from_numpy(np.ascontiguousarray(served)).view(torch.int32)
    return found


@pytest.mark.parametrize("kind", ["text", "image"])
def test_clusters_are_the_reference_bit_for_bit(kind, saved_text, saved_image):
    folder = saved_text if kind == "text" else saved_image
    model = ClamuModel.from_pretrained(folder)
    expected = {cluster: _reference(folder, cluster) for cluster in (None, *range(len(model.clusters)))}
    assert len(expected) == 4
    assert not _same(expected[0], expected[1])
    assert not _same(expected[0], expected[None])
    assert _same(_bits(model), expected[None])
    for cluster in (0, 2, 1, 1, None, 2, None, 0):
        assert model.set_cluster(cluster) is model
        assert model.cluster == cluster
        assert _same(_bits(model), expected[cluster])
    model.set_base()
    base = _base(folder)
    assert all(torch.equal(bits, base[name].view(torch.int32)) for name, bits in _bits(model).items())


def test_cluster_of_a_task(model):
    assert sorted(task_id for members in model.clusters for task_id in members) == list(model.tasks)
    for number, members in enumerate(model.clusters):
        for task_id in members:
            assert model.cluster_of(task_id) == number
            assert model.set_cluster(task=task_id).cluster == number
    assert [members[0] for members in model.clusters] == sorted(members[0] for members in model.clusters)


def test_wrong_clusters_change_nothing(model):
    model.set_cluster(1)
    before = _bits(model)
    for wrong in (3, -1, 10**9, "1", "warm-wren"):
        with pytest.raises(ClusterNotFoundError, match=r"this model has 3, numbered from 0 to 2"):
            model.set_cluster(wrong)
    for wrong in (True, 1.0, [1]):
        with pytest.raises(TypeError, match="a name, a whole number or None"):
            model.set_cluster(wrong)
    with pytest.raises(TaskNotFoundError, match="No merged task is called 'usr_4'"):
        model.set_cluster(task="usr_4")
    with pytest.raises(TaskNotFoundError, match="user_9"):
        model.cluster_of("user_9")
    with pytest.raises(ValueError, match="not both"):
        model.set_cluster(0, task="user_1")
    assert model.cluster == 1
    assert _same(_bits(model), before)


def test_names_select_as_numbers_do(saved_text, model):
    assert len(set(model.cluster_names)) == len(model.clusters) == 3
    for number, name in enumerate(model.cluster_names):
        assert model.set_cluster(name).cluster == number
        assert _same(_bits(model), _reference(saved_text, number))
    with model.serving(model.cluster_names[0]):
        assert model.cluster == 0
    assert model.cluster == 2


def test_load_with_a_cluster(saved_text, model):
    by_number = ClamuModel.from_pretrained(saved_text, cluster=model.cluster_names[2])
    by_task = ClamuModel.from_pretrained(saved_text, task=model.clusters[2][0])
    assert by_number.cluster == by_task.cluster == 2
    assert _same(_bits(by_number), _reference(saved_text, 2))
    assert _same(_bits(by_number), _bits(by_task))
    with pytest.raises(ClusterNotFoundError):
        ClamuModel.from_pretrained(saved_text, cluster=3)


def test_the_class_keeps_the_name_of_its_base(model):
    assert type(model).__name__ == "GPT2ForSequenceClassification"
    assert isinstance(model, ClamuModel)
    assert isinstance(model, transformers.GPT2ForSequenceClassification)
    with pytest.raises(TypeError, match=r"ClamuModel.from_pretrained or ClamuTrainer.train"):
        ClamuModel().set_cluster(0)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_switch_on_their_own(model, saved_text, how):
    model.set_cluster(1)
    other = how(model)
    assert type(other) is type(model)
    assert other.cluster == 1
    other.set_cluster(2)
    model.set_cluster(0)
    assert _same(_bits(other), _reference(saved_text, 2))
    assert _same(_bits(model), _reference(saved_text, 0))
    assert _same(_bits(other.set_cluster(None)), _reference(saved_text, None))


def test_a_copy_unmerges_on_its_own(tiny, model):
    other = copy.deepcopy(model)
    before = _bits(model)
    other.unmerge_task("user_1", data=tiny.tasks("text"))
    assert (len(other.tasks), len(model.tasks)) == (4, 5)
    assert model.receipts == ()
    assert _same(_bits(model), before)


def test_an_optimizer_step_is_noticed(model, tmp_path):
    model.set_cluster(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[65, 66]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    changed = _bits(model)
    for act in (
        lambda: model.set_cluster(2),
        lambda: model.set_base(),
        lambda: model.save_pretrained(tmp_path / "m"),
        lambda: model.export(tmp_path / "plain"),
        lambda: model.unmerge_task("user_1"),
    ):
        with pytest.raises(WeightsChangedError, match=r"ClamuModel.from_pretrained"):
            act()
        assert _same(_bits(model), changed)
    assert list(tmp_path.iterdir()) == []
    assert model.cluster == 1


def test_a_cast_is_noticed(model, tmp_path):
    with pytest.raises(WeightsChangedError, match="bfloat16"):
        model.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("kind", "cluster"), [("text", None), ("text", 1), ("image", 2), ("image", None)])
def test_exports_are_plain_checkpoints(kind, cluster, saved_text, saved_image, tmp_path):
    folder = saved_text if kind == "text" else saved_image
    model = ClamuModel.from_pretrained(folder, cluster=0)
    model.export(tmp_path / "plain", cluster=cluster)
    assert model.cluster == 0
    assert _same(_bits(model), _reference(folder, 0))
    auto = transformers.AutoModelForSequenceClassification
    inputs = {"input_ids": torch.tensor([[72, 105, 33]])}
    if kind == "image":
        auto, inputs = transformers.AutoModelForImageClassification, {"pixel_values": torch.rand(2, 1, 8, 8)}
    plain = auto.from_pretrained(tmp_path / "plain")
    assert type(plain).__mro__[0] is type(model).__bases__[1]
    assert _same(_bits(plain), _reference(folder, cluster))
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model.set_cluster(cluster)(**inputs).logits)
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert names == ["config.json", "model.safetensors"] + ["tokenizer.json", "tokenizer_config.json"] * (
        kind == "text"
    )
    assert "clamu" not in (tmp_path / "plain/config.json").read_text(encoding="utf-8")


def test_export_to_a_folder_that_is_not_empty(model, tmp_path):
    (tmp_path / "plain").mkdir()
    model.export(tmp_path / "plain", task="user_1")
    with pytest.raises(FileExistsError, match="Export to a new folder"):
        model.export(tmp_path / "plain", task="user_1")


def test_a_failed_export_changes_nothing(model, tmp_path, monkeypatch):
    model.set_cluster(1)
    before = _bits(model)

    def fails(*args, **options):
        raise OSError("full")

    monkeypatch.setattr(transformers.GPT2ForSequenceClassification, "save_pretrained", fails)
    with pytest.raises(OSError, match="full"):
        model.export(tmp_path / "plain", cluster=0)
    assert model.cluster == 1
    assert _same(_bits(model), before)
    assert list(tmp_path.iterdir()) == []


def test_pipelines(saved_text, saved_image, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = ClamuModel.from_pretrained(saved_text)
    with caplog.at_level(logging.WARNING):
        pipe = transformers.pipeline("text-classification", model=model, tokenizer=model.processor, device="cpu")
        found = {}
        for cluster in (0, 1, None):
            model.set_cluster(cluster)
            found[cluster] = pipe("great 3 of 4")[0]
        image = ClamuModel.from_pretrained(saved_image)
        processor = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil(
            do_resize=False, do_normalize=False, do_convert_rgb=False
        )
        pixels = transformers.pipeline("image-classification", model=image, image_processor=processor, device="cpu")
        assert pixels.model is image
    assert {answer["label"] for answer in found.values()} <= {"bad", "good", "mixed"}
    assert len({answer["score"] for answer in found.values()}) == 3
    assert [record.getMessage() for record in caplog.records] == []


def test_generation(tiny, saved_text):
    model = tiny.train("lm")
    inputs = model.processor("great 3 of 4 is ", return_tensors="pt")
    answers = {}
    for cluster in (0, None):
        model.set_cluster(cluster)
        answers[cluster] = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert answers[cluster].shape == (1, inputs["input_ids"].shape[1] + 4)
