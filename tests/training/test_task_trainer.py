"""Tokenised tasks are kept up to a size, and vectors are lent."""

from __future__ import annotations

import torch

from hf_clamu.exact import FixedPoint
from hf_clamu.training import FinetuningArguments, TaskTrainer, task_trainer


def test_tokenised_tasks_are_kept_up_to_a_size(monkeypatch, images, vit):
    trainer = TaskTrainer(vit, images, None, FinetuningArguments(), FixedPoint())
    first = trainer.encoded("owner_00")
    assert trainer.encoded("owner_00") is first
    assert first.nbytes == sum(
        value.numel() * value.element_size()
        for example in first.train + first.validation
        for value in example.values()
    )
    second = trainer.encoded("owner_01")
    # Room for two tasks, not for three.
    larger = max(second.nbytes, images.encode("owner_02", None).nbytes)
    monkeypatch.setattr(task_trainer, "ENCODED_BYTES", first.nbytes + larger)
    assert trainer.encoded("owner_00") is first
    trainer.encoded("owner_02")
    assert trainer.encoded("owner_00") is first, "the least recently used one goes"
    again = trainer.encoded("owner_01")
    assert again is not second
    assert again.digest == second.digest
    for left, right in zip(again.train, second.train, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_lent_vector_is_empty_after_its_memory_was_taken_back(images, vit):
    trainer = TaskTrainer(vit, images, None, FinetuningArguments(finetune_steps=1), FixedPoint())
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
