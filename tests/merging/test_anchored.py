from __future__ import annotations

import pytest
import torch

from hf_clamu.merging import ClusteringArguments, cluster_tasks, name_clusters

IDS = tuple(f"task_{number:02d}" for number in range(24))
ARGUMENTS = ClusteringArguments(clustering="anchored", num_clusters=5)


@pytest.fixture(scope="module")
def sketches() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**40), 2**40, (24, 1024), generator=generator)


def _clusters(sketches, chosen, arguments=ARGUMENTS, run_seed=0):
    ids = tuple(IDS[number] for number in chosen)
    features = sketches[list(chosen)]
    clusters = cluster_tasks(arguments, ids, run_seed, task_features=features)
    names = name_clusters(arguments, clusters, run_seed, task_features=features)
    return {task_id: name for members, name in zip(clusters, names, strict=True) for task_id in members}


def test_nobody_moves_whoever_else_is_there(sketches):
    whole = _clusters(sketches, range(24))
    assert 1 < len(set(whole.values())) <= 5
    generator = torch.Generator().manual_seed(1)
    subsets = [sorted(torch.randperm(24, generator=generator)[:size].tolist()) for size in (1, 2, 5, 6, 20, 23)]
    for chosen in subsets:
        assert _clusters(sketches, chosen) == {IDS[number]: whole[IDS[number]] for number in chosen}


def test_more_anchors_only_win_tasks_over(sketches):
    few = _clusters(sketches, range(24))
    many = _clusters(sketches, range(24), ClusteringArguments(clustering="anchored", num_clusters=9))
    moved = [task_id for task_id in IDS if many[task_id] != few[task_id]]
    assert moved
    assert not {many[task_id] for task_id in moved} & set(few.values())


def test_length_does_not_count_and_opposites_are_apart(sketches):
    found = _clusters(
        torch.stack([sketches[0], sketches[0] * 3, -sketches[0], torch.zeros_like(sketches[0])]), range(4)
    )
    assert found[IDS[0]] == found[IDS[1]] != found[IDS[2]]
    assert found[IDS[3]] in set(found.values())


def test_anchors_follow_the_seed(sketches):
    assert _clusters(sketches, range(24)) != _clusters(sketches, range(24), run_seed=1)


def test_one_anchor_holds_all(sketches):
    one = ClusteringArguments(clustering="anchored", num_clusters=1)
    assert len(set(_clusters(sketches, range(24), one).values())) == 1


@pytest.mark.parametrize("localization", ["clamu", "sift", "emr"])
@pytest.mark.parametrize("num_clusters", [1, 3, 20])
def test_requests_equal_a_build(localization, num_clusters, settings, check_requests):
    whole, left = check_requests(settings(clustering="anchored", localization=localization, num_clusters=num_clusters))
    where = {task_id: whole.cluster_names[whole.cluster_of(task_id)] for task_id in left.records}
    assert where == {task_id: left.cluster_names[left.cluster_of(task_id)] for task_id in left.records}
