"""fp32, bfloat16 autocast over fp32 weights, and bfloat16 weights: the promise holds in each."""

from __future__ import annotations

import json

import pytest
import torch

from hf_clamu import ClamuModel, ClamuTrainer, RecipeError
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


def test_other_types_are_refused(tiny):
    with pytest.raises(RecipeError, match="dtype must be 'float32' or 'bfloat16', got 'float16'"):
        _build(tiny, "text", tiny.tasks("text"), "float16")
