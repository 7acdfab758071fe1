"""Data files as other tools and other people write them: the right rows, or one sentence that names file and row."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from pyarrow import parquet

from hf_clamu import RecipeError, TaskDataError, TaskDataset, TaskSpec

COLUMNS = {"task_column": "owner", "text_column": "words", "label_column": "mood"}


def _tasks(path, **more):
    return TaskDataset.from_dataset(path, **{**COLUMNS, **more})


def _write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def _lines(*rows):
    return "".join(json.dumps({"owner": "ann", "words": "hi", "mood": "glad", **row}) + "\n" for row in rows)


ACCEPTED = {
    "a mark at the start": ("\ufeff" + _lines({}), ("ann",), ("glad",)),
    "numeric ids": (_lines({"owner": 10}, {"owner": 9}), ("10", "9"), ("glad",)),
    "true and false": (_lines({"mood": True}, {"mood": False}), ("ann",), ("false", "true")),
    "numbers with gaps": (_lines({"mood": 10}, {"mood": 2}), ("ann",), ("2", "10")),
    "a mixed column that nobody uses": (_lines({"note": 5}, {"note": "x"}, {"note": [1]}), ("ann",), ("glad",)),
    "keys that come later": (
        '{"owner": "ann", "words": "a", "mood": "glad"}\n' + _lines({"new": 1}),
        ("ann",),
        ("glad",),
    ),
    "line separators inside a text": (_lines({"words": "a\u2028b"}).replace("\\u2028", "\u2028"), ("ann",), ("glad",)),
    "a list over many lines": (
        "[\n" + _lines({}).strip() + " ,\n" + _lines({"owner": "bo"}) + "]\n",
        ("ann", "bo"),
        ("glad",),
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_json_is_read(tmp_path, name):
    text, ids, labels = ACCEPTED[name]
    tasks = _tasks(_write(tmp_path / "rows.jsonl", text))
    assert (tasks.task_ids, tasks.spec.label_names) == (ids, labels)


REFUSED = {
    "a number for a text": (_lines({}, {"words": 7}), r"line 2, column 'words': expected a text, found 7 \(int\)"),
    "ids of two types": (_lines({"owner": 1}, {"owner": "1"}), "line 2, column 'owner'.*another type"),
    "a fraction as id": (_lines({"owner": 1.5}), "line 1, column 'owner'.*1.5"),
    "labels of two types": (_lines({"mood": "a"}, {"mood": 1}), "line 2, column 'mood'.*another type"),
    "true among numbers": (_lines({"mood": 1}, {"mood": True}), "line 2, column 'mood'.*another type"),
    "not a number": ('{"owner": NaN, "words": "a", "mood": "b"}', "NaN is no JSON"),
    "a nested id": (_lines({"owner": {"id": 1}}), "column 'owner'.*dict"),
    "half a character": (_lines({"owner": "\ud800"}), "surrogates"),
    "a key twice": ('{"owner": "a", "owner": "b", "words": "a", "mood": "b"}', "'owner' is given twice"),
    "a huge number": (_lines({"owner": 5}).replace("5", "1" * 5000), "line 1.*digits"),
    "thousands of levels": ('{"owner": ' + "[" * 100_000, "nested too deeply"),
    "no comma in a list": ("[" + _lines({}) + _lines({}) + "]", "expected a comma"),
    "a list and more": ("[" + _lines({}) + "] x", "more text after the end"),
    "an empty id": (_lines({}, {"owner": ""}), "line 2 of rows.jsonl: .*an empty cell"),
    "no such column": ('{"owner": "a", "words": "b"}', r"rows.jsonl: the file has no column 'mood' \(label_column\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_json_is_refused_with_its_place(tmp_path, name):
    text, message = REFUSED[name]
    path = _write(tmp_path / "rows.jsonl", text)
    with pytest.raises(TaskDataError, match=message) as caught:
        _tasks(path)
    assert "rows.jsonl" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_words_and_tags_of_mixed_types(tmp_path):
    rows = '{"owner": "a", "tokens": ["x", 5], "tags": ["O", "O"]}\n'
    with pytest.raises(TaskDataError, match=r"rows\.jsonl: column 'tokens'"):
        TaskDataset.from_dataset(
            _write(tmp_path / "rows.jsonl", rows), task_column="owner", tokens_column="tokens", tags_column="tags"
        )


def test_csv_values_are_names(tmp_path):
    rows = "owner,words,mood,day\n007,a,02,x\n2020-01-01,b,1,y\ntrue,c,true,z\n10:30,d,2020-01-01,9\n"
    tasks = _tasks(_write(tmp_path / "rows.csv", rows), id_column="day")
    assert tasks.task_ids == ("007", "10:30", "2020-01-01", "true")
    assert tasks.spec.label_names == ("02", "1", "2020-01-01", "true")


def test_numbers_of_label_names_in_a_file(tmp_path):
    path = _write(tmp_path / "rows.csv", "owner,words,mood\na,x,1\na,y,0\n")
    tasks = _tasks(path, label_names=["sad", "glad"])
    assert [row["mood"] for row in tasks.rows("a", _tokenizer())] in ([0, 1], [1, 0])
    with pytest.raises(TaskDataError, match="unknown label '1'"):
        _tasks(path, label_names=["0", "5"])  # which would be another label by its number


def _tokenizer():
    from hf_clamu.base_models.byte_tokenizer import byte_tokenizer

    return byte_tokenizer()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_spreadsheets_separate_by_semicolons_or_tabs(tmp_path, separator):
    rows = [["owner", "words", "mood"], ["a", "one, two; or\n\tthree", "glad"], ["b", "four", "sad"], ["a", "x", ""]]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows[:-1])
    tasks = _tasks(path)
    assert tasks.task_ids == ("a", "b")
    assert [row["words"] for row in tasks.rows("a", _tokenizer())] == [rows[1][1]]
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerow(rows[-1])
    with pytest.raises(TaskDataError, match=r"line 5 of rows\.csv"):  # the first text has two lines
        _tasks(path)


def test_a_comma_in_the_first_line_separates(tmp_path):
    path = _write(tmp_path / "rows.csv", "owner,words;more,mood\na,b;c,d\n")
    assert _tasks(path, text_column="words;more").task_ids == ("a",)


CSV_REFUSED = {
    "a header twice": ("owner,words,mood,words\na,b,c,d\n", "two columns 'words'"),
    "nothing": ("", "the file is empty"),
    "too few cells": ("owner,words,mood\na,b\n", "Expected 3 columns, got 2"),
    "UTF-16": ("owner,words,mood\na,b,c\n".encode("utf-16"), "utf-8"),
    "Latin-1": ("owner,words,mood\na,caf\u00e9,c\n".encode("latin-1"), "Save it as UTF-8"),
    "Latin-1 names": ("owner,caf\u00e9,mood\na,b,c\n".encode("latin-1"), "Save it as UTF-8"),
}


@pytest.mark.parametrize("name", CSV_REFUSED)
def test_csv_is_refused(tmp_path, name):
    text, message = CSV_REFUSED[name]
    with pytest.raises(TaskDataError, match=message) as caught:
        _tasks(_write(tmp_path / "rows.csv", text))
    assert "rows.csv" in str(caught.value)


def test_a_column_that_nobody_uses_may_be_there_twice(tmp_path):
    assert len(_tasks(_write(tmp_path / "rows.csv", "owner,words,mood,,\na,b,c,1,\n"))) == 1


def test_long_cells(tmp_path):
    long = "word " * 500_000
    path = _write(tmp_path / "rows.csv", f'owner,words,mood\na,"{long}",x\nb,short,y\n')
    assert len(_tasks(path)) == 2
    endless = _write(tmp_path / "endless.jsonl", _lines({"words": "w" * 5_000_000}))
    with pytest.raises(TaskDataError, match=r"line 1 of endless\.jsonl: .*5,000,000 characters"):
        _tasks(endless)


def test_parquet_names_and_class_labels(tmp_path):
    table = pa.table({"owner": [1, 2], "words": ["a", "b"], "mood": [True, False], "other": [[1], []]})
    parquet.write_table(table, tmp_path / "plain.parquet")
    tasks = _tasks(tmp_path / "plain.parquet")
    assert (tasks.task_ids, tasks.spec.label_names) == (("1", "2"), ("false", "true"))
    features = Features(
        {"owner": Value("string"), "words": Value("string"), "mood": ClassLabel(names=["sad", "glad"])}
    )
    rows = {"owner": ["a", "b"], "words": ["x", "y"], "mood": [1, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "classes.parquet")
    assert _tasks(tmp_path / "classes.parquet").spec.label_names == ("sad", "glad")


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_that_fills_the_memory(tmp_path, dictionary):
    text, path = "x" * 2**20, tmp_path / "rows.parquet"
    table = pa.table({"owner": ["a"] * 64, "words": [text] * 64, "mood": ["m"] * 64})
    with parquet.ParquetWriter(path, table.schema, use_dictionary=dictionary, compression="zstd") as writer:
        for _ in range(40):  # 2.5 GiB
            writer.write_table(table)
    assert path.stat().st_size < 2**26
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom hf_clamu import TaskDataError, TaskDataset\n"
        f"try:\n    TaskDataset.from_dataset({str(path)!r}, **{COLUMNS})\n"
        "except TaskDataError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, peak = done.stdout.splitlines()
    assert "unpack to more than" in message
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(peak) * unit < 2.2 * 2**30


def test_json_lines_take_little_more_than_their_size(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"owner": "ann", "words": "w" * 400, "mood": "glad", "unused": "u" * 400}
    with path.open("w", encoding="utf-8") as file:
        for number in range(30_000):
            file.write(json.dumps({**row, "owner": f"user_{number % 50}"}) + "\n")
    _tasks(_write(tmp_path / "first.jsonl", _lines({})))  # what is imported takes memory, too
    tracemalloc.start()
    try:
        tasks = _tasks(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tasks) == 50
    assert peak < 2 * path.stat().st_size  # whole rows as Python objects take four times their text


# -- data in memory --------------------------------------------------------------------------------------------------


def test_rows_and_frames():
    rows = [{"owner": "b", "words": "x", "mood": "m"}, {"owner": "a", "words": "y", "mood": "n"}]
    frame = Dataset.from_list(rows).to_pandas()
    for data in (rows, frame, frame.iloc[::-1]):
        tasks = TaskDataset.from_dataset(data, **COLUMNS)
        assert (tasks.task_ids, tasks.spec.label_names) == (("a", "b"), ("m", "n"))
    for data in ([*rows, {"owner": 5, "words": "x", "mood": "m"}], [1, 2], 7):
        with pytest.raises(TaskDataError):
            TaskDataset.from_dataset(data, **COLUMNS)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(TaskDataError, match="stream"):
        TaskDataset.from_dataset(stream, **COLUMNS)


@pytest.mark.parametrize("how", ["set_transform", "with_transform"])
def test_a_transform_is_part_of_the_data(how):
    features = Features(
        {"owner": Value("string"), "words": Value("string"), "mood": ClassLabel(names=["sad", "glad"])}
    )
    dataset = Dataset.from_dict({"owner": ["a"] * 3, "words": list("xyz"), "mood": [1, 0, 1]}, features=features)

    def louder(batch):
        return {**batch, "words": [word.upper() for word in batch["words"]]}

    if how == "set_transform":
        dataset.set_transform(louder)
    else:
        dataset = dataset.with_transform(louder)
    tasks = TaskDataset.from_dataset(dataset, **COLUMNS)
    assert tasks.spec.label_names == ("sad", "glad")
    assert sorted(row["words"] for row in tasks.rows("a", _tokenizer())) == ["X", "Y", "Z"]
    plain = TaskDataset.from_dataset(dataset.with_format(None), **COLUMNS)
    assert plain.encode("a", _tokenizer()).digest != tasks.encode("a", _tokenizer()).digest
    with pytest.raises(TaskDataError, match="transform of the train split gives no column 'mood'"):
        TaskDataset.from_dataset(dataset.with_transform(lambda batch: {"owner": batch["owner"]}), **COLUMNS)


def test_ids_of_examples_that_are_lists():
    dataset = Dataset.from_dict({"owner": ["a"], "words": ["x"], "mood": ["m"], "id": [[1, 2]]})
    with pytest.raises(TaskDataError, match="an example id is a text or a whole number, found list"):
        TaskDataset.from_dataset(dataset, id_column="id", **COLUMNS)


def _table(owners, moods=("glad", "glad", "sad")):
    return Dataset.from_dict({"owner": owners, "words": ["x"] * len(owners), "mood": moods})


@pytest.mark.parametrize(
    ("owners", "strip"),
    [
        (["C1", "C1 ", "C2"], True),
        (["C1", "C2", "\u00a0C1"], True),
        (["c1", "C1", "C2"], False),
        (["C1", "\uff231", "C2"], False),
        (["7", "007", "08"], False),
        (["shop-7", "shop-07", "a"], False),
        (["C1", "C\u200b1", "C2"], False),
    ],
)
def test_ids_that_look_alike_are_refused(owners, strip):
    first = owners[0]
    other = next(name for name in owners[1:] if name != "C2")
    with pytest.raises(TaskDataError, match=r"Column 'owner' has task ids that look alike: ") as caught:
        _tasks(_table(owners))
    message = str(caught.value)
    assert f"{first!r} (row 0) and {other!r} (row {owners.index(other)}). " in message
    assert "give ids: as-is (--ids as-is)" in message
    assert ("ids: strip (--ids strip)" in message) == strip
    assert len(_tasks(_table(owners), ids="as-is")) == 3
    if strip:
        assert _tasks(_table(owners), ids="strip").task_ids == ("C1", "C2")
    else:
        with pytest.raises(TaskDataError, match="look alike"):
            _tasks(_table(owners), ids="strip")


@pytest.mark.parametrize(
    "owners",
    [["a", "b", "c"], ["10", "100", "1"], ["a0b1", "a00b1", "0a1"], ["1.5", "1.05", "15"], ["0", "00a", "0a"]],
)
def test_ids_that_differ_are_taken(owners):
    assert len(_tasks(_table(owners))) == 3


def test_ids_setting_is_kept_where_it_is_given():
    assert "ids" not in _tasks(_table(["a", "b", "c"])).spec.to_dict()
    assert _tasks(_table(["a", "b", "c"]), ids="strip").spec.to_dict()["ids"] == "strip"
    with pytest.raises(RecipeError, match="ids must be one of strict, as-is, strip, found 'trim'"):
        _tasks(_table(["a", "b", "c"]), ids="trim")


def test_an_id_of_blanks_is_no_id_once_stripped():
    assert len(_tasks(_table(["a", " ", "c"]))) == 3
    with pytest.raises(TaskDataError, match=r"'owner', row 1: a task id must be a non-empty string, found ' '"):
        _tasks(_table(["a", " ", "c"]), ids="strip")


def test_labels_that_look_alike_are_refused_or_listed():
    table = _table(["a", "b", "c"], ["Glad", "sad", "glad "])
    with pytest.raises(TaskDataError, match=r"labels that look alike: 'Glad' \(row 0\) and 'glad ' \(row 2\)\. Write"):
        _tasks(table)
    assert _tasks(table, label_names=["Glad", "glad ", "sad"]).num_labels == 3
    tags = Dataset.from_dict({"owner": ["a", "b"], "words": [["x"], ["y"]], "tags": [["B"], ["b"]]})
    with pytest.raises(TaskDataError, match=r"labels that look alike: 'B' \(row 0\) and 'b' \(row 1\)"):
        TaskDataset.from_dataset(tags, task_column="owner", tokens_column="words", tags_column="tags")


def test_numbers_that_are_no_labels_from_0(caplog):
    with caplog.at_level(logging.WARNING):
        assert _tasks(_table(["a", "b", "c"], [1, 5, 9])).num_labels == 10
    assert "has 3 of the numbers 0 to 9, and the head gets 10 labels" in caplog.text
    with pytest.raises(TaskDataError, match=r"row 0: label -1: labels are numbered from 0; write them as texts"):
        _tasks(_table(["a", "b", "c"], [-1, 0, 1]))
    assert _tasks(_table(["a", "b", "c"], [True, False, True])).spec.label_names == ("false", "true")


CSV_PLACES = {
    "a header": ("", 2),
    "lines that belong to one cell": ('a,"one\ntwo\n\nthree",m\n', 6),
    "quotes inside of quotes": ('a,"say ""hi"",\nall",m\n', 4),
    "a quote inside of a word": ('a,5" disk,m\n', 3),
    "empty lines": ("a,b,m\n\n\n", 5),
    "line ends of Windows": ('a,"b\r\nc",m\r\n', 4),
    "a cell longer than others read": (f"a,{'b' * 200_000},m\n", 3),
}


@pytest.mark.parametrize("name", CSV_PLACES)
def test_rows_of_csv_are_named_by_their_line(tmp_path, name):
    before, line = CSV_PLACES[name]
    path = _write(tmp_path / "rows.csv", f"owner,words,mood\n{before}bo,x,\n")
    with pytest.raises(TaskDataError, match=rf"Task 'bo', column 'mood', line {line} of rows\.csv: the cell is empty"):
        _tasks(path, label_names=["m"])


def test_rows_of_other_files_are_named_too(tmp_path):
    good = {"owner": "ann", "words": "hi", "mood": "glad"}
    lines = _write(tmp_path / "lines.jsonl", _lines({}) + "\n" + _lines({"words": None}))
    listed = _write(tmp_path / "listed.json", json.dumps([good, {**good, "words": None}]))
    Dataset.from_list([good, {**good, "words": None}]).to_parquet(tmp_path / "packed.parquet")
    places = {
        lines: "line 3 of lines.jsonl",
        listed: r"row 1 \(the first is 0\) of listed.json",
        tmp_path / "packed.parquet": r"row 1 \(the first is 0\) of packed.parquet",
    }
    for path, place in places.items():
        with pytest.raises(TaskDataError, match=f"Task 'ann', column 'words', {place}: not a text but null"):
            _tasks(path)
    with pytest.raises(TaskDataError, match=r"'ann ' \(line 1 of more\.jsonl\)"):
        _tasks(
            [_write(tmp_path / "one.jsonl", _lines({})), _write(tmp_path / "more.jsonl", _lines({"owner": "ann "}))]
        )


def test_label_names_that_yaml_read_otherwise():
    with pytest.raises(RecipeError, match="quotes"):
        TaskSpec(kind="sequence-classification", **COLUMNS, label_names=[False, True])
