"""fp32, bfloat16 autocast over fp32 weights, and bfloat16 weights: the promise holds in each."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from catalogue import CATALOGUE

from hf_clamu import ClamuModel, ClamuTrainer, RecipeError
from hf_clamu.tasks import traits_of
from hf_clamu.training import silent_progress


def _build(tiny, kind, tasks, dtype, **settings):
    return ClamuTrainer(
        tiny.config(kind),
        tasks,
        tiny.arguments(**settings),
        processing_class=tiny.processor(kind),
        dtype=dtype,
        progress=silent_progress,
    ).train()


@pytest.mark.parametrize("kind", ["text", "lm", "image"])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [("bfloat16", {}), (None, {"bf16": True}), ("bfloat16", {"bf16": True, "localization": "tall"})],
    ids=["bf16 weights", "autocast", "both"],
)
def test_unmerging_is_exact(tiny, tmp_path, kind, dtype, settings):
    tasks = tiny.tasks(kind)
    first = tasks.task_ids[1]
    _build(tiny, kind, tasks, dtype, **settings).save_pretrained(tmp_path / "m")
    _build(tiny, kind, tasks.without(first), dtype, **settings).save_pretrained(tmp_path / "expected")
    recorded = json.loads((tmp_path / "m/config.json").read_bytes())
    assert recorded["base_model"]["dtype"] == (dtype or "float32")
    assert recorded["arguments"]["bf16"] == settings.get("bf16", False)
    model = ClamuModel.from_pretrained(tmp_path / "m")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype or "float32")}
    model.unmerge_task(first, data=tasks).save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")


def test_precisions_are_different_models(tiny):
    deltas = [
        _build(tiny, "text", tiny.tasks("text"), dtype, bf16=bf16).clamu_config.delta_digest
        for dtype, bf16 in ((None, False), (None, True), ("bfloat16", False))
    ]
    assert len(set(deltas)) == 3


@pytest.mark.parametrize("base", ["config", "folder", "memory"])
@pytest.mark.parametrize("name", ["llama", "modernbert"])
def test_half_precision_answers_the_same_after_loading(tiny, tmp_path, name, base):
    # Their rotary positions have frequencies that no checkpoint holds; rounded, they are other positions.
    kind, config = CATALOGUE[name]
    tasks, given = tiny.tasks(kind), config
    if base != "config":
        auto = getattr(transformers, traits_of(tasks.spec.kind).auto_class)
        labels = {"num_labels": tasks.num_labels} if tasks.num_labels else {}
        made = auto.from_config(transformers.AutoConfig.for_model(**config, **labels))
        made.save_pretrained(tmp_path / "base")
        given = tmp_path / "base"
        if base == "memory":
            given = type(made).from_pretrained(given, dtype=torch.bfloat16)
    built = ClamuTrainer(
        given,
        tasks,
        tiny.arguments(),
        processing_class=tiny.processor(kind),
        dtype="bfloat16",
        progress=silent_progress,
    ).train()
    built.save_pretrained(tmp_path / "m")
    loaded = ClamuModel.from_pretrained(tmp_path / "m")
    ids = torch.arange(2, 42).reshape(1, 40)
    assert torch.equal(built.set_cluster(1)(input_ids=ids).logits, loaded.set_cluster(1)(input_ids=ids).logits)
    # A request trains on the same model that the build trained on.
    one = loaded.unmerge_task(tasks.task_ids[0], data=tasks)
    assert torch.equal(one(input_ids=ids).logits, built.unmerge_task(tasks.task_ids[0])(input_ids=ids).logits)


def test_other_types_are_refused(tiny):
    with pytest.raises(RecipeError, match="dtype must be 'float32' or 'bfloat16', got 'float16'"):
        _build(tiny, "text", tiny.tasks("text"), "float16")


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_batch_norm_keeps_its_statistics(tiny, tmp_path, dtype):
    """They are buffers, which no task vector holds: every task, and what is left, has those of the base model."""
    kind, config = CATALOGUE["resnet"]
    made = transformers.AutoConfig.for_model(**config, num_labels=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = transformers.ResNetForImageClassification(made)
        for name, buffer in base.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)  # unlike those that a fresh layer has
    base.save_pretrained(tmp_path / "base")
    expected = dict(base.to(getattr(torch, dtype or "float32")).named_buffers())
    tasks = tiny.tasks(kind)
    gone = tasks.task_ids[1]

    def built(some):
        arguments = tiny.arguments()
        return ClamuTrainer(tmp_path / "base", some, arguments, dtype=dtype, progress=silent_progress).train()

    built(tasks).save_pretrained(tmp_path / "m")
    built(tasks.without(gone)).save_pretrained(tmp_path / "expected")
    model = ClamuModel.from_pretrained(tmp_path / "m")
    model.unmerge_task(gone, data=tasks).save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "expected")
    assert model.verify(data=tasks)
    for cluster in (0, None):
        found = dict(model.set_cluster(cluster).named_buffers())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


# -- adapters on a base of few digits --------------------------------------------------------------------------------


def _build_lora(tiny, tasks, merging=None):
    return ClamuTrainer(
        tiny.config("lm"),
        tasks,
        tiny.arguments(),
        processing_class=tiny.processor("lm"),
        dtype="bfloat16",
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]},
        peft_merging=merging,
        progress=silent_progress,
    ).train()


def _types(model):
    return {"lora" in name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
def test_an_adapter_is_in_float32_and_unmerging_is_exact(merging, tiny, tmp_path):
    tasks = tiny.tasks("lm")
    first = tasks.task_ids[1]
    built = _build_lora(tiny, tasks, merging)
    assert _types(built) == ({} if merging == "product" else {True: torch.float32}) | {False: torch.bfloat16}
    built.save_pretrained(tmp_path / "m")
    _build_lora(tiny, tasks.without(first), merging).save_pretrained(tmp_path / "expected")
    model = ClamuModel.from_pretrained(tmp_path / "m")
    assert _types(model) == _types(built)
    ids = torch.arange(2, 22).reshape(1, 20)
    for cluster in (0, 1, None):
        with torch.no_grad(), built.serving(cluster), model.serving(cluster):
            assert torch.equal(built.eval()(ids).logits, model(ids).logits)
    model.unmerge_task(first, data=tasks).save_pretrained(tmp_path / "after")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "expected")


def test_a_model_whose_adapter_is_in_the_type_of_its_base_stays_so(tiny, tmp_path, monkeypatch):
    tasks = tiny.tasks("lm")
    first = tasks.task_ids[1]
    with monkeypatch.context() as before:  # as releases did that cast no adapter
        before.setattr("hf_clamu.base_models.adapters.insertion._widen", lambda model, base: None)
        _build_lora(tiny, tasks).save_pretrained(tmp_path / "m")
        _build_lora(tiny, tasks.without(first)).save_pretrained(tmp_path / "expected")
    model = ClamuModel.from_pretrained(tmp_path / "m")
    assert set(_types(model).values()) == {torch.bfloat16}
    model.unmerge_task(first, data=tasks).save_pretrained(tmp_path / "after")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "expected")
