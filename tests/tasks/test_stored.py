"""Encoded examples are packed and unpacked to the same bits, and make a data set that gives them again."""

from __future__ import annotations

import pytest
import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks import EncodedTask, StoredTask, TaskDataset, pack, unpack
from hf_clamu.tasks.encoding import arrange


def _stored(tasks, encoded):
    stored = {
        task_id: StoredTask(
            num_train=len(one.train),
            num_validation=len(one.validation),
            cluster_key=one.cluster_key,
            origin="a test",
            read=lambda one=one: one,
        )
        for task_id, one in encoded.items()
    }
    return TaskDataset(tasks.spec, stored, None)


@pytest.mark.parametrize("kind", ["text", "lm", "image", "words", "seq2seq"])
def test_every_kind_comes_back_bit_for_bit(tiny, kind):
    tasks = tiny.tasks(kind)
    processor = tiny.processor("image" if kind == "image" else "text")
    for task_id in tasks:
        encoded = tasks.encode(task_id, processor)
        assert encoded.train
        assert encoded.validation
        back = arrange(tasks.spec, task_id, *unpack(pack(encoded)), encoded.cluster_key)
        assert back.digest == encoded.digest
        for one, other in zip((*back.train, *back.validation), (*encoded.train, *encoded.validation), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_few_tensors_hold_many_examples(tiny):
    encoded = tiny.tasks("text").encode("user_1", tiny.processor("text"))
    assert sorted(pack(encoded)) == sorted(
        f"{part}/{field}{ending}"
        for part in ("train", "validation")
        for field in ("attention_mask", "input_ids", "labels")
        for ending in ("", "/shapes")
    )


def test_examples_of_two_forms_are_refused():
    examples = ({"labels": torch.tensor(1)}, {"labels": torch.tensor(1.0)})
    encoded = EncodedTask(task_id="a", train=examples, validation=(), digest="")
    with pytest.raises(TaskDataError, match="examples of task 'a' differ in fields, types or dimensions"):
        pack(encoded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("train/labels/shapes"),
        lambda tensors: tensors.update({"train/input_ids": tensors["train/input_ids"][1:]}),
        lambda tensors: tensors.update({"train/labels/shapes": tensors["train/labels/shapes"].float()}),
        lambda tensors: tensors.update({"train/extra": torch.ones(1), "train/extra/shapes": torch.ones(1, 1).long()}),
    ],
)
def test_damaged_tensors_are_refused(tiny, damage):
    tensors = pack(tiny.tasks("text").encode("user_1", tiny.processor("text")))
    damage(tensors)
    with pytest.raises((KeyError, ValueError)):
        unpack(tensors)


def test_a_data_set_of_stored_tasks_gives_what_its_rows_gave(tiny):
    tasks, processor = tiny.tasks("text"), tiny.processor("text")
    encoded = {task_id: tasks.encode(task_id, processor) for task_id in tasks}
    stored = _stored(tasks, encoded)
    assert stored.has_rows
    assert stored.origin == "a test"
    for task_id in tasks:
        assert stored.encode(task_id, None) is encoded[task_id]
        assert stored.num_examples(task_id) == tasks.num_examples(task_id)
        assert stored.has_validation(task_id) == tasks.has_validation(task_id)
        assert stored.cluster_key(task_id) == tasks.cluster_key(task_id)
        assert stored.is_stored(task_id)
        assert not tasks.is_stored(task_id)
    with pytest.raises(TaskDataError, match="came without rows"):
        stored.rows("user_1", processor)
    with pytest.raises(TaskDataError, match="come as encoded examples"):
        stored.with_key("secret")


def test_stored_tasks_and_rows_go_together(tiny):
    tasks, processor = tiny.tasks("text"), tiny.processor("text")
    encoded = {"user_0": tasks.encode("user_0", processor)}
    both = _stored(tasks, encoded).merged_with(tasks.without("user_0"))
    assert both.task_ids == tasks.task_ids
    assert [both.encode(task_id, processor).digest for task_id in both] == [
        tasks.encode(task_id, processor).digest for task_id in tasks
    ]
