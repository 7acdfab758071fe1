"""Held-out scores of a merged state."""

from __future__ import annotations

import pytest

from hf_clamu.merging import merge_tasks, remark_on, unmerge_tasks
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import measure


def test_scores_by_hand(merged_of, trainer_of, settings, images):
    arguments = settings()
    state = merged_of(images, arguments)
    trainer = trainer_of(images, arguments)
    scores = state.scores
    assert scores["num_tasks"] == len(images)
    assert scores["num_examples"] == sum(record.num_validation for record in state.records.values())
    expected = {"base": {}, "global": {}, "own": {}}
    for number, members in enumerate(state.clusters):
        for task_id in members:
            held_out = trainer.encoded(task_id).validation
            trainer.workspace.reset()
            expected["base"][task_id] = measure(trainer.workspace, held_out, images.spec.kind).score
            trainer.load_masked(state.delta, state.alpha)
            expected["global"][task_id] = measure(trainer.workspace, held_out, images.spec.kind).score
            trainer.load_masked(state.delta, state.alpha, state.mask(number))
            expected["own"][task_id] = measure(trainer.workspace, held_out, images.spec.kind).score
        for name, found in expected.items():
            mean = sum(found[task_id] for task_id in members) / len(members)
            assert scores["clusters"][number][name] == pytest.approx(mean)
    for name, found in expected.items():
        assert scores["mean"][name] == pytest.approx(sum(found.values()) / len(images))


def test_a_global_model_has_no_own_clusters(merged_of, settings, images):
    scores = merged_of(images, settings(localization="global")).scores
    assert list(scores["mean"]) == ["base", "global"]


def test_scores_are_those_of_the_retained_tasks(merged_of, trainer_of, settings, images):
    arguments = settings()
    before = merged_of(images, arguments)
    after = unmerge_tasks(before, ["owner_01"], trainer_of(images, arguments), arguments)
    assert after.scores == merged_of(images.without("owner_01"), arguments).scores
    assert after.scores["num_tasks"] == before.scores["num_tasks"] - 1


def test_without_validation_examples_there_are_none(trainer_of, settings, rows):
    columns = {"task_column": "task", "image_column": "image", "label_column": "label"}
    trainer = trainer_of(TaskDataset.from_dataset(rows, **columns), settings())
    assert merge_tasks(trainer, settings()).scores is None


@pytest.mark.parametrize(
    ("mean", "start"),
    [
        ({"base": 0.4, "global": 0.5, "own": 0.4}, "Nothing was learned that shows on the validation rows (base 40"),
        ({"base": 0.4, "global": 0.3}, "Nothing was learned"),
        ({"base": 0.4, "global": 0.895, "own": 0.9}, "One model for all serves about as well as the masks"),
        ({"base": 0.4, "global": 0.5, "own": 0.9}, None),
        ({"base": 0.4, "global": 0.5}, None),
    ],
)
def test_disappointing_scores_get_one_sentence(mean, start):
    remark = remark_on(mean)
    assert remark is None if start is None else remark.startswith(start)
