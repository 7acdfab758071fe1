from __future__ import annotations

import copy
import dataclasses
from statistics import fmean

import pytest
import torch

from hf_clamu.errors import DigestMismatchError, TaskAlreadyMergedError, TaskDataError, TaskNotFoundError
from hf_clamu.exact import narrowest_dtype
from hf_clamu.merging import CLUSTERINGS, LOCALIZATIONS, add_tasks, merge_tasks, require_merged, unmerge_tasks
from hf_clamu.merging.clustering.task_vectors import sketch

FORGOTTEN = ("owner_01", "owner_04")


def _snapshot(state):
    return copy.deepcopy(state)


def test_a_state_is_the_sum_of_its_tasks(merged_of, images, trainer_of, settings):
    arguments = settings(clustering="task_vectors")
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    assert state.task_ids == images.task_ids
    total = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in trainer.workspace.shapes.items()}
    for row, task_id in enumerate(images):
        vector, record = trainer.finetune(task_id), state.records[task_id]
        total = {name: n + vector.steps[name] for name, n in total.items()}
        assert (record.vector_digest, record.bounds) == (vector.digest, vector.bounds)
        encoded = images.encode(task_id, None)
        assert record.data_digest == encoded.digest
        assert (record.num_train, record.num_validation) == (len(encoded.train), len(encoded.validation))
        assert torch.equal(state.task_features[row], sketch(vector, arguments.seed))
        assert task_id in state.clusters[state.cluster_of(task_id)]
    assert all(torch.equal(state.delta[name], total[name]) for name in total)
    bounds = {name: sum(record.bounds[name] for record in state.records.values()) for name in total}
    assert {name: n.dtype for name, n in state.delta.items()} == {
        name: narrowest_dtype(bound) for name, bound in bounds.items()
    }
    assert (state.alpha, state.global_alpha) == (4 / 6, 1 / 6)
    assert len(state.masks) == len(state.clusters) == 2


def test_features_are_those_of_the_base_model(merged_of, images, trainer_of, settings):
    arguments = settings()
    state = merged_of(images, arguments)
    fresh = trainer_of(images, arguments)
    expected = torch.stack([fresh.feature(task_id) for task_id in images])
    assert torch.equal(state.task_features, expected)
    assert state.base_features is None, "they are not kept twice"


@pytest.mark.parametrize("clustering", ["task_vectors", "stable_kmeans", "anchored", "random", "column", "none"])
def test_features_of_the_base_model_are_kept_whatever_the_clustering(merged_of, images, settings, clustering):
    state = merged_of(images, settings(clustering=clustering))
    assert torch.equal(state.base_features, merged_of(images, settings()).task_features)
    without = merged_of(images, settings(clustering=clustering, keep_features=False))
    assert without.base_features is None


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("localization", LOCALIZATIONS)
def test_unmerging_equals_merging_the_rest(
    merged_of, images, trainer_of, settings, assert_same, localization, clustering
):
    arguments = settings(localization=localization, clustering=clustering)
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    before = _snapshot(state)
    found = unmerge_tasks(state, FORGOTTEN[::-1], trainer, arguments)
    assert_same(state, before)
    rest = images.without(FORGOTTEN)
    expected = merged_of(rest, arguments)
    assert_same(found, expected)
    assert found.task_ids == rest.task_ids
    assert found.alpha != state.alpha
    assert any(not torch.equal(found.delta[name], state.delta[name]) for name in state.delta)


@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize(
    "scalings",
    [
        {"scaling": "auto"},
        {"global_scaling": "auto"},
        {"global_scaling": 2.5},
        {"global_scaling": "same"},
        {"learning_rate": 1.0},  # so that the base model is the better global model
    ],
)
def test_unmerging_chooses_alpha_again(merged_of, images, trainer_of, settings, assert_same, localization, scalings):
    arguments = settings(localization=localization, **scalings)
    state = merged_of(images, arguments)
    found = unmerge_tasks(state, FORGOTTEN, trainer_of(images, arguments), arguments)
    assert_same(found, merged_of(images.without(FORGOTTEN), arguments))
    if localization == "global" or scalings == {"global_scaling": "same"}:
        assert found.alpha == found.global_alpha
    elif scalings == {"global_scaling": 2.5}:
        assert found.global_alpha == 2.5 / 4
    elif scalings == {"learning_rate": 1.0}:
        assert state.global_alpha == 0
        assert found.scores["mean"]["global"] >= found.scores["mean"]["base"]


@pytest.mark.parametrize(("learning_rate", "alpha"), [(1e-3, 1 / 6), (1.0, 0.0)])
def test_the_global_model_is_the_average_or_the_base(merged_of, images, settings, learning_rate, alpha):
    state = merged_of(images, settings(learning_rate=learning_rate))
    assert state.global_alpha == alpha
    assert state.scores["mean"]["global"] >= state.scores["mean"]["base"]
    wanted = merged_of(images, settings(learning_rate=learning_rate, global_scaling=1.0))
    assert wanted.global_alpha == 1 / 6
    assert (wanted.scores == state.scores) == (alpha > 0)
    unmeasured = merged_of(images, settings(learning_rate=learning_rate, score_validation=False))
    assert (unmeasured.global_alpha, unmeasured.scores) == (1 / 6, None)


def test_a_global_model_that_is_chosen_is_not_below_the_base(merged_of, images, trainer_of, settings):
    # Steps so large that every multiple of the delta does harm.
    arguments = settings(global_scaling="auto", learning_rate=1.0)
    state = merged_of(images, arguments)
    trainer = trainer_of(images, arguments)
    scores = {}
    for alpha in (0.0, 1 / 6, 2 / 6, 4 / 6, 1.0):
        trainer.load_masked(state.delta, alpha)
        found = [trainer.measure_held_out(task_id) for task_id in images]
        scores[alpha] = (fmean(one.score for one in found), -fmean(one.loss for one in found))
    assert scores[state.global_alpha] == max(scores.values())


@pytest.mark.parametrize("localization", ["clamu", "tall"])
@pytest.mark.parametrize("clustering", ["features", "task_vectors"])
def test_one_by_one_equals_at_once(merged_of, images, trainer_of, settings, assert_same, localization, clustering):
    arguments = settings(localization=localization, clustering=clustering)
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    at_once = unmerge_tasks(state, FORGOTTEN, trainer, arguments)
    for order in (FORGOTTEN, FORGOTTEN[::-1]):
        stepwise = state
        for task_id in order:
            stepwise = unmerge_tasks(stepwise, [task_id], trainer, arguments)
        assert_same(stepwise, at_once)
    assert_same(unmerge_tasks(state, [*FORGOTTEN, *FORGOTTEN], trainer, arguments), at_once)


@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("clustering", ["features", "column"])
def test_unmerging_all_leaves_nothing(merged_of, images, trainer_of, settings, assert_same, localization, clustering):
    arguments = settings(localization=localization, clustering=clustering)
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    found = unmerge_tasks(state, images.task_ids, trainer, arguments)
    assert_same(found, merged_of(images.select([]), arguments))
    assert all(not n.any() for n in found.delta.values())
    assert (found.records, found.clusters, found.masks, found.alpha) == ({}, (), (), 0.0)
    assert found.task_features is None
    assert_same(add_tasks(found, images.task_ids, trainer, arguments), state)


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("localization", ["clamu", "emr"])
def test_adding_again_gives_the_first_state_back(
    merged_of, images, trainer_of, settings, assert_same, localization, clustering
):
    arguments = settings(localization=localization, clustering=clustering)
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    smaller = unmerge_tasks(state, FORGOTTEN, trainer, arguments)
    before = _snapshot(smaller)
    assert_same(add_tasks(smaller, FORGOTTEN[::-1], trainer, arguments), state)
    assert_same(smaller, before)


def test_the_order_of_rows_and_tasks_does_not_count(merged_of, rows, cut, images, trainer_of, settings, assert_same):
    arguments = settings(clustering="task_vectors", localization="tall")
    trainer = trainer_of(images, arguments)
    state = merged_of(images, arguments)
    shuffled = cut(rows.shuffle(seed=3))
    assert_same(merge_tasks(trainer_of(shuffled, arguments), arguments), state)
    grown = merged_of(images.select([]), arguments)
    for batch in (["owner_05"], ["owner_02", "owner_00"], ["owner_03", "owner_04", "owner_01"]):
        grown = add_tasks(grown, batch, trainer, arguments)
    assert_same(grown, state)


def test_a_task_named_twice_is_added_once(merged_of, images, trainer_of, settings, assert_same):
    arguments = settings(localization="global")
    trainer = trainer_of(images, arguments)
    empty = merged_of(images.select([]), arguments)
    found = add_tasks(empty, ["owner_00", "owner_01", "owner_00"], trainer, arguments)
    assert_same(found, merged_of(images.select(["owner_00", "owner_01"]), arguments))


@pytest.fixture(scope="module")
def merged(merged_of, images, settings):
    from hf_clamu.training import deterministic

    arguments = settings()
    with deterministic(num_threads=1):
        return arguments, merged_of(images, arguments)


def _changed(rows, cut, task_id):
    """The data without the first row of a task."""
    first = rows["task"].index(task_id)
    return cut(rows.select([row for row in range(len(rows)) if row != first]))


@pytest.mark.parametrize("changed", ["owner_01", "owner_02"])
def test_changed_data_is_refused(rows, cut, trainer_of, merged, assert_same, changed):
    arguments, state = merged
    before = _snapshot(state)
    trainer = trainer_of(_changed(rows, cut, changed), arguments)
    with pytest.raises(DigestMismatchError, match=rf"data of task '{changed}' is not what was merged.*rebuild"):
        unmerge_tasks(state, ["owner_01"], trainer, arguments)
    assert_same(state, before)


def test_retained_data_is_not_read_where_nothing_depends_on_it(
    merged_of, rows, cut, trainer_of, settings, images, assert_same
):
    arguments = settings(localization="global", clustering="task_vectors", score_validation=False)
    state = merged_of(images, arguments)
    expected = merged_of(images.without("owner_01"), arguments)
    assert expected.scores is None
    for tasks in (_changed(rows, cut, "owner_02"), images.select(["owner_01"])):
        assert_same(unmerge_tasks(state, ["owner_01"], trainer_of(tasks, arguments), arguments), expected)


@pytest.mark.parametrize("absent", [["owner_01"], ["owner_02"], ["owner_02", "owner_03"]])
def test_missing_data_is_refused(images, trainer_of, merged, absent):
    arguments, state = merged
    trainer = trainer_of(images.without(absent), arguments)
    more = " and 1 more" if len(absent) > 1 else ""
    with pytest.raises(
        TaskDataError, match=rf"no rows of the merged task '{absent[0]}'{more}\. Give the rows of all merged"
    ):
        unmerge_tasks(state, ["owner_01"], trainer, arguments)


def test_adding_checks_the_data_of_merged_tasks(rows, cut, trainer_of, images, merged):
    arguments, state = merged
    smaller = unmerge_tasks(state, ["owner_05"], trainer_of(images, arguments), arguments)
    with pytest.raises(DigestMismatchError, match="data of task 'owner_02'"):
        add_tasks(smaller, ["owner_05"], trainer_of(_changed(rows, cut, "owner_02"), arguments), arguments)
    with pytest.raises(TaskNotFoundError, match="owner_06"):
        add_tasks(smaller, ["owner_06"], trainer_of(images, arguments), arguments)


@pytest.mark.parametrize("name", ["vector_digest", "data_digest"])
def test_a_tampered_record_is_noticed(images, trainer_of, merged, name):
    arguments, state = merged
    record = dataclasses.replace(state.records["owner_01"], **{name: "0" * 64})
    tampered = dataclasses.replace(state, records={**state.records, "owner_01": record})
    message = "Retraining task 'owner_01' gave other bits" if name == "vector_digest" else "data of task 'owner_01'"
    with pytest.raises(DigestMismatchError, match=rf"{message}.*{'0' * 16}….*Nothing was changed"):
        unmerge_tasks(tampered, ["owner_01"], trainer_of(images, arguments), arguments)


def test_a_retained_task_is_checked_when_its_vector_is_needed(merged_of, images, trainer_of, settings):
    arguments = settings(localization="emr")
    state = merged_of(images, arguments)
    record = dataclasses.replace(state.records["owner_03"], vector_digest="0" * 64)
    tampered = dataclasses.replace(state, records={**state.records, "owner_03": record})
    with pytest.raises(DigestMismatchError, match="Retraining task 'owner_03' gave other bits"):
        unmerge_tasks(tampered, ["owner_01"], trainer_of(images, arguments), arguments)


def test_other_settings_of_training_are_noticed(images, trainer_of, settings, merged):
    arguments, state = merged
    other = settings(learning_rate=0.011)
    with pytest.raises(DigestMismatchError, match="Retraining task 'owner_01' gave other bits"):
        unmerge_tasks(state, ["owner_01"], trainer_of(images, other), arguments)


def test_unknown_tasks_are_refused_without_naming_other_owners(images, trainer_of, merged):
    arguments, state = merged
    trainer = trainer_of(images, arguments)
    with pytest.raises(TaskNotFoundError, match=r"'owner_1'; 6 are merged. Did you mean 'owner_01'") as refused:
        unmerge_tasks(state, ["owner_00", "owner_1"], trainer, arguments)
    others = [task_id for task_id in state.task_ids if task_id != "owner_01"]  # the same number, written otherwise
    assert not [task_id for task_id in others if task_id in str(refused.value)]
    with pytest.raises(TaskNotFoundError, match="'owner_9'"):
        state.cluster_of("owner_9")
    smaller = unmerge_tasks(state, ["owner_01"], trainer, arguments)
    with pytest.raises(TaskNotFoundError, match="is forgotten already"):
        unmerge_tasks(smaller, ["owner_01"], trainer, arguments)
    with pytest.raises(TaskNotFoundError, match=r"called 'z0', 'z1', 'z2', 'z3', 'z4' …; 1 are"):
        require_merged([f"z{n}" for n in range(7)], ["abc"])


def test_a_merged_task_cannot_be_added_again(images, trainer_of, merged):
    arguments, state = merged
    with pytest.raises(TaskAlreadyMergedError, match="Task 'owner_03' is merged already"):
        add_tasks(state, ["owner_03"], trainer_of(images, arguments), arguments)


def test_column_clustering_needs_a_column(rows, trainer_of, settings):
    from hf_clamu.tasks import TaskDataset

    arguments = settings(clustering="column")
    tasks = TaskDataset.from_dataset(rows, task_column="task", image_column="image", label_column="label")
    with pytest.raises(TaskDataError, match="name a cluster_column"):
        merge_tasks(trainer_of(tasks, arguments), arguments)


def test_a_global_state_serves_all_weights(merged_of, images, settings, merged):
    arguments = settings(localization="global")
    state = merged_of(images, arguments)
    assert state.masks == ()
    assert state.mask(0).fill == 255
    assert merged[1].mask(1).bits is merged[1].masks[1]
