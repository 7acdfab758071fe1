from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value

from hf_clamu.errors import RecipeError, TaskDataError, TaskNotFoundError
from hf_clamu.tasks import TaskDataset

COLUMNS = {"task_column": "user", "text_column": "text", "label_column": "label"}


def load(rows, **settings):
    return TaskDataset.from_dataset(rows if type(rows) is not dict else Dataset.from_dict(rows), **COLUMNS | settings)


def test_tasks_and_their_rows(dataset):
    tasks = load(dataset, cluster_column="group", id_column="id", source={"files": "x.csv"})
    assert tasks.task_ids == tuple(tasks) == ("u1", "u2", "u3")
    assert len(tasks) == 3
    assert "u1" in tasks
    assert "u9" not in tasks
    assert [tasks.num_examples(task) for task in tasks] == [3, 8, 1]
    assert [tasks.cluster_key(task) for task in tasks] == ["A", "B", "A"]
    assert tasks.spec.label_names == ("neg", "neutral", "pos")
    assert tasks.num_labels == 3
    assert tasks.source == {"files": "x.csv"}
    assert load(dataset).cluster_key("u1") is None


def test_task_ids_are_sorted_by_code_point():
    rows = {"user": ["é", "a", "Z", "10", "9"], "text": ["x"] * 5, "label": ["l"] * 5}
    assert load(rows).task_ids == ("10", "9", "Z", "a", "é")


def test_without_keeps_the_label_space(dataset):
    tasks = load(dataset)
    assert tasks.without(["u2", "u3"]).task_ids == ("u1",)
    assert tasks.without("u2").spec == tasks.spec
    assert tasks.select("u3").num_labels == 3
    assert len(tasks.without(tasks)) == 0


def test_select_and_merge_give_the_same_set_back(dataset, tokenizer):
    tasks = load(dataset, source={"files": "x.csv"})
    again = tasks.select(["u3", "u1"]).merged_with(tasks.select("u2"))
    assert again.task_ids == tasks.task_ids
    assert again.source == tasks.source
    assert [again.encode(t, tokenizer).digest for t in again] == [tasks.encode(t, tokenizer).digest for t in tasks]


def test_merge_refuses_shared_tasks_and_other_settings(dataset):
    tasks = load(dataset)
    with pytest.raises(TaskDataError, match="'u1' is in both"):
        tasks.without("u3").merged_with(tasks.without("u2").without("u3"))
    with pytest.raises(TaskDataError, match="differ in split_seed"):
        tasks.select("u1").merged_with(load(dataset, split_seed=1).select("u2"))
    assert tasks.select("u1").merged_with(load(dataset, source={"files": "y.csv"}).select("u2")).source is None


def test_an_unknown_task_is_told_no_other_id(dataset, tokenizer):
    tasks = load(dataset)
    for call in (tasks.select, tasks.without, tasks.num_examples, tasks.cluster_key):
        with pytest.raises(TaskNotFoundError, match=r"no task 'u22' among the 3 tasks of the data given\.$"):
            call("u22")
    with pytest.raises(TaskNotFoundError, match="3 tasks"):
        tasks.encode("nobody", tokenizer)


def test_missing_column_says_which_exist(dataset):
    with pytest.raises(TaskDataError, match=r"no column 'usr' \(task_column\); it has user, text"):
        load(dataset, task_column="usr")
    with pytest.raises(TaskDataError, match=r"no column 'key' \(id_column\)"):
        load(dataset, id_column="key")


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("user", 2, "", "'user', row 2: .*an empty cell"),
        ("user", 2, None, "'user', row 2: .*an empty cell"),
        ("text", 4, None, "Task 'u1', column 'text', row 4: not a text but null"),
        ("label", 3, None, "Task 'u3', column 'label', row 3: the label is null"),
        ("id", 5, "row1", "Task 'u2', column 'id', row 5: the id 'row1' occurs already in row 1"),
        ("id", 5, None, "row 5: the example id is null"),
        ("group", 5, "A", "Task 'u2', column 'group', row 5: cluster key 'A', but an earlier row has 'B'"),
        ("group", 5, None, "cluster key is null"),
    ],
)
def test_bad_values_name_their_place(rows, column, row, value, message):
    rows[column][row] = value
    with pytest.raises(TaskDataError, match=message):
        load(rows, id_column="id", cluster_column="group")


def test_whole_numbers_are_no_task_ids_but_can_be_cast(rows):
    numbered = Dataset.from_dict({**rows, "user": list(range(12))})
    with pytest.raises(TaskDataError, match=r"dataset.cast_column\('user', datasets.Value\('string'\)\)"):
        load(numbered)
    assert load(numbered.cast_column("user", Value("string"))).task_ids[:3] == ("0", "1", "10")


def test_no_rows_no_tasks(dataset):
    with pytest.raises(TaskDataError, match="no rows"):
        load(dataset.select([]))


def test_label_names_from_numbers_and_classes(rows):
    numbers = {**rows, "label": [0, 3, 0, 3] * 3}
    assert load(numbers).spec.label_names == ("0", "1", "2", "3")
    classes = Dataset.from_dict(numbers).cast_column("label", ClassLabel(names=["d", "c", "b", "a"]))
    assert load(classes).spec.label_names == ("d", "c", "b", "a")


def test_class_label_is_mapped_by_name(rows, tokenizer):
    classes = Dataset.from_dict({**rows, "label": [1] * 12}).cast_column("label", ClassLabel(names=["x", "y"]))
    encoded = load(classes, label_names=["y", "x", "z"]).encode("u3", tokenizer)
    assert encoded.train[0]["labels"].item() == 0
    with pytest.raises(TaskDataError, match="unknown label 'y'; label_names are x, z"):
        load(classes, label_names=["x", "z"])


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2] * 4, ["a", "b"], r"row 2: label 2 is out of range, there are 2 labels \(0 to 1\)"),
        ([0, -1, 1] * 4, None, "row 1: label -1: labels are numbered from 0"),
        (["a", "b", "c"] * 4, ["a", "b"], "row 2: unknown label 'c'; label_names are a, b"),
        ([0.5] * 12, None, "found float"),
        ([0.5] * 12, ["a"], "a label must be a name or a whole number"),
        ([None] * 12, None, "nothing but nulls"),
    ],
)
def test_bad_labels(rows, labels, names, message):
    with pytest.raises(TaskDataError, match=message):
        load({**rows, "label": labels}, label_names=names)


def words(tokens, tags, **settings):
    columns = {"task_column": "user", "tokens_column": "tokens", "tags_column": "tags"}
    rows = {"user": ["a", "b"], "tokens": tokens, "tags": tags}
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns | settings)


@pytest.mark.parametrize(
    ("tokens", "tags", "names", "message"),
    [
        ([["x"], ["y", "z"]], [["O"], ["O"]], None, "Task 'b', column 'tags', row 1: 1 labels for 2 words; give one"),
        ([["x"], []], [["O"], []], None, "Task 'b', column 'tokens', row 1: the list of words is empty"),
        ([["x"], None], [["O"], ["O"]], None, "column 'tokens', row 1: expected a list of words, found null"),
        (["x", "y z"], [["O"], ["O"]], None, "found the text 'x'; split it into words .CSV holds no lists: use JSON"),
        ([["x"], ["y", None]], [["O"], ["O", "O"]], None, "column 'tokens', row 1: word 1 is not a text but null"),
        ([["x"], ["y"]], [["O"], None], None, "column 'tags', row 1: expected a list of labels, found null"),
        ([["x"], ["y"]], [["O"], [None]], None, "column 'tags', row 1: the label is null"),
        ([["x"], ["y"]], [[0], [2]], ["O", "X"], "row 1: label 2 is out of range, there are 2 labels"),
        ([["x"], ["y"]], [["O"], ["B"]], ["O", "X"], "row 1: unknown label 'B'; label_names are O, X"),
        ([["x"], ["y"]], [[0.5], [1.5]], None, "must hold lists of strings or whole .* a tags_column; found float"),
    ],
)
def test_bad_words_and_tags(tokens, tags, names, message):
    with pytest.raises(TaskDataError, match=message):
        words(tokens, tags, label_names=names)


def test_names_of_tags():
    assert words([["x", "y"], ["z"]], [["B", "O"], ["A"]]).spec.label_names == ("A", "B", "O")
    assert words([["x", "y"], ["z"]], [[0, 2], [0]]).spec.label_names == ("0", "1", "2")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_words_from_files(tmp_path, suffix):
    rows = {"user": ["a", "b"], "tokens": [["x", "y"], ["z"]], "tags": [["B", "O"], ["O"]]}
    columns = {"task_column": "user", "tokens_column": "tokens", "tags_column": "tags"}
    path = tmp_path / f"rows.{suffix}"
    getattr(Dataset.from_dict(rows), {"jsonl": "to_json", "parquet": "to_parquet"}[suffix])(path)
    tasks = TaskDataset.from_dataset(path, **columns)
    assert (tasks.task_ids, tasks.spec.label_names) == (("a", "b"), ("B", "O"))
    Dataset.from_dict({**rows, "tokens": ["x y", "z"], "tags": ["B O", "O"]}).to_csv(tmp_path / "rows.csv")
    with pytest.raises(TaskDataError, match=r"line 2 of rows\.csv: expected a list of words, found the text 'x y'"):
        TaskDataset.from_dataset(tmp_path / "rows.csv", **columns)


def test_validation_split_of_the_data_set(dataset, tokenizer):
    splits = DatasetDict(train=dataset, validation=dataset.select([0, 1]), test=dataset.select([3]))
    tasks = load(splits)
    assert [len(tasks.encode(task, tokenizer).validation) for task in tasks] == [1, 1, 0]
    assert [tasks.has_validation(task) for task in tasks] == [True, True, False]
    assert tasks.num_examples("u1") == 4
    del splits["validation"]
    assert [len(load(splits).encode(task, tokenizer).validation) for task in tasks] == [0, 0, 1]
    with pytest.raises(RecipeError, match="validation_fraction must be 0"):
        load(splits, validation_fraction=0.5)
    with pytest.raises(TaskDataError, match="column 'id', row 0 of the test split: the id 'row3' occurs already"):
        load(splits, id_column="id")
    with pytest.raises(TaskDataError, match="Task 'u3' is empty"):
        load(DatasetDict(train=dataset.select([0]), test=dataset.select([3])))
    with pytest.raises(TaskDataError, match="no 'train' split, only test"):
        load(DatasetDict(test=dataset))


def test_views_and_formats_of_a_data_set_are_respected(dataset, tokenizer):
    expected = load(dataset.select([2, 0])).encode("u2", tokenizer).digest
    assert load(dataset.select([0, 2]).with_format("numpy")).encode("u2", tokenizer).digest == expected


def test_other_objects_are_refused():
    with pytest.raises(TaskDataError, match="found int"):
        load(3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_files(dataset, tokenizer, tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        dataset.to_csv(path)
    elif suffix == "parquet":
        dataset.to_parquet(path)
    else:
        dataset.to_json(path, lines=suffix == "jsonl")
    expected = load(dataset)
    for given in (path, str(path), [path]):
        tasks = load(given)
        assert tasks.spec == expected.spec
        assert [tasks.encode(t, tokenizer).digest for t in tasks] == [
            expected.encode(t, tokenizer).digest for t in tasks
        ]


def test_csv_keeps_text_as_text_and_files_add_up(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text('user,text,label\n007,null,0\n007,"2020-01-01\nNA",1\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("user,text,label\n8,three,1\n", encoding="utf-8")
    tasks = load([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert tasks.task_ids == ("007", "8")
    texts = {tokenizer.decode(example["input_ids"]) for example in tasks.encode("007", tokenizer).train}
    assert texts == {"null", "2020-01-01\nNA"}


def test_unreadable_files(tmp_path):
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "bad.jsonl").write_text("{]")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.parquet").write_text("x")
    for name, message in [
        ("rows.txt", "expected a file ending in .csv"),
        ("none.csv", "no data file"),
        ("bad.jsonl", "Cannot read 'bad.jsonl' as JSONL"),
        ("list.json", "one object per row"),
        ("empty.jsonl", "no rows"),
        ("bad.parquet", "Cannot read 'bad.parquet' as PARQUET"),
    ]:
        with pytest.raises(TaskDataError, match=message):
            load(tmp_path / name)
    with pytest.raises(TaskDataError, match="list of data files is empty"):
        load([])
