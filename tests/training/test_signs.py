"""Finetuning under fixed signs: every step of every task keeps to them."""

from __future__ import annotations

import pytest
import torch

from hf_clamu.errors import FixedPointOverflowError
from hf_clamu.exact import FixedPoint
from hf_clamu.training import FinetuningArguments, FixedSigns, Workspace, finetune

CODEC = FixedPoint()
ARGUMENTS = FinetuningArguments(finetune_steps=6, learning_rate=3e-3, batch_size=8, weight_decay=0.1, seed=5)


def test_signs_follow_from_seed_and_name_alone(build):
    theta_0 = Workspace(build["vit"]()).theta_0
    signs = FixedSigns(theta_0, 5)
    some = {name: torch.full_like(theta, 7.0) for name, theta in list(theta_0.items())[3:]}
    for name in some:
        assert torch.equal(FixedSigns(some, 5).of(name), signs.of(name))
        assert signs.of(name).shape == theta_0[name].shape
    name = max(theta_0, key=lambda name: theta_0[name].numel())
    assert set(signs.of(name).unique().tolist()) == {-1, 1}
    assert abs(signs.of(name).double().mean()) < 0.2
    assert not torch.equal(FixedSigns(theta_0, 6).of(name), signs.of(name))
    other = {"another name": theta_0[name]}
    assert not torch.equal(FixedSigns(other, 5).of("another name"), signs.of(name))


def test_signs_leave_the_global_generator_alone(vit):
    before = torch.get_rng_state()
    FixedSigns(vit.theta_0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_projection_puts_back_what_moved_against_its_sign():
    theta_0 = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, -0.5, -0.5] * 50)}
    signs = FixedSigns(theta_0, 0)
    moved = theta_0["w"] + torch.tensor([0.5, -0.5, 0.0, 1e-7, -2.0, 2.0] * 50)
    parameters = {"w": moved.clone()}
    signs.project_(parameters)
    agrees = (moved - theta_0["w"]) * signs.of("w") >= 0
    assert 0 < int(agrees.sum()) < len(moved)
    assert torch.equal(parameters["w"], torch.where(agrees, moved, theta_0["w"]))


@pytest.mark.parametrize("bf16_weights", [False, True])
@pytest.mark.parametrize("kind", ["image", "lm"])
def test_a_task_vector_agrees_with_the_signs(build, encoded, completions, kind, bf16_weights):
    model = build["vit"]() if kind == "image" else build["gpt2"]()
    workspace = Workspace(model.bfloat16() if bf16_weights else model, pad_token_id=256)
    task = encoded["owner_02"] if kind == "image" else completions["ann"]
    signs = FixedSigns(workspace.theta_0, ARGUMENTS.seed)
    if bf16_weights and kind == "image":
        workspace.bf16 = True  # its pixels are float32
    vector = finetune(workspace, task, ARGUMENTS, CODEC, signs=signs)
    free = finetune(workspace, task, ARGUMENTS, CODEC)
    share = []
    for name, n in vector.steps.items():
        assert bool((n * signs.of(name) >= 0).all()), name
        assert torch.equal(n * signs.of(name) > 0, n != 0)
        share.append((int((n != 0).sum()), int((free.steps[name] != 0).sum())))
    kept, moved = map(sum, zip(*share, strict=True))
    assert 0.2 * moved < kept < 0.9 * moved


def test_every_step_is_projected_and_the_optimizer_is_left_alone(build, encoded):
    """The same training as anybody would write it down."""
    from hf_clamu.tasks import collate
    from hf_clamu.training import derive_seed, sample_batches

    task, workspace = encoded["owner_02"], Workspace(build["vit"]())
    signs = FixedSigns(workspace.theta_0, ARGUMENTS.seed)
    model = build["vit"]().train()
    parameters = dict(sorted(model.named_parameters()))
    theta_0 = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3, weight_decay=0.1, fused=True)
    order = derive_seed(ARGUMENTS.seed, "batches", task.task_id)
    for examples in sample_batches(task.train, 8, 6, order):
        model(**collate(examples, 0)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), ARGUMENTS.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in parameters.items():
                tau = p - theta_0[name]
                p.copy_(torch.where(tau * signs.of(name) > 0, p, theta_0[name]))
    finetune(workspace, task, ARGUMENTS, CODEC, signs=signs)
    for name, p in parameters.items():
        assert torch.equal(workspace.parameters[name], p), name


def test_a_training_that_diverges_is_noticed(vit, encoded):
    arguments = FinetuningArguments(finetune_steps=4, learning_rate=1e30, max_grad_norm=0, batch_size=8)
    signs = FixedSigns(vit.theta_0, 0)
    with pytest.raises(FixedPointOverflowError, match="owner_00"):
        finetune(vit, encoded["owner_00"], arguments, CODEC, signs=signs)
