from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import TaskVector
from hf_clamu.merging import CLUSTERINGS, ClamuArguments, ClusteringArguments, canonical_clusters, cluster_tasks
from hf_clamu.merging.clustering.spectral import MOST_DENSE, affinity_matrix, spectral_embedding
from hf_clamu.merging.clustering.task_vectors import sketch
from hf_clamu.training import derive_seed

IDS = tuple(f"task_{number:02d}" for number in range(9))


def _blobs() -> torch.Tensor:
    """Nine rows around three directions: tasks 0, 3, 6 and 1, 4, 7 and 2, 5, 8."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 12).repeat(3, 1) * 5
    return centres + torch.randn(9, 12, generator=generator) * 0.2


def test_cluster_numbers_follow_the_smallest_member():
    assert canonical_clusters({"d": 0, "b": 9, "a": 4, "c": 9, "e": 4}) == (("a", "e"), ("b", "c"), ("d",))
    assert canonical_clusters({}) == ()


def test_labels_and_order_do_not_count():
    ids = ["b", "a", "d", "c"]
    first = canonical_clusters(dict(zip(ids, [0, 1, 1, 0], strict=True)))
    assert canonical_clusters(dict(zip(reversed(ids), ["q", "z", "z", "q"], strict=True))) == first


@pytest.mark.parametrize("clustering", ["features", "task_vectors"])
def test_spectral_clusters_find_the_groups(clustering):
    arguments = ClusteringArguments(num_clusters=3, clustering=clustering)
    found = cluster_tasks(arguments, IDS, 0, task_features=_blobs())
    assert found == (IDS[0::3], IDS[1::3], IDS[2::3])
    assert cluster_tasks(arguments, IDS, 0, task_features=_blobs()) == found


def test_global_generators_do_not_count():
    arguments = ClusteringArguments(num_clusters=4)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(9, 5, generator=generator)
    found = set()
    for state in range(3):
        np.random.seed(state)
        found.add(cluster_tasks(arguments, IDS, 7, task_features=noise))
    assert len(found) == 1


def test_integer_sketches_cluster_too():
    features = (_blobs() * 2**30).to(torch.int64)
    arguments = ClusteringArguments(num_clusters=3, clustering="task_vectors")
    assert cluster_tasks(arguments, IDS, 0, task_features=features) == (IDS[0::3], IDS[1::3], IDS[2::3])


@pytest.mark.parametrize("clustering", ["features", "task_vectors", "random", "none"])
@pytest.mark.parametrize("num_clusters", [9, 10, 50])
def test_never_more_clusters_than_tasks(clustering, num_clusters):
    arguments = ClusteringArguments(num_clusters=num_clusters, clustering=clustering)
    assert cluster_tasks(arguments, IDS, 0, task_features=_blobs()) == tuple((task_id,) for task_id in IDS)


@pytest.mark.parametrize("clustering", ["features", "random"])
def test_one_cluster_holds_all(clustering):
    arguments = ClusteringArguments(num_clusters=1, clustering=clustering)
    assert cluster_tasks(arguments, IDS, 0, task_features=_blobs()) == (IDS,)


def test_no_clustering_gives_each_task_its_own():
    arguments = ClusteringArguments(num_clusters=2, clustering="none")
    assert cluster_tasks(arguments, IDS, 0) == tuple((task_id,) for task_id in IDS)


def test_a_column_decides_by_itself():
    keys = {task_id: "north" if number % 4 else "south" for number, task_id in enumerate(IDS)}
    for num_clusters in (1, 3, 9):
        arguments = ClusteringArguments(num_clusters=num_clusters, clustering="column")
        found = cluster_tasks(arguments, IDS, 0, keys=keys)
        assert found == (IDS[0::4], tuple(task_id for task_id in IDS if task_id not in IDS[0::4]))


@pytest.mark.parametrize("num_clusters", [2, 4, 5, 8])
def test_random_clusters_are_even_and_know_no_positions(num_clusters):
    arguments = ClusteringArguments(num_clusters=num_clusters, clustering="random")
    found = cluster_tasks(arguments, IDS, 0)
    sizes = [len(members) for members in found]
    assert len(found) == num_clusters
    assert max(sizes) - min(sizes) <= 1
    assert sorted(task_id for members in found for task_id in members) == list(IDS)
    assert [members[0] for members in found] == sorted(members[0] for members in found)
    assert cluster_tasks(arguments, IDS[::-1], 0) == found
    seeds = {cluster_tasks(arguments, IDS, seed) for seed in range(5)}
    assert len(seeds) > 1


def test_affinities_by_hand():
    rows = np.array([[3.0, 0.0], [5.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    root = (1 + np.sqrt(0.5)) / 2
    expected = [1.0, 1.0, 0.0, 0.5, 0.5, root]
    found = affinity_matrix(rows)
    np.testing.assert_allclose(found[0], expected, atol=1e-15)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found[4], np.full(6, 0.5))


def test_affinities_stay_between_0_and_1():
    generator = np.random.default_rng(0)
    row = generator.standard_normal(37)
    rows = np.stack([row, row * 3, row / 7, -row, -row * 1e9, row * 1e-30])
    found = affinity_matrix(rows)
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    np.testing.assert_allclose(found[:3, 3:5], 0.0, atol=1e-15)


@pytest.mark.parametrize("kind", ["identical", "zero", "opposite"])
def test_degenerate_features_give_whole_clusters(kind):
    features = {
        "identical": torch.ones(6, 4),
        "zero": torch.zeros(6, 4),
        "opposite": torch.tensor([1.0, -1.0] * 3)[:, None] * torch.ones(6, 4),
    }[kind]
    arguments = ClusteringArguments(num_clusters=2)
    with warnings.catch_warnings():
        # Two opposite groups share no affinity at all; scikit-learn says so.
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        found = cluster_tasks(arguments, IDS[:6], 0, task_features=features)
        assert cluster_tasks(arguments, IDS[:6], 0, task_features=features) == found
    assert sorted(task_id for members in found for task_id in members) == list(IDS[:6])
    assert 1 <= len(found) <= 2
    if kind == "opposite":
        assert found == (IDS[0:6:2], IDS[1:6:2])


def _many(count: int, spread: float = 0.3) -> tuple[torch.Tensor, tuple[str, ...], torch.Tensor]:
    """Rows around six directions: features, ids, and the direction of each."""
    generator = torch.Generator().manual_seed(count)
    groups = torch.randint(0, 6, (count,), generator=generator)
    rows = torch.randn(6, 16, generator=generator)[groups] + spread * torch.randn(count, 16, generator=generator)
    return rows, tuple(f"task_{number:05d}" for number in range(count)), groups


def _groups(ids: tuple[str, ...], groups: torch.Tensor) -> tuple[tuple[str, ...], ...]:
    return canonical_clusters(dict(zip(ids, groups.tolist(), strict=True)))


@pytest.mark.parametrize("count", [60, 300])
def test_clusters_of_saved_models_stay(count):
    from sklearn.cluster import SpectralClustering
    from threadpoolctl import threadpool_limits

    rows, ids, groups = _many(count, spread=3.0)
    seed = derive_seed(7, "cluster") % 2**32
    with threadpool_limits(limits=1):
        expected = SpectralClustering(n_clusters=6, affinity="precomputed", random_state=seed)
        labels = torch.from_numpy(expected.fit_predict(affinity_matrix(rows.numpy())))
    found = cluster_tasks(ClusteringArguments(num_clusters=6), ids, 7, task_features=rows)
    assert found == _groups(ids, labels)
    assert found != _groups(ids, groups)  # no clusters that any method would find


@pytest.mark.parametrize("count", [MOST_DENSE, MOST_DENSE + 1])
@pytest.mark.parametrize("clustering", ["features", "task_vectors"])
def test_many_tasks_have_the_clusters_of_fewer(count, clustering):
    from threadpoolctl import threadpool_limits

    rows, ids, groups = _many(count)
    if clustering == "task_vectors":
        rows = (rows * 2**40).to(torch.int64)
    arguments = ClusteringArguments(num_clusters=6, clustering=clustering)
    found = cluster_tasks(arguments, ids, 0, task_features=rows)
    assert found == _groups(ids, groups)
    with threadpool_limits(limits=2):
        assert cluster_tasks(arguments, ids, 0, task_features=rows) == found


@pytest.mark.parametrize("size", [1, 6, 17, 40])
def test_the_embedding_solves_the_problem_of_the_affinities(size):
    rows = _many(50, spread=1.0)[0].numpy()
    rows[7] = 0
    affinities = affinity_matrix(rows)
    degrees = affinities.sum(1)
    values = np.linalg.eigvalsh(affinities / np.sqrt(degrees[:, None] * degrees))[::-1][: min(size, 17)]
    found = spectral_embedding(rows, size)
    assert found.shape == (50, min(size, 17))  # a row has 16 numbers
    np.testing.assert_allclose(affinities @ found, degrees[:, None] * found * values, atol=1e-12)
    np.testing.assert_allclose(found.T @ (degrees[:, None] * found), np.eye(len(values)), atol=1e-12)


def test_many_tasks_that_are_alike_are_together():
    rows, ids, groups = _many(MOST_DENSE + 1, spread=0.0)
    found = cluster_tasks(ClusteringArguments(num_clusters=20), ids, 0, task_features=rows)
    assert found == _groups(ids, groups)
    for same in (torch.ones(len(ids), 4), torch.zeros(len(ids), 4)):
        assert cluster_tasks(ClusteringArguments(num_clusters=20), ids, 0, task_features=same) == (ids,)


def _vector(seed: int, scale: int = 1000) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (40, 50), "b": (7,), "c": (3, 11, 5)}
    return TaskVector.of(
        {name: torch.randint(-scale, scale, shape, generator=generator) for name, shape in shapes.items()}
    )


def _sum(a: TaskVector, b: TaskVector) -> TaskVector:
    return TaskVector.of({name: a.steps[name].to(torch.int64) + b.steps[name] for name in a.steps})


def test_sketches_are_linear_integers():
    a, b = _vector(1), _vector(2, 2**40)
    digests = a.digest, b.digest
    found = sketch(a, 0) + sketch(b, 0)
    assert (TaskVector.of(a.steps).digest, TaskVector.of(b.steps).digest) == digests, "the vectors are only read"
    assert found.dtype == torch.int64
    assert found.shape == (1024,)
    assert torch.equal(found, sketch(_sum(a, b), 0))
    assert found.abs().max() > 0


def test_a_sketch_moves_every_weight_to_one_sum_with_a_sign():
    steps = {"a": torch.zeros(100, dtype=torch.int64)}
    for place in (0, 57, 99):
        one = steps["a"].clone()
        one[place] = 6
        found = sketch(TaskVector.of({"a": one}), 3)
        assert found.abs().sum() == 6
    all_ones = sketch(TaskVector.of({"a": steps["a"] + 1}), 3)
    assert (all_ones > 0).any()
    assert (all_ones < 0).any()


def test_sketches_depend_on_run_seed_and_name():
    vector = _vector(1)
    assert torch.equal(sketch(vector, 0), sketch(vector, 0))
    assert not torch.equal(sketch(vector, 0), sketch(vector, 1))
    values = vector.steps["a"]
    assert not torch.equal(sketch(TaskVector.of({"x": values}), 0), sketch(TaskVector.of({"y": values}), 0))


def test_cosines_of_sketches_approximate_the_true_ones():
    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))

    def flat(vector: TaskVector) -> torch.Tensor:
        return torch.cat([n.reshape(-1) for n in vector.steps.values()])

    base, other = _vector(1), _vector(2)
    for vector in (base, other, _sum(base, other), _sum(base, _sum(base, other))):
        true = cosine(flat(base), flat(vector))
        # The error's standard deviation is about 1 / sqrt(1024).
        assert cosine(sketch(base, 0), sketch(vector, 0)) == pytest.approx(true, abs=0.12)


def test_values_out_of_range_are_refused():
    with pytest.raises(RecipeError, match=r"^num_clusters must be at least 1, got 0\.$"):
        ClusteringArguments(num_clusters=0)
    with pytest.raises(RecipeError, match=f"^clustering must be one of {', '.join(CLUSTERINGS)}, got 'kmeans'"):
        ClamuArguments(clustering="kmeans")
