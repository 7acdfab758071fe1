"""Dry runs change nothing and foresee the request; `max_drop` refuses; receipts say what other tasks lose."""

from __future__ import annotations

import json
import shutil

import pytest
from datasets import Dataset

from hf_clamu import ChangeEffect, ClamuModel, RecipeError, ScoreDropError, TaskDataset
from hf_clamu.evaluation import evaluate_model
from hf_clamu.operations.lifecycle.receipts import commitment, is_receipt, read_receipts

PER_TASK = {"localization": "sift", "clustering": "none", "scaling": 1.0}
HARMFUL = {"learning_rate": 0.03, "finetune_steps": 8}
FORGOTTEN = ["user_0", "user_2"]


def _build(tiny, folder, tasks=None, **changes):
    options = {"archive_dir": folder / "archive", "snapshot": True}
    tiny.train("text", tasks, options=options, **changes).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def built(tiny, tmp_path_factory):
    """Models with an archive and a snapshot beside them; not to be changed."""
    folders = {}

    def of(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in folders:
            folders[key] = _build(tiny, tmp_path_factory.mktemp("built"), **changes)
        return folders[key]

    return of


@pytest.fixture
def place(built, tmp_path):
    """Gives a copy of such a folder."""

    def copy(**changes):
        return shutil.copytree(built(**changes), tmp_path / "place")

    return copy


def _fewer(tiny, user):
    """The tasks, one of them without its last row."""
    rows = tiny.rows("text")
    last = max(number for number, name in enumerate(rows["user"]) if name == user)
    kept = {key: [value for number, value in enumerate(values) if number != last] for key, values in rows.items()}
    settings = {"task_column": "user", "cluster_column": "group", "text_column": "text", "label_column": "label"}
    settings |= {"label_names": ("bad", "good", "mixed"), "validation_fraction": 0.3}
    return TaskDataset.from_dataset(Dataset.from_dict(kept), **settings).select([user])


def _served(model):
    found = {}
    for task_id in model.tasks:
        with model.serving(task=task_id):
            found[task_id] = _weights(model)
    return found


def _mates(model):
    return {task_id: set(members) for members in model.clusters for task_id in members}


def _scores(model, tiny):
    tasks = evaluate_model(model, tiny.tasks("text"), split="validation").tasks
    return {task_id: scores["accuracy"] for task_id, scores in tasks.items()}


def _weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def _options(folder):
    return {name: folder / name for name in ("archive", "journal_dir", "receipt_dir")}


@pytest.mark.parametrize("changes", [{}, PER_TASK], ids=["clusters", "per-task"])
def test_a_dry_run_changes_nothing_and_foresees_the_request(tiny, built, place, changes, tmp_path):
    folder = place(**changes)
    before = tiny.digests(folder)
    model = ClamuModel.from_pretrained(folder / "model").set_cluster(task="user_2")
    weights, cluster = _weights(model), model.cluster
    effect = model.unmerge_task("user_0", dry_run=True, **_options(folder))
    assert isinstance(effect, ChangeEffect)
    assert tiny.digests(folder) == before
    assert (model.cluster, model.receipts, "user_0" in model.tasks) == (cluster, (), True)
    assert _same(_weights(model), weights)

    model.unmerge_task("user_0", **_options(folder))
    model.save_pretrained(folder / "model")
    (receipt,) = read_receipts(folder / "receipt_dir").values()
    salt = receipt["private"]["effect_salt"]
    assert receipt["effect"] == effect.for_receipt(lambda name: commitment(salt, name))
    assert set(effect.tasks) == set(model.tasks)
    for task_id, task in effect.tasks.items():
        assert task.cluster_after == model.cluster_names[model.cluster_of(task_id)]
    # The same bytes as without the dry run.
    plain = ClamuModel.from_pretrained(built(**changes) / "model")
    plain.unmerge_task("user_0", data=tiny.tasks("text"))
    plain.save_pretrained(tmp_path / "plain")
    assert tiny.digests(tmp_path / "plain") == tiny.digests(folder / "model")


def test_additions_and_updates_are_foreseen(tiny, place):
    folder = place()
    tasks, other = tiny.tasks("text"), tiny.tasks("text").select("user_1")
    model = ClamuModel.from_pretrained(folder / "model")
    model.unmerge_task("user_1", data=tasks)
    model.save_pretrained(folder / "model")
    before = tiny.digests(folder)
    added = model.add_task(other, dry_run=True, **_options(folder))
    assert (added.num_tasks_before, added.num_tasks_after) == (4, 5)
    assert tiny.digests(folder) == before
    model.add_task(other, **_options(folder))
    assert added.summary().items() <= model.receipts[-1]["effect"].items()
    model.save_pretrained(folder / "model")
    before = tiny.digests(folder)
    assert model.update_task(other, dry_run=True).changed == ()
    changed = _fewer(tiny, "user_1")
    updated = model.update_task(changed, dry_run=True, **_options(folder))
    assert "user_1" not in updated.tasks
    assert tiny.digests(folder) == before
    model.update_task(changed, **_options(folder))
    assert updated.summary().items() <= model.receipts[-1]["effect"].items()


def test_weights_that_change_are_those_that_are_served(built):
    """Memberships and weights, from what the live model serves before and after."""
    model = ClamuModel.from_pretrained(built() / "model")
    served, mates = _served(model), _mates(model)
    effect = model.unmerge_task("user_0", dry_run=True)
    model.unmerge_task("user_0")
    after, mates_after = _served(model), _mates(model)
    retained = set(model.tasks)
    assert set(effect.changed) == {one for one in retained if not _same(served[one], after[one])}
    assert set(effect.moved) == {one for one in retained if mates[one] - {"user_0"} != mates_after[one]}
    assert effect.changed


def test_scores_are_those_that_evaluation_measures(built, tiny):
    model = ClamuModel.from_pretrained(built() / "model")
    before = _scores(model, tiny)
    effect = model.unmerge_task("user_0", dry_run=True)
    assert {one: task.score_before for one, task in effect.tasks.items()} == {one: before[one] for one in effect.tasks}
    model.unmerge_task("user_0")
    assert {one: task.score_after for one, task in effect.tasks.items()} == _scores(model, tiny)
    assert set(before.values()) != {0.0}
    drops = [before[one] - task.score_after for one, task in effect.tasks.items()]
    assert effect.worst_drop == max(0.0, *drops)


def test_too_large_a_drop_is_refused_and_changes_nothing(tiny, place):
    folder = place(**HARMFUL)
    before = tiny.digests(folder)
    model = ClamuModel.from_pretrained(folder / "model").set_cluster(task="user_2")
    weights, cluster = _weights(model), model.cluster
    worst = model.unmerge_task(FORGOTTEN, dry_run=True).worst_drop
    assert worst > 0
    for options in ({}, {"dry_run": True}):
        with pytest.raises(ScoreDropError, match=f"would lose {worst:.3f} of its accuracy"):
            model.unmerge_task(FORGOTTEN, max_drop=worst - 0.01, **options, **_options(folder))
    assert tiny.digests(folder) == before
    assert (model.cluster, model.receipts) == (cluster, ())
    assert _same(_weights(model), weights)
    with pytest.raises(ScoreDropError):
        model.unmerge_requests({"a": FORGOTTEN}, max_drop=0.0)
    model.unmerge_task(FORGOTTEN, max_drop=worst, **_options(folder))
    model.save_pretrained(folder / "model")
    assert not set(FORGOTTEN) & set(model.tasks)


def test_an_archive_gets_no_vector_of_a_refused_addition(tiny, place):
    folder = place(**HARMFUL)
    model = ClamuModel.from_pretrained(folder / "model")
    model.unmerge_task(FORGOTTEN, archive=folder / "archive")
    model.save_pretrained(folder / "model")
    vectors = tiny.digests(folder / "archive")
    more = tiny.tasks("text").select(FORGOTTEN)
    worst = model.add_task(more, dry_run=True).worst_drop
    if worst:
        with pytest.raises(ScoreDropError):
            model.add_task(more, max_drop=0.0, archive=folder / "archive")
        assert tiny.digests(folder / "archive") == vectors
    model.add_task(more, max_drop=1.0, archive=folder / "archive")
    assert len(tiny.digests(folder / "archive")) == len(vectors) + len(FORGOTTEN)
    model.unmerge_task(FORGOTTEN, archive=folder / "archive")  # they are usable


def test_what_cannot_be_measured_is_said_and_not_allowed(place, tiny):
    """With an archive alone, other tasks are neither read nor measured."""
    folder = place(localization="global", clustering="random", score_validation=False)
    shutil.rmtree(folder / "model.snapshot")
    before = tiny.digests(folder)
    model = ClamuModel.from_pretrained(folder / "model")
    effect = model.unmerge_task("user_0", dry_run=True, archive=folder / "archive")
    assert (effect.changed, effect.worst_drop) == (model.tasks[1:], None)
    assert effect.unmeasured == effect.changed
    with pytest.raises(ScoreDropError, match=r"4 tasks that stay, such as 'user_1', .* cannot be judged"):
        model.unmerge_task("user_0", max_drop=1, **_options(folder))
    assert tiny.digests(folder) == before
    assert model.unmerge_task("user_0", **_options(folder)).receipts[-1]["effect"]["num_unmeasured"] == 4


def test_wrong_values_are_refused(built):
    model = ClamuModel.from_pretrained(built() / "model")
    for value in (-1, float("nan"), 2, "much", True):
        with pytest.raises(RecipeError, match="max_drop"):
            model.unmerge_task("user_0", max_drop=value)


def test_receipts_name_no_task_that_stays(built):
    model = ClamuModel.from_pretrained(built() / "model")
    model.unmerge_task("user_0")
    receipt = model.receipts[-1]
    assert is_receipt(receipt)
    public = json.dumps({key: value for key, value in receipt.items() if key != "private"})
    assert not [name for name in (*model.tasks, *model.cluster_names) if name in public]
    assert is_receipt({key: value for key, value in receipt.items() if key != "private"})
    assert not is_receipt({**receipt, "effect": {**receipt["effect"], "tasks": [{"task": "user_1"}]}})
    # Those of earlier releases have neither.
    old = {key: value for key, value in receipt.items() if key != "effect"}
    assert is_receipt({**old, "private": {"salts": receipt["private"]["salts"]}})
