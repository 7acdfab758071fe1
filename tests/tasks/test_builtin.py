from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import STDLIB_PACKAGES, digits, digits_public, stdlib_public, stdlib_text


def labels_of_tasks(dataset):
    labels = {}
    for task, label in zip(dataset["task"], dataset["label"], strict=True):
        labels.setdefault(task, []).append(label)
    return labels


def test_digits_are_disjoint_and_even():
    dataset = digits()
    labels = labels_of_tasks(dataset)
    assert sorted(labels) == [f"owner_{n:02d}" for n in range(48)]
    for task in labels.values():
        counts = Counter(task)
        assert len(counts) == 2
        assert min(counts.values()) >= 8
    assert len(set(dataset["id"])) == len(dataset)
    images, public_labels = digits_public()
    assert len(dataset) + len(images) == 1797
    assert images.dtype == np.float32
    assert set(public_labels) == set(range(10))
    # Images may be equal by chance, rows may not: count each image's rows on both sides.
    every = Counter(image.tobytes() for image in (load_digits().images / 16).astype(np.float32))
    halves = Counter(image.tobytes() for image in images)
    halves.update(np.asarray(image, dtype=np.float32).tobytes() for image in dataset["image"])
    assert halves == every


def test_digits_are_deterministic_and_seeded():
    assert digits().to_dict() == digits().to_dict()
    one, two = digits(seed=0), digits(seed=1)
    assert set(one["id"]) == set(two["id"])
    assert one["id"] != two["id"]


def test_digits_options():
    assert {len(set(task)) for task in labels_of_tasks(digits(num_tasks=5, labels_per_task=3)).values()} == {3}
    with pytest.raises(RecipeError, match="too many"):
        digits(num_tasks=1000)
    with pytest.raises(RecipeError, match="labels_per_task 1 to 10"):
        digits(labels_per_task=11)


def test_stdlib_text():
    dataset = stdlib_text()
    assert tuple(dataset.features["label"].names) == STDLIB_PACKAGES
    labels = labels_of_tasks(dataset)
    assert len(labels) == 24
    assert all(len(set(task)) == 2 for task in labels.values())
    assert all(15 <= len(task) <= 80 for task in labels.values())
    texts = dataset["text"]
    assert len(set(texts)) == len(set(dataset["id"])) == len(dataset)
    public, labels = stdlib_public()
    assert len(labels) == len(public)
    assert set(labels) == set(range(len(STDLIB_PACKAGES)))
    assert not set(public) & set(texts)
    assert abs(len(public) - len(dataset)) <= len(STDLIB_PACKAGES)
    for name, label in zip(dataset["id"], dataset["label"], strict=True):
        assert name.startswith(STDLIB_PACKAGES[label] + "/")
