"""SIFT-Masks: the mask of a task is the support of its vector, found once and kept."""

from __future__ import annotations

import time

import pytest
import torch

from hf_clamu.errors import DigestMismatchError, RecipeError
from hf_clamu.exact import unpack_mask
from hf_clamu.merging import add_tasks, derivation_depends_on_environment, merge_tasks, unmerge_tasks, update_tasks
from hf_clamu.merging.localization.sift import support, union
from hf_clamu.storage import Journal
from hf_clamu.training import FixedSigns

FORGOTTEN = ("owner_01", "owner_04")
SINGLE = {"localization": "sift", "clustering": "none", "score_validation": False}


def _is_one(masks, bits):
    return all(torch.equal(masks[name], bits[name]) for name in bits)


@pytest.mark.parametrize("clustering", ["none", "features", "random", "column"])
def test_masks_are_supports_and_their_unions(merged_of, images, trainer_of, settings, clustering):
    arguments = settings(localization="sift", clustering=clustering)
    state = merged_of(images, arguments)
    trainer = trainer_of(images, arguments)
    signs = FixedSigns(trainer.workspace.theta_0, arguments.seed)
    supports = {}
    for task_id, mask in zip(images, state.task_masks, strict=True):
        vector = trainer.finetune(task_id)
        assert vector.digest == state.records[task_id].vector_digest
        supports[task_id] = {name: n != 0 for name, n in vector.steps.items()}
        for name, n in vector.steps.items():
            assert torch.equal(unpack_mask(mask[name], n.shape), n * signs.of(name) > 0)
    for members, mask in zip(state.clusters, state.masks, strict=True):
        for name, shape in trainer.workspace.shapes.items():
            expected = torch.stack([supports[task_id][name] for task_id in members]).any(0)
            assert torch.equal(unpack_mask(mask[name], shape), expected)
    # A weight that a task moves is in the sum, too: all vectors have the same sign there.
    delta = {name: n != 0 for name, n in state.delta.items()}
    for name, shape in trainer.workspace.shapes.items():
        assert torch.equal(unpack_mask(union(state.masks)[name], shape), delta[name])


def test_a_union_changes_no_member(images, trainer_of, settings):
    arguments = settings(localization="sift")
    trainer = trainer_of(images, arguments)
    masks = [support(trainer.finetune(task_id)) for task_id in ("owner_00", "owner_01")]
    copies = [{name: bits.clone() for name, bits in mask.items()} for mask in masks]
    assert not _is_one(union(masks), masks[0])
    assert _is_one(masks[0], copies[0])
    assert _is_one(masks[1], copies[1])
    assert union(masks[:1]) is masks[0]


def test_a_mask_per_task_is_kept_once(merged_of, images, settings):
    state = merged_of(images, settings(**SINGLE))
    assert state.has_mask_per_task
    assert all(ours is theirs for ours, theirs in zip(state.masks, state.task_masks, strict=True))


# -- what a request does ---------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Ids of the tasks that are finetuned."""
    from hf_clamu.training import TaskTrainer

    found = []
    finetune = TaskTrainer.finetune

    def finetuned(self, task_id):
        found.append(task_id)
        return finetune(self, task_id)

    monkeypatch.setattr(TaskTrainer, "finetune", finetuned)
    return found


@pytest.mark.parametrize("clustering", ["none", "features", "task_vectors", "random", "column"])
def test_unmerging_retrains_the_forgotten_alone_and_reads_no_other_data(
    merged_of, images, trainer_of, settings, assert_same, counted, clustering
):
    arguments = settings(**{**SINGLE, "clustering": clustering})
    state = merged_of(images, arguments)
    expected = merged_of(images.without(FORGOTTEN), arguments)
    counted.clear()
    theirs = trainer_of(images.select(FORGOTTEN), arguments)
    assert_same(unmerge_tasks(state, FORGOTTEN, theirs, arguments), expected)
    assert sorted(counted) == sorted(FORGOTTEN)


@pytest.mark.parametrize("clustering", ["none", "features", "column"])
def test_adding_and_updating_finetune_what_is_new(
    merged_of, rows, cut, images, trainer_of, settings, assert_same, counted, clustering
):
    arguments = settings(**{**SINGLE, "clustering": clustering})
    state, smaller = merged_of(images, arguments), merged_of(images.without(FORGOTTEN), arguments)
    first = rows["task"].index("owner_01")
    changed = cut(rows.select([row for row in range(len(rows)) if row != first]))
    expected = merge_tasks(trainer_of(changed, arguments), arguments)
    counted.clear()
    assert_same(add_tasks(smaller, FORGOTTEN, trainer_of(images, arguments), arguments), state)
    assert sorted(counted) == sorted(FORGOTTEN)
    counted.clear()
    updated = update_tasks(state, changed.select(["owner_01"]), trainer_of(images, arguments), arguments)
    assert_same(updated, expected)
    assert counted == ["owner_01", "owner_01"]  # to subtract it, and to add it
    assert not _is_one(updated.task_masks[1], state.task_masks[1])


def test_searching_alpha_reads_the_data_of_the_retained(images, merged_of, trainer_of, settings, assert_same):
    from hf_clamu.errors import TaskDataError

    arguments = settings(**{**SINGLE, "scaling": "auto"})
    state = merged_of(images, arguments)
    with pytest.raises(TaskDataError, match="no rows of the merged task 'owner_00'"):
        unmerge_tasks(state, FORGOTTEN, trainer_of(images.select(FORGOTTEN), arguments), arguments)
    found = unmerge_tasks(state, FORGOTTEN, trainer_of(images, arguments), arguments)
    assert_same(found, merged_of(images.without(FORGOTTEN), arguments))


def test_another_seed_has_other_signs(merged_of, images, trainer_of, settings):
    state = merged_of(images, settings(**SINGLE))
    other = settings(**SINGLE, seed=1)
    assert not _is_one(merged_of(images, other).masks[0], state.masks[0])
    with pytest.raises(DigestMismatchError, match="Retraining task 'owner_01' gave other bits"):
        unmerge_tasks(state, ["owner_01"], trainer_of(images, other), other)


def test_other_localizations_are_finetuned_freely(merged_of, images, settings):
    state = merged_of(images, settings(localization="global"))
    sift = merged_of(images, settings(localization="sift"))
    assert state.task_masks == ()
    assert all(state.records[one].vector_digest != sift.records[one].vector_digest for one in images)


def test_kept_masks_need_no_environment(merged_of, images, settings):
    arguments = settings(**SINGLE)
    records = merged_of(images, arguments).records
    assert not derivation_depends_on_environment(records, arguments)
    assert derivation_depends_on_environment(records, settings(**{**SINGLE, "clustering": "features"}))
    assert derivation_depends_on_environment(records, settings(**{**SINGLE, "scaling": "auto"}))


def test_tasks_from_checkpoints_are_refused(images, trainer_of, settings):
    class Locals:
        def __contains__(self, task_id):
            return task_id == "owner_03"

    arguments = settings(localization="sift")
    trainer = trainer_of(images, arguments)
    trainer.local_vectors = Locals()
    with pytest.raises(
        RecipeError, match=r"'sift' needs every task finetuned here.*'owner_03' comes from a checkpoint"
    ):
        merge_tasks(trainer, arguments)


# -- the journal -----------------------------------------------------------------------------------------------------


def _journaled(trainer_of, images, arguments, folder, interval=0.0):
    trainer = trainer_of(images, arguments)
    trainer.journal = Journal(folder, interval=interval)
    trainer.journal.open("run")
    return trainer


@pytest.fixture
def interrupted(images, trainer_of, settings, tmp_path):
    """A journal of a build that was stopped when it came to its fourth task."""
    arguments = settings(**{**SINGLE, "clustering": "features"})
    trainer = _journaled(trainer_of, images, arguments, tmp_path / "journal")

    def three(items, description):
        yield from list(items)[:3]
        raise KeyboardInterrupt

    trainer.progress = lambda items, description: three(items, description) if description == "finetune" else items
    with pytest.raises(KeyboardInterrupt):
        merge_tasks(trainer, arguments)
    return arguments, tmp_path / "journal"


def _masks_in(folder):
    journal = Journal(folder)
    journal.open("run")
    return journal.parts("task-masks")


def test_a_build_goes_on_from_the_journal(interrupted, images, trainer_of, merged_of, assert_same, counted):
    arguments, folder = interrupted
    expected = merged_of(images, arguments)
    assert len(_masks_in(folder)) == 3
    counted.clear()
    assert_same(merge_tasks(_journaled(trainer_of, images, arguments, folder), arguments), expected)
    assert len(counted) == 3
    assert len(_masks_in(folder)) == 6


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_sum_without_its_masks_is_done_again(
    interrupted, images, trainer_of, merged_of, assert_same, counted, damage
):
    arguments, folder = interrupted
    path = _masks_in(folder)[1].path
    expected = merged_of(images, arguments)
    counted.clear()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    assert_same(merge_tasks(_journaled(trainer_of, images, arguments, folder), arguments), expected)
    assert len(counted) == 6


def test_masks_do_not_put_off_the_sums(tmp_path):
    journal = Journal(tmp_path / "journal", interval=0.02)
    journal.open("run")
    time.sleep(0.03)
    journal.write("task-masks", {}, {"w": torch.zeros(1)}, is_timed=False)
    assert journal.is_due
    journal.write("sum", {}, {"w": torch.zeros(1)})
    assert not journal.is_due
