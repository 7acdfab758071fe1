from __future__ import annotations

import math

import pytest
import torch

from hf_clamu.exact import pack_mask, unpack_mask
from hf_clamu.merging import (
    ALPHA_GRID,
    LAMBDA_GRID,
    LOCALIZATIONS,
    Localizer,
    MaskProblem,
    merge_tasks,
    scaling_coefficient,
)
from hf_clamu.training import Measurement

# Those whose masks are found on a given merged delta.
METHODS = [method for method in LOCALIZATIONS if method not in ("global", "sift")]


def test_scaling_coefficients():
    assert scaling_coefficient(1.0, 8) == 1 / 8
    assert scaling_coefficient(4.0, 10) == 0.4
    assert scaling_coefficient(4.0, 4) == 1.0
    assert scaling_coefficient(4.0, 3) == 1.0
    assert scaling_coefficient("sum", 10) == 1.0


def _masks(state, trainer) -> list[dict[str, torch.Tensor]]:
    shapes = trainer.workspace.shapes
    return [{name: unpack_mask(mask[name], shapes[name]) for name in mask} for mask in state.masks]


def _local_vectors(trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Task vectors in float64, from the live local models, without the integer grid."""
    theta_0 = trainer.workspace.theta_0
    found = {}
    for task_id in trainer.tasks:
        trainer.finetune(task_id)
        found[task_id] = {
            name: p.detach().double() - theta_0[name].double() for name, p in trainer.workspace.parameters.items()
        }
    return found


def _mean(vectors) -> dict[str, torch.Tensor]:
    return {name: torch.stack([vector[name] for vector in vectors]).mean(0) for name in vectors[0]}


@pytest.mark.parametrize(("clustering", "num_clusters"), [("none", 6), ("features", 2)])
def test_emr_matches_its_authors(images, trainer_of, settings, clustering, num_clusters):
    arguments = settings(localization="emr", clustering=clustering, num_clusters=num_clusters)
    trainer = trainer_of(images, arguments)
    state = merge_tasks(trainer, arguments)
    assert len(state.clusters) == num_clusters
    local = _local_vectors(trainer)
    merged = _mean(list(local.values()))
    for members, mask in zip(state.clusters, _masks(state, trainer), strict=True):
        own = _mean([local[task_id] for task_id in members])
        compared = kept = total = 0
        for name in own:
            expected = own[name] * torch.where(merged[name] > 0, 1.0, -1.0) > 0
            # Closer to 0 than the integer grid, a sign is a matter of rounding.
            clear = (own[name].abs() > 2.0**-26) & (merged[name].abs() > 2.0**-26)
            assert torch.equal(mask[name][clear], expected[clear])
            compared, kept, total = compared + int(clear.sum()), kept + int(expected.sum()), total + clear.numel()
        assert compared > 0.9 * total
        assert 0 < kept < total


def _tall_reference(theta_0, theta_k, merged, factor):
    return {
        name: (theta_0[name] - theta_k[name]).abs() > (theta_0[name] + merged[name] - theta_k[name]).abs() * factor
        for name in theta_0
    }


@pytest.mark.parametrize(("clustering", "num_clusters"), [("none", 6), ("random", 2)])
@pytest.mark.parametrize("scaling", ["sum", 2.0])
def test_tall_matches_its_authors(images, trainer_of, settings, clustering, num_clusters, scaling):
    arguments = settings(localization="tall", clustering=clustering, num_clusters=num_clusters, scaling=scaling)
    trainer = trainer_of(images, arguments)
    state = merge_tasks(trainer, arguments)
    workspace = trainer.workspace
    theta_0 = {name: theta.double() for name, theta in workspace.theta_0.items()}
    local = _local_vectors(trainer)
    mean = _mean(list(local.values()))
    # Plain sum, coefficient 1 in their code; `scaling` is a multiple of 1/T.
    merged = {name: tau * (6 if scaling == "sum" else scaling) for name, tau in mean.items()}
    for members, mask in zip(state.clusters, _masks(state, trainer), strict=True):
        own = _mean([local[task_id] for task_id in members])
        theta_k = {name: theta_0[name] + own[name] for name in own}
        best = None
        for factor in LAMBDA_GRID:
            candidate = _tall_reference(theta_0, theta_k, merged, factor)
            workspace.load({n: torch.where(candidate[n], theta_0[n] + merged[n], theta_0[n]) for n in candidate})
            found = [trainer.measure_held_out(task_id).score for task_id in members]
            score = math.fsum(found) / len(found)
            if best is None or score > best[0]:
                best = (score, factor, candidate)
        _, factor, expected = best
        differing = total = 0
        for name in expected:
            margin = own[name].abs() - (merged[name] - own[name]).abs() * factor
            clear = margin.abs() > 1e-6
            assert torch.equal(mask[name][clear], expected[name][clear])
            differing, total = differing + int((~clear).sum()), total + clear.numel()
        assert differing < 0.1 * total


def _crafted(trainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A merged delta and a cluster vector with zeros in either, in both, and opposite signs."""
    generator = torch.Generator().manual_seed(0)
    shapes = trainer.workspace.shapes
    draw = {n: torch.randint(-1, 2, s, generator=generator, dtype=torch.int64) for n, s in shapes.items()}
    own = {n: torch.randint(-1, 2, s, generator=generator, dtype=torch.int64) for n, s in shapes.items()}
    return {n: v * 2**24 for n, v in draw.items()}, {n: v * 2**24 for n, v in own.items()}


def _localizer(trainer, delta, own, arguments) -> Localizer:
    problem = MaskProblem(
        delta=delta,
        clusters=(tuple(trainer.tasks),),
        arguments=arguments,
        run_seed=0,
        cluster_vector=lambda members: dict(own),
    )
    return Localizer(trainer, problem)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_no_task_moved_get_zero(images, trainer_of, settings, method):
    arguments = settings(localization=method)
    trainer = trainer_of(images, arguments)
    delta, own = _crafted(trainer)
    own = {name: 4 * n * (delta[name] != 0) for name, n in own.items()}
    _, masks = _localizer(trainer, delta, own, arguments).run()
    kept = 0
    for name, shape in trainer.workspace.shapes.items():
        mask = unpack_mask(masks[0].bits[name], shape)
        assert not mask[delta[name] == 0].any()
        kept += int(mask.sum())
    assert kept > 0


def test_emr_keeps_equal_signs_alone(images, trainer_of, settings):
    arguments = settings(localization="emr")
    trainer = trainer_of(images, arguments)
    delta, own = _crafted(trainer)
    _, masks = _localizer(trainer, delta, own, arguments).run()
    for name, n in own.items():
        assert torch.equal(masks[0].bits[name], pack_mask(n * delta[name] > 0))


@pytest.mark.parametrize(
    ("scores", "factor"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0.2),
        ([0.1, 0.2, 0.7, 0.7, 0.2], 0.4),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.6),
        ([0.9, 0.2, 0.3, 0.9, 0.5], 0.2),
    ],
)
def test_tall_takes_the_smallest_of_the_best_lambdas(images, trainer_of, settings, monkeypatch, scores, factor):
    arguments = settings(localization="tall", scaling="sum")
    trainer = trainer_of(images, arguments)
    generator = torch.Generator().manual_seed(0)
    delta, own = (
        {
            name: torch.randint(-(2**24), 2**24, shape, generator=generator)
            for name, shape in trainer.workspace.shapes.items()
        }
        for _ in range(2)
    )
    calls = []

    def measured(task_id: str) -> Measurement:
        calls.append(task_id)
        return Measurement(loss=1.0, score=scores[(len(calls) - 1) // 6])

    monkeypatch.setattr(trainer, "measure_held_out", measured)
    _, masks = _localizer(trainer, delta, own, arguments).run()
    assert len(calls) == 6 * len(LAMBDA_GRID)
    codec, theta_0 = trainer.codec, trainer.workspace.theta_0
    references = {}
    for candidate in LAMBDA_GRID:
        theta_k = {n: codec.apply(t, own[n], 1 / 6, torch.float32) for n, t in theta_0.items()}
        merged = {n: codec.apply(t, delta[n], 1.0, torch.float32) for n, t in theta_0.items()}
        references[candidate] = {
            n: pack_mask((t - theta_k[n]).abs() > (merged[n] - theta_k[n]).abs() * candidate)
            for n, t in theta_0.items()
        }
    matching = [c for c in LAMBDA_GRID if all(torch.equal(masks[0].bits[n], references[c][n]) for n in masks[0].bits)]
    assert matching == [factor]


def _quality(trainer, state) -> tuple[float, float]:
    found = []
    for number, members in enumerate(state.clusters):
        trainer.load_masked(state.delta, state.alpha, state.mask(number))
        found += [trainer.measure_held_out(task_id) for task_id in members]
    return sum(m.score for m in found) / len(found), -sum(m.loss for m in found) / len(found)


@pytest.mark.parametrize("method", LOCALIZATIONS)
def test_auto_takes_the_best_alpha_of_the_grid(images, trainer_of, settings, assert_same, method):
    tried = []

    def progress(items, description):
        tried.append(description)
        return items

    arguments = settings(localization=method, scaling="auto", learning_rate=0.02, scaling_search="full")
    trainer = trainer_of(images, arguments, progress)
    state = merge_tasks(trainer, arguments)
    grid = sorted({min(1.0, value / 6) if value != "sum" else 1.0 for value in ALPHA_GRID})
    assert grid == [1 / 6, 2 / 6, 4 / 6, 1.0]
    if method in METHODS:
        # One pass over the clusters for the whole grid: local vectors may cost retraining.
        assert [text for text in tried if text.startswith("localize")] == [f"localize {method}"]
    candidates = []
    for scaling in (1.0, 2.0, 4.0, "sum"):
        fixed = settings(localization=method, scaling=scaling, learning_rate=0.02)
        candidate = merge_tasks(trainer, fixed)
        score, negative_loss = _quality(trainer, candidate)
        candidates.append((round(score, 12), negative_loss, -candidate.alpha, candidate))
    best = max(candidates, key=lambda candidate: candidate[:3])
    assert len({candidate[:2] for candidate in candidates}) > 1
    assert_same(state, best[3])


@pytest.mark.parametrize("steps", [1, 8])
def test_a_short_search_takes_the_best_alpha_of_short_trials(images, trainer_of, settings, assert_same, steps):
    fixed = {"learning_rate": 0.02, "mask_steps": steps}
    arguments = settings(scaling="auto", **fixed)
    trainer = trainer_of(images, arguments)
    state = merge_tasks(trainer, arguments)
    trials = []
    for scaling in (1.0, 2.0, 4.0, "sum"):
        trial = merge_tasks(trainer, settings(scaling=scaling, **{**fixed, "mask_steps": max(1, steps // 4)}))
        score, negative_loss = _quality(trainer, trial)
        trials.append((round(score, 12), negative_loss, -trial.alpha, scaling))
    assert len({trial[:2] for trial in trials}) > 1
    chosen = max(trials, key=lambda trial: trial[:3])[3]
    # With its own settings for the global model, which is searched for here.
    assert_same(state, merge_tasks(trainer, settings(scaling=chosen, global_scaling="auto", **fixed)))


@pytest.mark.parametrize(
    ("scores", "losses", "place"),
    [
        ([0.1, 0.4, 0.3, 0.2], [1.0, 9.0, 1.0, 1.0], 1),
        ([0.4, 0.4, 0.4, 0.2], [3.0, 2.0, 5.0, 1.0], 1),
        ([0.4, 0.4, 0.4, 0.4], [2.0, 2.0, 2.0, 2.0], 0),
        ([0.1, 0.1, 0.1, 0.2], [2.0, 2.0, 2.0, 9.0], 3),
    ],
)
def test_auto_prefers_score_then_loss_then_the_smaller_alpha(
    images, trainer_of, settings, monkeypatch, scores, losses, place
):
    arguments = settings(localization="global", scaling="auto", global_scaling="same")
    trainer = trainer_of(images, arguments)
    delta, own = _crafted(trainer)
    calls = []

    def measured(task_id: str) -> Measurement:
        calls.append(task_id)
        number = (len(calls) - 1) // 6
        return Measurement(loss=losses[number], score=scores[number])

    monkeypatch.setattr(trainer, "measure_held_out", measured)
    alpha, masks = _localizer(trainer, delta, own, arguments).run()
    assert alpha == [1 / 6, 2 / 6, 4 / 6, 1.0][place]
    assert masks == ()
