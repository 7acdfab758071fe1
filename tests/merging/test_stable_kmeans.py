from __future__ import annotations

import statistics

import pytest
import torch

from hf_clamu.exact import digest_json
from hf_clamu.merging import ClusteringArguments, cluster_tasks

IDS = tuple(f"task_{number:02d}" for number in range(40))


@pytest.fixture(scope="module")
def groups() -> list[int]:
    return torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def sketches(groups) -> torch.Tensor:
    """Sketches of different lengths around five directions, or around none if the spread is large."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(5, 1024, generator=generator)
    lengths = 10 ** (3 * torch.rand(40, 1, generator=generator))
    rows = directions[groups] + 0.5 * torch.randn(40, 1024, generator=generator)
    return (2**30 * lengths * rows).long()


@pytest.fixture(scope="module")
def scattered() -> torch.Tensor:
    return torch.randint(-(2**40), 2**40, (40, 1024), generator=torch.Generator().manual_seed(1))


def _clusters(sketches, chosen=range(40), count=5, clustering="stable_kmeans", run_seed=0):
    ids = tuple(IDS[number] for number in chosen)
    arguments = ClusteringArguments(clustering=clustering, num_clusters=count)
    return cluster_tasks(arguments, ids, run_seed, task_features=sketches[list(chosen)])


def _num_moved(sketches, gone, clustering="stable_kmeans"):
    """How many others are with other tasks once a task is gone."""
    kept = [number for number in range(40) if number != gone]
    before = {one: set(members) for members in _clusters(sketches, clustering=clustering) for one in members}
    after = {one: set(members) for members in _clusters(sketches, kept, clustering=clustering) for one in members}
    return sum(before[one] - {IDS[gone]} != after[one] for one in after)


def test_groups_are_found_whatever_the_lengths(sketches, groups):
    expected = {frozenset(IDS[n] for n in range(40) if groups[n] == group) for group in range(5)}
    found = [set(map(frozenset, _clusters(sketches, run_seed=seed))) for seed in range(8)]
    # A single start may miss a group, and split another.
    assert expected in found


def test_nobody_is_nearer_to_another_centre(scattered):
    rows = scattered.double() / scattered.double().norm(dim=1, keepdim=True)
    clusters = _clusters(scattered)
    assert len(clusters) == 5
    centres = torch.stack([rows[[IDS.index(one) for one in members]].sum(0) for members in clusters])
    cosines = rows @ (centres / centres.norm(dim=1, keepdim=True)).T
    for number, members in enumerate(clusters):
        for one in members:
            assert float(cosines[IDS.index(one), number]) >= float(cosines[IDS.index(one)].max()) - 1e-3


def test_a_task_that_leaves_moves_fewer_than_with_spectral_clustering(scattered):
    stable = statistics.fmean(_num_moved(scattered, gone) for gone in range(40))
    spectral = statistics.fmean(_num_moved(scattered, gone, "task_vectors") for gone in range(0, 40, 4))
    assert stable < spectral / 2


def test_lengths_do_not_show(sketches):
    assert _clusters(sketches * 3) == _clusters(sketches)


def test_it_follows_the_seed(scattered):
    assert _clusters(scattered) != _clusters(scattered, run_seed=1)
    assert _clusters(scattered) == _clusters(scattered)


@pytest.mark.parametrize("count", [2, 5, 39])
def test_tasks_that_are_alike_are_together(count):
    rows = torch.randint(-(2**40), 2**40, (2, 1024), generator=torch.Generator().manual_seed(2))
    alike = rows[[0, 1] * 20]
    alike[4:8] *= 7
    clusters = _clusters(alike, count=count)
    assert sorted(map(sorted, clusters)) == [list(IDS[0::2]), list(IDS[1::2])]


def test_vectors_of_zeros_have_a_cluster(scattered):
    zeros = torch.zeros_like(scattered)
    assert sorted(one for members in _clusters(zeros) for one in members) == list(IDS)
    mixed = torch.where(torch.arange(40).unsqueeze(1) < 20, scattered, zeros)
    assert sorted(one for members in _clusters(mixed) for one in members) == list(IDS)


def test_sketches_of_any_size_are_compared_exactly():
    # Squares of these do not fit 64 bits.
    large = torch.randint(-(2**62), 2**62, (40, 1024), generator=torch.Generator().manual_seed(4))
    assert _clusters(large) == _clusters(large // 2**20 * 2**20)
    assert 1 < len(_clusters(large)) <= 5


def test_the_order_of_sums_does_not_show(scattered):
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(6))
    assert _clusters(scattered[:, order]) == _clusters(scattered)


@pytest.mark.parametrize(
    ("count", "bits", "expected"),
    [(40, 62, "807e5c05956562ba"), (300, 3, "8ddffdb8318d6daf"), (5000, 30, "a180ee1a0a82e4be")],
)
def test_clusters_of_saved_models_stay(count, bits, expected):
    """Digests of what the first release that has this clustering found, by sums of whole numbers."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randint(-(2**bits), 2**bits, (count, 64), generator=generator)
    rows += torch.randint(-(2**bits), 2**bits, (7, 64), generator=generator)[torch.arange(count) % 7]
    ids = tuple(f"task_{number:04d}" for number in range(count))
    found = cluster_tasks(ClusteringArguments(clustering="stable_kmeans", num_clusters=9), ids, 3, task_features=rows)
    assert digest_json([list(members) for members in found])[:16] == expected


@pytest.mark.parametrize("localization", ["clamu", "sift", "emr"])
@pytest.mark.parametrize("num_clusters", [1, 3, 20])
def test_requests_equal_a_build(localization, num_clusters, settings, check_requests):
    check_requests(settings(clustering="stable_kmeans", localization=localization, num_clusters=num_clusters))
