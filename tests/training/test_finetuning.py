from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_clamu.errors import FixedPointOverflowError, RecipeError
from hf_clamu.exact import FixedPoint
from hf_clamu.tasks import collate
from hf_clamu.training import FinetuningArguments, MaskingArguments, TaskTrainer, Workspace, derive_seed, finetune
from hf_clamu.training.finetuning import learning_rate_factor

CODEC = FixedPoint()
ARGUMENTS = FinetuningArguments(
    finetune_steps=7,
    learning_rate=3e-3,
    batch_size=8,
    weight_decay=0.01,
    warmup_steps=2,
    lr_scheduler_type="cosine",
    max_grad_norm=0.5,
    seed=5,
)


def _reference(model, task, arguments, pad_token_id=0):
    """The same training as anybody would write it down."""
    parameters = [p for _, p in sorted(model.named_parameters())]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
        fused=True,
    )
    generator = torch.Generator().manual_seed(derive_seed(arguments.seed, "batches", task.task_id))
    torch.manual_seed(derive_seed(arguments.seed, "finetune", task.task_id))
    model.train()
    queue, norms = [], []
    for step in range(arguments.finetune_steps):
        if len(task.train) <= arguments.batch_size:
            batch = task.train
        else:
            queue = queue or torch.randperm(len(task.train), generator=generator).tolist()
            batch = [task.train[i] for i in queue[: arguments.batch_size]]
            queue = queue[arguments.batch_size :]
        warmup, total = arguments.warmup_steps, arguments.finetune_steps
        if step < warmup:
            factor = (step + 1) / warmup
        else:
            share = (step - warmup) / (total - warmup)
            cosine = 0.5 * (1.0 + math.cos(math.pi * share))
            factor = {"cosine": cosine, "linear": 1.0 - share, "constant": 1.0}[arguments.lr_scheduler_type]
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * factor
        model(**collate(batch, pad_token_id)).loss.backward()
        if arguments.max_grad_norm:
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}, norms


def _same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_finetuning_matches_a_plain_loop_bit_for_bit(build, encoded, vit):
    task = encoded["owner_02"]
    assert len(task.train) > ARGUMENTS.batch_size
    expected, norms = _reference(build["vit"](), task, ARGUMENTS)
    assert max(norms) > ARGUMENTS.max_grad_norm, "clipping must take part"
    vector = finetune(vit, task, ARGUMENTS, CODEC)
    assert _same({name: p.detach() for name, p in vit.parameters.items()}, expected)
    for name, theta in expected.items():
        exact = (theta - vit.theta_0[name]).double() * 2.0**28
        assert torch.equal(vector.steps[name].double(), exact.round())
    assert any(bound > 0 for bound in vector.bounds.values())


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_full_batches_without_clipping_match_too(build, completions, gpt2, schedule):
    arguments = FinetuningArguments(
        finetune_steps=4, learning_rate=1e-3, max_grad_norm=0, lr_scheduler_type=schedule, warmup_steps=1
    )
    expected, _ = _reference(build["gpt2"](), completions["ann"], arguments, 256)
    finetune(gpt2, completions["ann"], arguments, CODEC)
    assert _same({name: p.detach() for name, p in gpt2.parameters.items()}, expected)


def test_the_same_bits_whatever_came_before(build, encoded, vit):
    first = finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC)
    other = finetune(vit, encoded["owner_01"], ARGUMENTS, CODEC)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC)
    assert again.digest == first.digest
    assert _same(again.steps, first.steps)
    assert other.digest != first.digest
    fresh = finetune(Workspace(build["vit"]()), encoded["owner_00"], ARGUMENTS, CODEC)
    assert fresh.digest == first.digest


def test_the_global_generators_are_left_alone(encoded, vit):
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_other_tasks_do_not_show(build, images):
    def trained(tasks) -> str:
        trainer = TaskTrainer(Workspace(build["vit"]()), tasks, None, ARGUMENTS, CODEC)
        digests = {task_id: trainer.finetune(task_id).digest for task_id in tasks}
        return digests["owner_03"]

    assert trained(images) == trained(images.select(["owner_03"])) == trained(images.without(["owner_00", "owner_05"]))


def test_the_seed_counts_where_batches_are_drawn(encoded, vit):
    digests = {
        finetune(vit, encoded["owner_00"], replace(ARGUMENTS, finetune_steps=2, batch_size=4, seed=s), CODEC).digest
        for s in range(3)
    }
    assert len(digests) == 3


def test_gradients_that_the_model_came_with_do_not_count(build, encoded, vit):
    model = build["vit"]()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = finetune(Workspace(model), encoded["owner_00"], ARGUMENTS, CODEC)
    assert found.digest == finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC).digest


def test_a_model_with_dropout_is_reproducible(build, encoded, vit):
    arguments = FinetuningArguments(finetune_steps=3, learning_rate=1e-3)
    digests = set()
    for noise in (1, 2):
        torch.manual_seed(noise)
        workspace = Workspace(build["vit"](dropout=0.3))
        for _ in range(2):
            digests.add(finetune(workspace, encoded["owner_00"], arguments, CODEC).digest)
    assert len(digests) == 1
    assert finetune(vit, encoded["owner_00"], arguments, CODEC).digest not in digests
    expected, _ = _reference(build["vit"](dropout=0.3), encoded["owner_00"], arguments)
    assert _same({name: p.detach() for name, p in workspace.parameters.items()}, expected)


def test_frozen_parameters_take_no_part(build, encoded):
    workspace = Workspace(build["vit"](), freeze=["vit.*"])
    before = workspace.model.vit.embeddings.cls_token.detach().clone()
    vector = finetune(workspace, encoded["owner_00"], ARGUMENTS, CODEC)
    assert list(vector.steps) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(workspace.model.vit.embeddings.cls_token, before)


@pytest.mark.parametrize("learning_rate", [1e15, 1e30])
def test_a_diverged_task_is_named(encoded, vit, learning_rate):
    arguments = FinetuningArguments(finetune_steps=3, learning_rate=learning_rate)
    with pytest.raises(FixedPointOverflowError, match=r"Task 'owner_04'.*lower the learning rate"):
        finetune(vit, encoded["owner_04"], arguments, CODEC)
    # The next task is not hurt.
    vector = finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC)
    again = finetune(vit, encoded["owner_00"], ARGUMENTS, CODEC)
    assert vector.digest == again.digest


def test_nan_in_the_data_is_named(encoded, vit):
    import dataclasses

    task = encoded["owner_04"]
    broken = {**task.train[0], "pixel_values": torch.full_like(task.train[0]["pixel_values"], math.nan)}
    with pytest.raises(FixedPointOverflowError, match="Task 'owner_04'"):
        finetune(vit, dataclasses.replace(task, train=(broken,)), ARGUMENTS, CODEC)


def test_schedules():
    def factors(kind: str, warmup: int) -> list[float]:
        arguments = FinetuningArguments(finetune_steps=6, warmup_steps=warmup, lr_scheduler_type=kind)
        found = [learning_rate_factor(arguments, step) for step in range(6)]
        whole = FinetuningArguments(
            finetune_steps=6, warmup_steps=warmup, lr_scheduler_type=kind, learning_rate=0.01
        ).total_learning_rate
        assert whole == pytest.approx(0.01 * sum(found))
        return found

    assert factors("constant", 0) == [1.0] * 6
    assert factors("constant", 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors("linear", 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors("cosine", 2) == pytest.approx(
        [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert factors("linear", 6) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetune_steps": 0}, "finetune_steps must be at least 1, got 0."),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, or 'auto', got 0.0."),
        ({"learning_rate": math.inf}, "learning_rate must be above 0, or 'auto', got inf."),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, or 'auto', got nan."),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0."),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1."),
        ({"adam_beta1": 1.0}, "adam_beta1 must be in [0, 1), got 1.0."),
        ({"adam_beta2": -0.5}, "adam_beta2 must be in [0, 1), got -0.5."),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be above 0, got 0.0."),
        ({"warmup_steps": 21}, "warmup_steps must be from 0 to finetune_steps, got 21."),
        ({"warmup_steps": -1}, "warmup_steps must be from 0 to finetune_steps, got -1."),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be 0 or more, got -1.0."),
        ({"num_threads": 0}, "num_threads must be 1 to 1024, or unset, got 0."),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type must be one of constant, linear, cosine, got 'step'."),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(RecipeError) as error:
        FinetuningArguments(**values)
    assert str(error.value) == message


def test_a_rate_that_is_still_open_is_refused(encoded, vit):
    with pytest.raises(RecipeError, match="learning_rate is 'auto', which stands for a number"):
        finetune(vit, encoded["owner_00"], FinetuningArguments(), CODEC)


@pytest.mark.parametrize("name", ["mask_steps", "mask_batch_size"])
def test_masking_values_out_of_range_are_refused(name):
    with pytest.raises(RecipeError) as error:
        MaskingArguments(**{name: 0})
    assert str(error.value) == f"{name} must be at least 1, got 0."
