"""Comparing methods leaves the base model as it came, whatever happens."""

from __future__ import annotations

import pytest
import torch

from hf_clamu.base_models.loading import load_base
from hf_clamu.evaluation import compare_methods


def _compared(tiny, held_out, methods=("global", "emr")):
    tasks = tiny.tasks("text")
    base = load_base(tiny.config("text"), tasks.spec, num_labels=tasks.num_labels, processor=tiny.processor("text"))
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    rows = {task_id: tasks.encode(task_id, base.processor).validation for task_id in tasks}
    clusters = (tasks.task_ids[:2], tasks.task_ids[2:])
    frozen = tiny.arguments(freeze=("*.bias",))
    try:
        return compare_methods(base, tasks, clusters, frozen, held_out(rows), methods=methods)
    finally:
        after = base.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(parameter.requires_grad for parameter in base.model.parameters())
        assert not any(module.training for module in base.model.modules())


def test_every_method_has_a_score(tiny):
    found = _compared(tiny, lambda rows: rows)
    assert list(found) == ["base", "local", "global", "emr"]
    assert all(0 <= one.score <= 1 for one in found.values())


@pytest.mark.parametrize("number", [0, 3])
def test_the_base_model_is_given_back_after_an_error(tiny, number):
    class Missing(dict):
        """Rows that are gone the second time: after the base model, while local models are measured."""

        def __getitem__(self, task_id):
            rows = super().__getitem__(task_id)
            if task_id == f"user_{number}":
                del self[task_id]
            return rows

    with pytest.raises(KeyError, match=f"user_{number}"):
        _compared(tiny, Missing)
