from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import collate
from hf_clamu.training import MaskingArguments, Workspace, train_mask
from hf_clamu.training.batching import sample_batches
from hf_clamu.training.masking import MaskFactors, MaskStep, scaling_share

SEED = 11
_GRID = 2.0**-14


def _on_grid(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor / _GRID).round() * _GRID


@pytest.fixture
def workspace(build) -> Workspace:
    """Weights with few digits, so that `M0 + alpha * tau` and the difference back are exact in fp32."""
    model = build["vit"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_on_grid(parameter))
    return Workspace(model)


@pytest.fixture
def delta(workspace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, theta in workspace.theta_0.items():
        draws = torch.randn(theta.shape, generator=generator) * 0.05
        found[name] = _on_grid(draws) * (torch.rand(theta.shape, generator=generator) > 0.2)
        assert torch.equal((theta + found[name]) - theta, found[name])
    return found


def _theta_1(workspace, delta):
    return {name: theta + delta[name] for name, theta in workspace.theta_0.items()}


def _reference(model, theta_0, delta, examples, arguments, eta=1.0):
    """Algorithm 1, lines 17-25, with the straight-through estimator as a function of the mask."""
    scores = {name: torch.zeros_like(theta) for name, theta in theta_0.items()}
    for batch in sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, SEED):
        mask = {name: (score > 0).float().requires_grad_() for name, score in scores.items()}
        weights = {name: theta_0[name] + mask[name] * delta[name] for name in theta_0}
        loss = functional_call(model, weights, kwargs=collate(batch, 0)).loss
        for (name, score), gradient in zip(
            scores.items(), torch.autograd.grad(loss, list(mask.values())), strict=True
        ):
            scores[name] = score - eta * gradient
    return {name: score > 0 for name, score in scores.items()}


def _literal(model, theta_0, delta, examples, arguments):
    """Algorithm 1, lines 17-25, as it is written: torch's optimizer on the scores, autograd through the sigmoid.

    Returns the scores, in float64, so that `sigmoid(s) > 0.5` holds also for scores near 0, and the factors, which
    torch's Adam moves if there are any. With unit gradients, both gradients are divided by the length of `dL/dM`.
    """
    model = model.double()
    scores = {name: torch.zeros_like(theta, dtype=torch.float64).requires_grad_() for name, theta in theta_0.items()}
    optimizer = torch.optim.SGD(scores.values(), lr=arguments.mask_learning_rate)
    factors = {name: torch.ones((), dtype=torch.float64).requires_grad_() for name in theta_0}
    adam = torch.optim.Adam(factors.values(), lr=0.05, betas=(0.9, 0.95), eps=1e-8)
    for step, batch in enumerate(sample_batches(examples, arguments.mask_batch_size, arguments.mask_steps, SEED)):
        alpha = scaling_share(arguments, step)
        weights = {}
        for name, score in scores.items():
            chance = score.sigmoid()
            mask = (chance > 0.5).double() + chance - chance.detach()  # straight through
            weights[name] = theta_0[name].double() + factors[name] * mask * alpha * delta[name].double()
            weights[name].retain_grad()
        inputs = {
            key: value.double() if value.is_floating_point() else value for key, value in collate(batch, 0).items()
        }
        optimizer.zero_grad()
        adam.zero_grad()
        functional_call(model, weights, kwargs=inputs).loss.backward()
        if arguments.mask_gradient_norm == "unit":
            length = torch.cat([weight.grad.flatten() for weight in weights.values()]).norm()
            for value in (*scores.values(), *factors.values()):
                value.grad.div_(length)
        optimizer.step()
        if arguments.mask_factors == "tensor":
            adam.step()
            for factor in factors.values():
                factor.data.clamp_(0.0, 8.0)
    return {n: score.detach() for n, score in scores.items()}, {n: factor.item() for n, factor in factors.items()}


def _same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def _examples(encoded):
    return encoded["owner_00"].train + encoded["owner_01"].train


@pytest.mark.parametrize("batch_size", [8, 1000])
def test_masks_match_the_algorithm_of_the_paper(build, workspace, delta, encoded, batch_size):
    arguments = MaskingArguments(mask_steps=6, mask_batch_size=batch_size)
    examples = _examples(encoded)
    found = train_mask(workspace, _theta_1(workspace, delta), examples, arguments, SEED).bits
    expected = _reference(build["vit"](), workspace.theta_0, delta, examples, arguments)
    assert _same(found, expected)
    kept = sum(int(mask.sum()) for mask in found.values())
    assert 0 < kept < workspace.num_parameters
    # A constant learning rate changes no sign.
    assert _same(_reference(build["vit"](), workspace.theta_0, delta, examples, arguments, eta=2.0**-9), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_learning_rate": 1.0},
        {"mask_learning_rate": 3000.0},
        {"mask_learning_rate": 300.0, "mask_scaling_schedule": "linear"},
        {"mask_learning_rate": 300.0, "mask_gradient_norm": "unit"},
        {"mask_learning_rate": 1e-3, "mask_scaling_schedule": "linear", "mask_gradient_norm": "unit"},
    ],
    ids=["small", "large", "ramp", "unit", "unit ramp"],
)
def test_masks_with_a_rate_match_the_algorithm_as_it_is_written(build, workspace, delta, encoded, settings):
    arguments = MaskingArguments(mask_steps=6, mask_batch_size=8, **settings)
    examples = _examples(encoded)
    found = train_mask(workspace, _theta_1(workspace, delta), examples, arguments, SEED).bits
    scores, _ = _literal(build["vit"](), workspace.theta_0, delta, examples, arguments)
    # Ours are float32, so the sign of a score near 0 may differ.
    largest = max(float(score.abs().max()) for score in scores.values())
    for name, score in scores.items():
        differs = found[name] != (score > 0)
        assert not (differs & (score.abs() > 1e-4 * largest)).any()
    assert 0 < sum(int(mask.sum()) for mask in found.values()) < workspace.num_parameters


@pytest.mark.parametrize("norm", ["raw", "unit"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_factors_match_autograd_and_adam(build, workspace, delta, encoded, schedule, norm):
    settings = {"mask_learning_rate": 1.0, "mask_scaling_schedule": schedule, "mask_factors": "tensor"}
    settings["mask_gradient_norm"] = norm
    arguments = MaskingArguments(mask_steps=12, mask_batch_size=8, **settings)
    examples = _examples(encoded)
    found = train_mask(workspace, _theta_1(workspace, delta), examples, arguments, SEED)
    scores, factors = _literal(build["vit"](), workspace.theta_0, delta, examples, arguments)
    largest = max(float(score.abs().max()) for score in scores.values())
    for name, score in scores.items():
        differs = found.bits[name] != (score > 0)
        assert not (differs & (score.abs() > 1e-3 * largest)).any()
    assert found.factors == pytest.approx(factors, abs=5e-3)
    # They went somewhere, not all the same way.
    assert min(factors.values()) < 0.9 < 1.1 < max(factors.values())


def test_factors_stay_in_their_bounds_and_a_gradient_that_is_no_number_moves_none():
    factors = MaskFactors(["a", "b", "c", "d"])
    for _ in range(200):
        gradients = {"a": 1.0, "b": -1e20, "c": math.nan}
        factors.move({name: torch.tensor(value, dtype=torch.float64) for name, value in gradients.items()})
    assert factors.values == {"a": 0.0, "b": 8.0, "c": 1.0, "d": 1.0}
    factors.move({})


def test_masks_without_factors_have_none(workspace, delta, encoded):
    arguments = MaskingArguments(mask_steps=2)
    assert train_mask(workspace, _theta_1(workspace, delta), _examples(encoded), arguments, SEED).factors is None


def test_the_live_model_holds_the_mask_with_its_factors(workspace, delta, encoded):
    theta_1 = _theta_1(workspace, delta)
    arguments = MaskingArguments(mask_steps=5, mask_factors="tensor")
    found = train_mask(workspace, theta_1, _examples(encoded), arguments, SEED)
    for name, parameter in workspace.parameters.items():
        low = workspace.theta_0[name]
        expected = torch.where(found.bits[name], low + found.factors[name] * (theta_1[name] - low), low)
        torch.testing.assert_close(parameter.detach(), expected)


def test_unit_gradients_give_other_masks(workspace, delta, encoded):
    found = {}
    for norm in ("raw", "unit"):
        arguments = MaskingArguments(mask_steps=8, mask_batch_size=8, mask_gradient_norm=norm)
        found[norm] = train_mask(workspace, _theta_1(workspace, delta), _examples(encoded), arguments, SEED).bits
    assert not _same(found["raw"], found["unit"])


def test_a_small_rate_gives_the_masks_without_one_and_a_large_one_others(workspace, delta, encoded):
    theta_1, examples = _theta_1(workspace, delta), _examples(encoded)

    def learned(rate):
        return train_mask(
            workspace, theta_1, examples, MaskingArguments(mask_steps=6, mask_learning_rate=rate), SEED
        ).bits

    without = learned(None)
    assert _same(learned(2.0**-10), without)
    assert not _same(learned(2.0**14), without)


def test_a_ramp_ends_at_alpha_and_changes_the_masks(workspace, delta, encoded):
    theta_1, examples = _theta_1(workspace, delta), _examples(encoded)
    arguments = MaskingArguments(mask_steps=6, mask_batch_size=8, mask_scaling_schedule="linear")
    ramped = train_mask(workspace, theta_1, examples, arguments, SEED).bits
    for name, parameter in workspace.parameters.items():
        assert torch.equal(parameter, torch.where(ramped[name], theta_1[name], workspace.theta_0[name]))
    constant = train_mask(workspace, theta_1, examples, MaskingArguments(mask_steps=6, mask_batch_size=8), SEED).bits
    assert not _same(ramped, constant)


@pytest.mark.parametrize("length", [0.01, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_ramp_rises_from_its_start_to_one(length, steps):
    arguments = MaskingArguments(
        mask_steps=steps, mask_scaling_schedule="linear", mask_ramp_start=0.25, mask_ramp_length=length
    )
    shares = [scaling_share(arguments, step) for step in range(steps + 1)]
    assert shares[0] == 0.25
    assert shares == sorted(shares)
    assert all(share == 1.0 for step, share in enumerate(shares) if step >= length * steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_learning_rate": 0.0},
        {"mask_learning_rate": math.inf},
        {"mask_learning_rate": math.nan},
        {"mask_scaling_schedule": "cosine"},
        {"mask_factors": "row"},
        {"mask_gradient_norm": "clip"},
        {"mask_ramp_start": 0.0},
        {"mask_ramp_length": 1.5},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        MaskingArguments(**settings)


def test_the_live_model_holds_the_masked_weights_afterwards(workspace, delta, encoded):
    theta_1 = _theta_1(workspace, delta)
    arguments = MaskingArguments(mask_steps=3)
    mask = train_mask(workspace, theta_1, _examples(encoded), arguments, SEED).bits
    for name, parameter in workspace.parameters.items():
        assert torch.equal(parameter, torch.where(mask[name], theta_1[name], workspace.theta_0[name]))
        assert not mask[name][delta[name] == 0].any()
        assert parameter.grad is None


def test_the_first_step_is_taken_at_the_base_model(workspace, delta, encoded):
    examples = _examples(encoded)
    # Left over from before: must not count.
    workspace.load(_theta_1(workspace, delta))
    arguments = MaskingArguments(mask_steps=1, mask_batch_size=1000)
    found = train_mask(workspace, _theta_1(workspace, delta), examples, arguments, SEED).bits
    workspace.reset()
    workspace.model.train()
    workspace.forward(workspace.batch(examples)).loss.backward()
    expected = {name: p.grad * delta[name] < 0 for name, p in workspace.parameters.items()}
    assert _same(found, expected)


def test_masks_are_reproducible_and_follow_the_seed(workspace, delta, encoded):
    arguments = MaskingArguments(mask_steps=4, mask_batch_size=6)
    theta_1, examples = _theta_1(workspace, delta), _examples(encoded)
    first = train_mask(workspace, theta_1, examples, arguments, SEED).bits
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert _same(train_mask(workspace, theta_1, examples, arguments, SEED).bits, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not _same(train_mask(workspace, theta_1, examples, arguments, SEED + 1).bits, first)


def test_a_mask_lowers_the_loss_of_its_cluster(workspace, encoded):
    from hf_clamu.exact import FixedPoint
    from hf_clamu.training import FinetuningArguments, finetune, measure

    arguments = FinetuningArguments(finetune_steps=10, learning_rate=1e-2)
    theta_1 = dict.fromkeys(workspace.theta_0)
    for task_id in ("owner_00", "owner_04"):
        finetune(workspace, encoded[task_id], arguments, FixedPoint())
        for name, parameter in workspace.parameters.items():
            moved = parameter.detach() - workspace.theta_0[name]
            theta_1[name] = moved if theta_1[name] is None else theta_1[name] + moved
    theta_1 = {name: theta + theta_1[name] for name, theta in workspace.theta_0.items()}
    task = encoded["owner_04"].train
    workspace.reset()
    base = measure(workspace, task, "image-classification").loss
    train_mask(workspace, theta_1, task, MaskingArguments(mask_steps=15), SEED)
    assert measure(workspace, task, "image-classification").loss < base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_follow_the_sign_of_the_score(dtype):
    scores = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 2.0, -2.0, math.inf, -math.inf])
    theta_0 = torch.randn(len(scores)).to(dtype)
    theta_1 = theta_0 + 1
    weights, before = theta_0.clone(), scores.clone()
    MaskStep()(weights, torch.zeros_like(theta_0), scores, (theta_0, theta_1))
    assert torch.equal(scores, before)
    assert torch.equal(weights, torch.where(scores > 0, theta_1, theta_0))
