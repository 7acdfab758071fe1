"""Every architecture goes through the same steps: build, save, load, switch, unmerge, export."""

from __future__ import annotations

import pytest
import torch
import transformers
from catalogue import CATALOGUE, base_of, bits, same

from hf_clamu import ClamuModel, WeightsChangedError
from hf_clamu.tasks import traits_of
from hf_clamu.training import Workspace

TIED = ("gpt2", "gemma", "opt", "t5")
WITH_TOKENS = tuple(name for name, (kind, _) in CATALOGUE.items() if kind != "image")


def _state(model):
    """Parameters and buffers, as integers where they are numbers with a point."""
    state = {**model.state_dict(), **dict(model.named_buffers())}
    return {n: v.clone().view(torch.int32) if v.is_floating_point() else v.clone() for n, v in state.items()}


def _tasks(tiny, name):
    return tiny.tasks(CATALOGUE[name][0])


@pytest.mark.matrix("architectures", row="{name}", column="load")
@pytest.mark.parametrize("name", CATALOGUE)
def test_loaded_is_built(train, saved, name):
    built, loaded = train(name), ClamuModel.from_pretrained(saved(name))
    assert type(loaded) is type(built)
    assert loaded.clusters == built.clusters
    for cluster in (None, *range(len(built.clusters))):
        assert same(_state(loaded.set_cluster(cluster)), _state(built.set_cluster(cluster)))
    assert same(_state(loaded.set_base()), _state(base_of(saved(name))))


@pytest.mark.matrix("architectures", row="{name}", column="switch")
@pytest.mark.parametrize("name", CATALOGUE)
def test_clusters_are_the_reference_bit_for_bit(saved, references, name):
    model, expected = ClamuModel.from_pretrained(saved(name)), references(name)
    assert len(model.clusters) == 3
    assert same(bits(model), expected["global"])
    for cluster in (1, 0, None, 2, 2, 1, None, 0):
        assert same(bits(model.set_cluster(cluster)), expected["global" if cluster is None else cluster])
        if cluster == 2:
            assert same(bits(model.set_base()), expected[None])


@pytest.mark.matrix("architectures", row="{name}", column="unmerge")
@pytest.mark.parametrize("name", CATALOGUE)
def test_unmerged_is_built_without(tiny, train, saved, name, tmp_path):
    tasks = _tasks(tiny, name)
    gone = tasks.task_ids[1]
    ClamuModel.from_pretrained(saved(name)).unmerge_task(gone, data=tasks).save_pretrained(tmp_path / "unmerged")
    train(name, tasks.without(gone)).save_pretrained(tmp_path / "without")
    unmerged = tiny.digests(tmp_path / "unmerged")
    assert len(unmerged) >= 12
    assert unmerged == tiny.digests(tmp_path / "without")
    assert unmerged["delta.safetensors"] != tiny.digests(saved(name))["delta.safetensors"]


@pytest.mark.matrix("architectures", row="{name}", column="export")
@pytest.mark.parametrize("name", CATALOGUE)
def test_an_export_is_a_plain_model_of_the_same_bits(saved, name, tmp_path):
    model = ClamuModel.from_pretrained(saved(name))
    auto = getattr(transformers, traits_of(model.clamu_config.task_spec["kind"]).auto_class)
    for cluster in (0, None):
        model.export(tmp_path / f"plain-{cluster}", cluster=cluster)
        plain = auto.from_pretrained(tmp_path / f"plain-{cluster}")
        assert type(plain) is type(base_of(saved(name)))
        assert same(_state(plain), _state(model.set_cluster(cluster)))


@pytest.mark.matrix("architectures", row="{name}", column="features")
@pytest.mark.parametrize("name", CATALOGUE)
def test_tasks_are_clustered_by_features(saved, name):
    model = ClamuModel.from_pretrained(saved(name))
    assert model.clamu_config.arguments["clustering"] == "features"
    features = model.task_features
    assert features.shape == (len(model.tasks), 16)
    assert features.isfinite().all()
    assert len(features.unique(dim=0)) == len(model.tasks)


@pytest.mark.matrix("architectures", row="{name}", column="tied")
@pytest.mark.parametrize("name", TIED)
def test_tied_weights_are_merged_once(saved, name, tmp_path):
    model = ClamuModel.from_pretrained(saved(name), cluster=0)
    inner, outer = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert inner is outer
    named = [key for key, value in model.named_parameters(remove_duplicate=False) if value is inner]
    assert len(named) >= 2
    assert len(set(named) & set(model.ledger["parameters"])) == 1
    model.export(tmp_path / "plain", cluster=0)
    plain = type(base_of(saved(name))).from_pretrained(tmp_path / "plain")
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight


def test_the_others_tie_no_weights(saved):
    for name in sorted(set(CATALOGUE) - set(TIED)):
        model = base_of(saved(name))
        assert len(list(model.named_parameters())) == len(list(model.named_parameters(remove_duplicate=False))), name


@pytest.mark.matrix("architectures", row="{name}", column="resize")
@pytest.mark.parametrize("name", WITH_TOKENS)
def test_resized_embeddings_are_refused(saved, name, tmp_path):
    model = ClamuModel.from_pretrained(saved(name))
    model.resize_token_embeddings(260, mean_resizing=False)
    for act in (
        lambda: model.set_cluster(0),
        lambda: model.save_pretrained(tmp_path / "model"),
        lambda: model.export(tmp_path / "plain"),
    ):
        with pytest.raises(WeightsChangedError):
            act()
    assert list(tmp_path.iterdir()) == []


# -- batch normalisation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_resnet():
    """A base whose running statistics are not the first ones."""
    values = {key: value for key, value in CATALOGUE["resnet"][1].items() if key != "model_type"}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**values, num_labels=10))
    model.train()
    pixels = torch.linspace(-1, 3, 4 * 64).reshape(4, 1, 8, 8)
    for _ in range(3):
        model(pixels)
    return model.eval()


def _statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_running_statistics_stay_those_of_the_base(tiny, trained_resnet, tmp_path):
    tasks, expected = tiny.tasks("image"), _statistics(trained_resnet)
    assert any(name.endswith("running_var") and not bool((value == 1).all()) for name, value in expected.items())
    model = tiny.train("image", base=trained_resnet)
    assert same(_statistics(model), expected)
    model.save_pretrained(tmp_path / "model")
    loaded = ClamuModel.from_pretrained(tmp_path / "model")
    for cluster in (0, 1, 2, None):
        assert same(_statistics(loaded.set_cluster(cluster)), expected)
    loaded.export(tmp_path / "plain", cluster=1)
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plain")
    assert same(_statistics(plain), expected)
    loaded.unmerge_task(tasks.task_ids[1], data=tasks).save_pretrained(tmp_path / "unmerged")
    assert same(_statistics(loaded), expected)
    tiny.train("image", tasks.without(tasks.task_ids[1]), base=trained_resnet).save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "without")


def test_a_local_model_has_the_running_statistics_of_the_base(tiny, trained_resnet):
    expected = _statistics(trained_resnet)
    workspace = Workspace(trained_resnet)
    batch = workspace.batch(tiny.tasks("image").encode("owner_00", None).train[:4])
    with workspace.finetuning() as parameters:
        workspace.forward(batch).loss.backward()
        # What normalises learns as usual; what it normalises by does not.
        named = {id(parameter): name for name, parameter in trained_resnet.named_parameters()}
        learning = {named[id(parameter)] for parameter in parameters if parameter.grad is not None}
        assert {name for name, _ in trained_resnet.named_parameters() if "normalization" in name} <= learning
    assert same(_statistics(trained_resnet), expected)
    # Without the workspace one step would have moved them.
    trained_resnet.train()
    trained_resnet(**batch)
    moved = _statistics(trained_resnet)
    trained_resnet.eval()
    assert not same(moved, expected)
    trained_resnet.load_state_dict(expected, strict=False)
