from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_clamu.merging import ClamuArguments, add_tasks, merge_tasks, place_anchors, unmerge_tasks
from hf_clamu.tasks import TaskDataset, digits, digits_public
from hf_clamu.training import TaskTrainer, Workspace, deterministic, example_features, seeded

_COLUMNS = {
    "task_column": "task",
    "image_column": "image",
    "label_column": "label",
    "cluster_column": "group",
    "validation_fraction": 0.25,
}


@pytest.fixture(autouse=True)
def _one_thread():
    with deterministic(num_threads=1):
        yield


@pytest.fixture(scope="session")
def rows() -> Dataset:
    dataset = digits(num_tasks=6).filter(lambda row: int(row["id"]) % 12 == 0)
    return dataset.add_column("group", ["xyx"[int(task[-1]) % 3] for task in dataset["task"]])


@pytest.fixture(scope="session")
def cut():
    """Cuts rows into tasks."""
    return lambda dataset: TaskDataset.from_dataset(dataset, **_COLUMNS)


@pytest.fixture(scope="session")
def images(rows, cut) -> TaskDataset:
    return cut(rows)


@pytest.fixture(scope="session")
def settings():
    def make(**changes) -> ClamuArguments:
        values = {
            "finetune_steps": 2,
            "learning_rate": 0.01,
            "fraction_bits": 28,
            "batch_size": 8,
            "mask_steps": 2,
            "mask_batch_size": 16,
            "num_clusters": 2,
            "num_threads": 1,
        }
        return ClamuArguments(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def trainer_of(settings):
    """Makes a trainer with a workspace of its own."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=10,
    )

    def make(tasks: TaskDataset, arguments: ClamuArguments | None = None, progress=None) -> TaskTrainer:
        arguments = arguments or settings()
        with seeded(1):
            model = ViTForImageClassification(config).eval()
        workspace = Workspace(model)
        anchors = _anchors(workspace, arguments) if arguments.clustering_method.needs_public_rows else None
        trainer = TaskTrainer(workspace, tasks, None, arguments, arguments.codec, anchors=anchors)
        if progress is not None:
            trainer.progress = progress
        return trainer

    return make


def _anchors(workspace: Workspace, arguments: ClamuArguments) -> dict[str, torch.Tensor]:
    images, _ = digits_public()
    examples = [{"pixel_values": torch.from_numpy(image)[None]} for image in images[:60]]
    return place_anchors(example_features(workspace, examples), arguments.num_clusters, arguments.seed)


@pytest.fixture(scope="session")
def merged_of(trainer_of):
    """Merges tasks of the shared data, each set once per settings; a state is a value that nobody changes."""
    states = {}

    def make(tasks: TaskDataset, arguments: ClamuArguments):
        key = (tasks.task_ids, arguments)
        if key not in states:
            states[key] = merge_tasks(trainer_of(tasks, arguments), arguments)
        return states[key]

    return make


def _assert_same(found, expected) -> None:
    assert list(found.records) == list(expected.records)
    assert found.records == expected.records
    assert found.clusters == expected.clusters
    assert (found.alpha, found.global_alpha) == (expected.alpha, expected.global_alpha)
    assert found.factors == expected.factors
    for rows, right in ((found.task_features, expected.task_features), (found.base_features, expected.base_features)):
        assert (rows is None) == (right is None)
        assert right is None or (rows.dtype == right.dtype and torch.equal(rows, right))
    assert len(found.masks) == len(expected.masks)
    assert len(found.task_masks) == len(expected.task_masks)
    pairs = [(found.delta, expected.delta), *zip(found.masks, expected.masks, strict=True)]
    pairs += zip(found.task_masks, expected.task_masks, strict=True)
    for ours, theirs in pairs:
        assert list(ours) == list(theirs)
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype
            assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="session")
def assert_same():
    return _assert_same


@pytest.fixture(scope="session")
def check_requests(images, merged_of, trainer_of):
    """Checks that two tasks are unmerged and added as builds are made; returns the builds with and without them."""

    def check(arguments: ClamuArguments):
        gone = images.task_ids[:2]
        whole, left = merged_of(images, arguments), merged_of(images.without(gone), arguments)
        trainer = trainer_of(images, arguments)
        unmerged = unmerge_tasks(whole, gone, trainer, arguments)
        _assert_same(unmerged, left)
        assert unmerged.cluster_names == left.cluster_names
        _assert_same(add_tasks(left, gone, trainer, arguments), whole)
        return whole, left

    return check
