"""Vectors are lent."""

from __future__ import annotations

import torch

from hf_clamu.exact import FixedPoint
from hf_clamu.training import FinetuningArguments, TaskTrainer


def test_a_lent_vector_is_empty_after_its_memory_was_taken_back(images, vit):
    trainer = TaskTrainer(vit, images, None, FinetuningArguments(finetune_steps=1, learning_rate=1e-3), FixedPoint())
    first = trainer.vector("owner_00")
    digest, bounds = first.digest, dict(first.bounds)
    kept = {name: steps.clone() for name, steps in first.steps.items()}
    assert any(steps.any() for steps in kept.values())
    second = trainer.on(images.select(["owner_01"])).vector("owner_01")
    # What it was is known; what another task wrote to its memory is not taken for it.
    assert first.steps == {}
    assert (first.digest, first.bounds) == (digest, bounds)
    assert second.digest != digest
    again = trainer.finetune("owner_00")
    assert second.steps == {}
    assert again.digest == digest
    assert all(torch.equal(again.steps[name], kept[name]) for name in kept)
    trainer.release_vectors()
    assert again.steps == {}
