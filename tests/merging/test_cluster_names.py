from __future__ import annotations

from dataclasses import replace

import pytest

from hf_clamu.errors import ClusterNotFoundError
from hf_clamu.merging import CLUSTERINGS, ClusteringArguments, add_tasks, name_clusters, unmerge_tasks
from hf_clamu.merging.cluster_names import is_plain, member_hash, own_name, words

IDS = tuple(f"task_{number:02d}" for number in range(24))
CLUSTERS = tuple(IDS[start::4] for start in range(4))


def _names(clusters, run_seed=0):
    return name_clusters(ClusteringArguments(clustering="random"), clusters, run_seed)


@pytest.mark.parametrize("leaving", range(24))
def test_a_name_stays_until_the_member_leaves_that_it_comes_from(leaving):
    before = dict(zip(CLUSTERS, _names(CLUSTERS), strict=True))
    source = min(CLUSTERS[leaving % 4], key=lambda task_id: member_hash(0, task_id))
    for members in CLUSTERS:
        left = tuple(task_id for task_id in members if task_id != IDS[leaving])
        after = _names([left])[0]
        assert (after == before[members]) == (source != IDS[leaving] or IDS[leaving] not in members)


def test_names_know_no_position():
    names = _names(CLUSTERS)
    assert _names(CLUSTERS[::-1]) == names[::-1]
    assert _names([members[::-1] for members in CLUSTERS]) == names
    assert len(set(names)) == 4


def test_names_follow_the_seed_and_show_no_id():
    assert not set(_names(CLUSTERS, 0)) & set(_names(CLUSTERS, 1))
    assert not any(task_id in name for name in _names(CLUSTERS) for task_id in IDS)


def test_names_of_many_clusters_differ():
    alone = [(f"owner {number}",) for number in range(3000)]
    names = _names(alone)
    assert len(set(names)) == 3000
    assert all(is_plain(name) for name in names)


def test_digits_are_added_where_words_and_digits_are_the_same():
    # The words come from the last three digits, the digits from those before.
    named = words(["0" * 57 + "07a9123", "0" * 57 + "17a9123", "f" * 64])
    assert len(set(named)) == 3
    assert [len(name.rpartition("-")[2]) for name in named] == [4, 4, 3]


@pytest.mark.parametrize("value", ["3", "-1", "１７", "²", "1e5", "0x1F", "1_000", "nan", "Infinity", " 7 ", "2j", ""])
def test_what_reads_as_a_number_or_nothing_is_no_name(value):
    assert not is_plain(value)
    assert own_name(value) == f"cluster:{value}"
    assert is_plain(own_name(value))


@pytest.mark.parametrize("value", ["auto", "AUTO", "global", "base", "none", "null", "own", "all", "true"])
def test_reserved_words_are_no_names(value):
    assert own_name(value) == f"cluster:{value}"
    assert is_plain(own_name(value))


def test_different_values_have_different_names():
    values = ["3", "cluster:3", "cluster:cluster:3", "auto", "cluster:auto", "north", "cluster:north"]
    assert len({own_name(value) for value in values}) == len(values)


def test_clusters_that_the_data_name_keep_these_names():
    keys = {task_id: "7" if number % 2 else "north" for number, task_id in enumerate(IDS)}
    clusters = (IDS[0::2], IDS[1::2])
    assert name_clusters(ClusteringArguments(clustering="column"), clusters, 0, keys=keys) == ("north", "cluster:7")
    alone = [(task_id,) for task_id in IDS]
    assert name_clusters(ClusteringArguments(clustering="none"), alone, 0) == IDS
    one = dict.fromkeys(IDS, "south")
    assert name_clusters(ClusteringArguments(clustering="column"), [IDS], 0, keys=one) == ("south",)


@pytest.mark.parametrize("clustering", sorted(CLUSTERINGS))
def test_names_after_requests_are_those_of_a_build(clustering, images, settings, trainer_of, merged_of):
    arguments = settings(clustering=clustering, localization="global")
    whole, gone = merged_of(images, arguments), images.task_ids[1]
    left = merged_of(images.without([gone]), arguments)
    trainer = trainer_of(images, arguments)
    assert len(set(whole.cluster_names)) == len(whole.clusters)
    assert unmerge_tasks(whole, [gone], trainer, arguments).cluster_names == left.cluster_names
    assert add_tasks(left, [gone], trainer, arguments).cluster_names == whole.cluster_names


def test_a_cluster_is_found_by_number_and_name(images, settings, merged_of):
    state = merged_of(images, settings(clustering="column", localization="global"))
    assert state.cluster_names == ("x", "y")
    assert [state.find_cluster(name) for name in (0, "x", 1, "y")] == [0, 0, 1, 1]
    expected = "There is no cluster 'z'; this model has 2, numbered from 0 to 1 and called 'x', 'y'."
    with pytest.raises(ClusterNotFoundError, match=expected):
        state.find_cluster("z")
    for wrong in (2, -1, "0"):
        with pytest.raises(ClusterNotFoundError):
            state.find_cluster(wrong)
    for wrong in (True, 1.0, None):
        with pytest.raises(TypeError, match="cluster must be a name, a whole number or None"):
            state.find_cluster(wrong)
    empty = replace(state, clusters=(), cluster_names=())
    with pytest.raises(ClusterNotFoundError, match=r"There is no cluster 'x'; this model has none\."):
        empty.find_cluster("x")
