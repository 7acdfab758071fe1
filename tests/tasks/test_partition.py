"""Cuts into tasks: no row in two of them, the same for the same seed, and what is short or doubled is said."""

from __future__ import annotations

import itertools

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import TaskDataset, partition_by_column, partition_by_labels, partition_uniform


@pytest.fixture
def tweets() -> Dataset:
    """Users "u01" to "u12" with as many rows as their number; two rows of nobody."""
    users = [f"u{number:02d}" for number in range(1, 13) for _ in range(number)] + [None, ""]
    return Dataset.from_dict(
        {
            "user": users,
            "text": [f"text {row}" for row in range(len(users))],
            "label": [row % 2 for row in range(len(users))],
        }
    )


def _labelled(sizes: list[int]) -> Dataset:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    names = [f"label {number}" for number in range(len(sizes))]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": [f"t{row}" for row in range(len(labels))], "label": labels}, features=features)


CUTS = {
    "column": lambda seed: partition_by_column(
        _labelled([40, 40, 40, 40]), "label", seed=seed, num_tasks=3, examples_per_task=20, num_validation=4
    ),
    "uniform": lambda seed: partition_uniform(
        _labelled([40, 40]), seed=seed, num_tasks=3, examples_per_task=20, num_validation=4
    ),
    "labels": lambda seed: partition_by_labels(
        _labelled([40] * 6), "label", seed=seed, num_tasks=7, labels_per_task=2, examples_per_task=20, num_validation=4
    ),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
def test_no_row_is_used_twice_and_the_seed_decides(cut):
    found, report = cut(0)
    rows = [(text, task) for split in found.values() for text, task in zip(split["text"], split["task"], strict=True)]
    assert len({text for text, _ in rows}) == len(rows) == report.num_used
    assert report.num_used + report.num_left_over == report.num_rows
    assert len(found["validation"]) == report.num_validation == 4 * report.num_tasks
    assert not report.is_short
    again, same = cut(0)
    assert same == report
    assert again["train"].to_dict() == found["train"].to_dict()
    other, _ = cut(1)
    assert other["train"].to_dict() != found["train"].to_dict()


@pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
def test_task_data_sets_take_the_cut(cut):
    found, report = cut(0)
    tasks = TaskDataset.from_dataset(found, task_column="task", text_column="text", label_column="label")
    assert len(tasks) == report.num_tasks
    assert {tasks.num_examples(task) for task in tasks} == {24}
    assert tasks.spec.label_names == tuple(found["train"].features["label"].names)


def test_a_cut_is_the_same_on_every_machine():
    found, _ = partition_uniform(_labelled([6]), num_tasks=2)
    numbers = {"t0": 0, "t1": 0, "t2": 1, "t3": 0, "t4": 1, "t5": 1}
    assert dict(zip(found["text"], found["task"], strict=True)) == {t: f"task_{n:02d}" for t, n in numbers.items()}


def test_users_are_drawn_among_those_with_enough_and_not_too_many_rows(tweets):
    found, report = partition_by_column(tweets, "user", min_examples=4, max_examples=9, label_column="label")
    assert sorted(set(found["task"])) == [f"u{number:02d}" for number in range(4, 10)]
    assert report.examples == (4, 6.5, 9)
    assert report.labels == (2, 2, 2)
    assert report.num_left_over == 80 - (4 + 5 + 6 + 7 + 8 + 9)
    drawn = [set(partition_by_column(tweets, "user", seed=seed, num_tasks=3)[0]["task"]) for seed in range(5)]
    assert all(len(users) == 3 for users in drawn)
    assert len({tuple(sorted(users)) for users in drawn}) > 1


def test_rows_above_the_cap_are_left_over(tweets):
    found, report = partition_by_column(tweets, "user", examples_per_task=5)
    assert max(list(found["task"]).count(user) for user in set(found["task"])) == 5
    assert report.examples == (1, 5, 5)
    assert report.is_short  # users with fewer than five


def test_fewer_tasks_where_fewer_users_qualify_is_said(tweets):
    _, report = partition_by_column(tweets, "user", num_tasks=50, min_examples=10)
    assert (report.num_tasks, report.num_tasks_wanted, report.is_short) == (3, 50, True)
    assert "3 tasks (asked for: 50) of 10 to 12 (median 11) examples" in str(report)
    with pytest.raises(TaskDataError, match="No value of column 'user' has at least 13 rows; there are 12 values"):
        partition_by_column(tweets, "user", min_examples=13)
    with pytest.raises(TaskDataError, match="has at least 13 and at most 20 rows"):
        partition_by_column(tweets, "user", min_examples=13, max_examples=20)


def test_numbers_become_ids():
    found, _ = partition_by_column(Dataset.from_dict({"user": [7, 8, 7], "text": ["a", "b", "c"]}), "user")
    assert sorted(found["task"]) == ["7", "7", "8"]


def test_short_data_are_dealt_evenly_and_it_is_said():
    found, report = partition_uniform(_labelled([100]), num_tasks=7, examples_per_task=20, num_validation=2)
    assert report.examples == (14, 14, 15)
    assert report.examples_wanted == 22
    assert (report.is_short, report.num_left_over) == (True, 0)
    held_out = list(found["validation"]["task"])
    assert {held_out.count(task) for task in held_out} == {1}
    with pytest.raises(TaskDataError, match="100 rows cannot be dealt to 101 tasks"):
        partition_uniform(_labelled([100]), num_tasks=101)


def test_each_task_has_few_labels_and_each_label_is_used_as_often():
    found, report = partition_by_labels(_labelled([60] * 9), "label", num_tasks=12, labels_per_task=3)
    pairs = set(zip(found["task"], found["label"], strict=True))
    assert report.labels == (3, 3, 3)
    uses = [sum(label == one for _, label in pairs) for one in range(9)]
    assert set(uses) == {4}
    assert report.num_left_over == 0
    subsets = {tuple(sorted(label for task, label in pairs if task == one)) for one, _ in pairs}
    assert len(subsets) > 6


def test_tasks_may_have_different_numbers_of_labels():
    found, report = partition_by_labels(
        _labelled([60] * 9), "label", num_tasks=8, labels_per_task=(2, 5), examples_per_task=20, num_validation=10
    )
    rows = [pair for split in found.values() for pair in zip(split["task"], split["label"], strict=True)]
    pairs = set(rows)
    numbers = [sum(task == one for task, _ in pairs) for one in sorted({task for task, _ in pairs})]
    assert sorted(numbers) == [2, 2, 3, 3, 4, 4, 5, 5]
    assert (report.labels, report.examples) == ((2, 3.5, 5), (30, 30, 30))
    uses = [sum(label == one for _, label in pairs) for one in range(9)]
    assert max(uses) - min(uses) <= 1
    for task, label in pairs:
        assert rows.count((task, label)) in {-(-30 // number) for number in numbers} | {30 // n for n in numbers}


def test_an_uneven_number_of_examples_per_label_is_dealt_out():
    found, report = partition_by_labels(
        _labelled([60] * 4), "label", num_tasks=2, labels_per_task=3, examples_per_task=10, num_validation=1
    )
    assert report.examples == (11, 11, 11)
    counts = [
        sum(
            (task, label) == (one, kind)
            for split in found.values()
            for task, label in zip(split["task"], split["label"], strict=True)
        )
        for one, kind in itertools.product(("task_00", "task_01"), range(4))
    ]
    assert sorted(count for count in counts if count) == [3, 3, 4, 4, 4, 4]


def test_labels_with_few_rows_are_spared_while_others_last():
    found, report = partition_by_labels(
        _labelled([100, 100, 100, 10]), "label", num_tasks=6, labels_per_task=1, examples_per_task=10
    )
    assert list(found["label"]).count(3) == 10
    assert report.examples == (10, 10, 10)
    _, report = partition_by_labels(
        _labelled([20, 20, 20]), "label", num_tasks=6, labels_per_task=2, examples_per_task=20
    )
    assert (report.examples, report.is_short, report.num_left_over) == ((10, 10, 10), True, 0)


def test_content_that_two_tasks_have_is_counted():
    rows = {"user": ["a", "a", "b", "c", "c"], "text": ["x", "x", "x", "y", "z"], "id": [0, 1, 2, 3, 4]}
    dataset = Dataset.from_dict(rows)
    assert partition_by_column(dataset, "user")[1].num_shared == 0  # the ids tell them apart
    _, report = partition_by_column(dataset, "user", content_columns=["text"])
    assert report.num_shared == 1
    assert "1 contents in more than one task" in str(report)


def test_pictures_are_compared_by_their_bytes():
    pictures = [Picture.new("RGB", (2, 2), color) for color in ("red", "red", "blue", "green")]
    features = Features({"image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
    _, report = partition_by_column(dataset, "label", content_columns=["image"])
    assert report.num_shared == 1


def test_rows_that_are_not_used_do_not_count_as_content():
    dataset = Dataset.from_dict({"user": ["a", "b", "b"], "text": ["x", "x", "y"]})
    assert partition_by_column(dataset, "user", min_examples=2, content_columns=["text"])[1].num_shared == 0


def test_a_selected_data_set_is_cut_as_it_is(tweets):
    found, _ = partition_by_column(tweets.filter(lambda row: row["label"] == 0), "user", num_validation=1)
    assert isinstance(found, DatasetDict)
    assert set(found["train"]["label"]) | set(found["validation"]["label"]) == {0}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_tasks": 0}, RecipeError, "num_tasks must be a whole number, at least 1; found 0"),
        ({"num_tasks": 2, "examples_per_task": True}, RecipeError, "examples_per_task must be"),
        ({"num_tasks": 2, "num_validation": -1}, RecipeError, "num_validation must be a whole number, at least 0"),
        ({"num_tasks": 2, "task_column": "text"}, RecipeError, "has a column 'text' already"),
        ({"num_tasks": 2, "label_column": "kind"}, TaskDataError, "no column 'kind'; it has text, label"),
        ({"num_tasks": 2, "content_columns": ["kind"]}, TaskDataError, "no column 'kind'"),
    ],
)
def test_bad_settings_are_named(options, error, words):
    with pytest.raises(error, match=words):
        partition_uniform(_labelled([4]), **options)


def test_more_labels_than_there_are_are_refused():
    with pytest.raises(RecipeError, match=r"labels_per_task must be 1 to 2, the number of labels; found \(2, 1\)"):
        partition_by_labels(_labelled([4, 4]), "label", num_tasks=1, labels_per_task=(2, 1))
    with pytest.raises(RecipeError, match="labels_per_task must be 1 to 2"):
        partition_by_labels(_labelled([4, 4]), "label", num_tasks=1, labels_per_task=3)
    with pytest.raises(TaskDataError, match="Label 0 has 2 rows for 3 tasks"):
        partition_by_labels(_labelled([2]), "label", num_tasks=3, labels_per_task=1)
