"""What is wrong with rows is told at once, and rows with empty cells are left out where that is asked for."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL.Image import new

from hf_clamu import RecipeError, TaskDataError, TaskDataset

COLUMNS = {"task_column": "owner", "text_column": "words", "label_column": "mood"}
HOLES = """\
owner,words,mood
ann,one,glad
,two,glad
bo,"three
lines",
 ,four,sad
bo,,glad
ann,five,sad
cy, ,sad
ann,six,odd
"""


@pytest.fixture
def holes(tmp_path):
    (tmp_path / "rows.csv").write_text(HOLES, encoding="utf-8")
    return tmp_path / "rows.csv"


def test_all_problems_of_a_file_are_told_at_once(holes):
    with pytest.raises(TaskDataError) as caught:
        TaskDataset.from_dataset(holes, **COLUMNS, label_names=["glad", "sad"], ids="strip")
    assert str(caught.value) == (
        "5 problems in the data: "
        "(1) Column 'owner', line 3 of rows.csv: a task id must be a non-empty string, found an empty cell. "
        "(2) Column 'owner', line 6 of rows.csv: a task id must be a non-empty string, found ' ' (str). "
        "(3) Task 'bo', column 'words', line 7 of rows.csv: the cell is empty; each row needs a text. "
        "(4) Task 'bo', column 'mood', line 4 of rows.csv: the cell is empty; each row needs a label. "
        "(5) Task 'ann', column 'mood', line 10 of rows.csv: unknown label 'odd'; label_names are glad, sad. "
        "Fill in what is missing, delete these rows, or build with incomplete_rows: skip (--incomplete-rows skip), "
        "which leaves them out."
    )


def test_ten_problems_are_shown_and_all_are_counted(tmp_path):
    rows = [{"owner": "ann", "words": None, "mood": "glad"}] * 15 + [{"owner": "Ann", "words": "a", "mood": "Glad"}]
    with pytest.raises(TaskDataError, match=r"^17 problems in the data, the first 10 of which are: \(1\) ") as caught:
        TaskDataset.from_dataset(rows, **COLUMNS)
    assert "labels that look alike: 'glad' (row 0) and 'Glad' (row 15)" in str(caught.value)
    assert "(10) Task 'ann', column 'words', row 8: not a text but null." in str(caught.value)
    assert "(11)" not in str(caught.value)


def test_incomplete_rows_are_left_out_where_that_is_asked_for(holes, caplog):
    with caplog.at_level(logging.WARNING):
        tasks = TaskDataset.from_dataset(holes, **COLUMNS, incomplete_rows="skip")
    assert {task_id: tasks.num_examples(task_id) for task_id in tasks} == {"ann": 3}
    assert caplog.messages == [
        "Left out 5 of the 8 rows, because a cell is empty: rows of 2 tasks (no row is left of 2), and 2 "
        "without a task id."
    ]
    # What only such rows have is no label, and lines are those of the file.
    assert tasks.spec.label_names == ("glad", "odd", "sad")
    with pytest.raises(TaskDataError, match=r"^Task 'ann', column 'mood', line 10 of rows\.csv: unknown label 'odd'"):
        TaskDataset.from_dataset(holes, **COLUMNS, incomplete_rows="skip", label_names=["glad", "sad"])


def test_the_setting_is_kept_where_it_is_given(holes):
    rows = [{"owner": "ann", "words": "a", "mood": "glad"}]
    assert "incomplete_rows" not in TaskDataset.from_dataset(rows, **COLUMNS).spec.to_dict()
    skipping = TaskDataset.from_dataset(holes, **COLUMNS, incomplete_rows="skip")
    assert skipping.spec.to_dict()["incomplete_rows"] == "skip"
    other = TaskDataset.from_dataset([{**rows[0], "owner": "di"}], **COLUMNS, label_names=["glad", "odd", "sad"])
    with pytest.raises(TaskDataError, match=r"they differ in incomplete_rows \('skip' and 'error'\)"):
        skipping.merged_with(other)
    with pytest.raises(RecipeError, match="incomplete_rows must be one of error, skip, found 'drop'"):
        TaskDataset.from_dataset(holes, **COLUMNS, incomplete_rows="drop")


def test_no_complete_row(tmp_path):
    rows = [{"owner": "ann", "words": "a", "mood": None}, {"owner": None, "words": "a", "mood": "glad"}]
    with pytest.raises(
        TaskDataError, match="Each of the 2 rows of the train split has an empty cell, so none is left"
    ):
        TaskDataset.from_dataset(rows, **COLUMNS, incomplete_rows="skip")


def _sizes(rows, **columns):
    tasks = TaskDataset.from_dataset(rows, task_column="owner", **columns, incomplete_rows="skip")
    return {task_id: tasks.num_examples(task_id) for task_id in tasks}


def test_every_kind_of_content_may_be_empty(tmp_path):
    owners = ["a", "a", "b", "b"]
    words = {"tokens": [["x"], [], ["y"], None], "tags": [["O"], ["O"], ["O"], ["O"]]}
    types = Features(
        {"owner": Value("string"), "tokens": Sequence(Value("string")), "tags": Sequence(Value("string"))}
    )
    table = Dataset.from_dict({"owner": owners, **words}, features=types)
    assert _sizes(table, tokens_column="tokens", tags_column="tags") == {"a": 1, "b": 1}
    pairs = {"ask": ["x", "", "y", "z"], "say": ["x", "y", None, " z"]}
    assert _sizes(Dataset.from_dict({"owner": owners, **pairs}), prompt_column="ask", completion_column="say") == {
        "a": 1,
        "b": 1,
    }
    pixels = [new("L", (2, 2)), None, new("L", (2, 2)), new("L", (2, 2))]
    images = Features({"owner": Value("string"), "image": Image(), "label": Value("int64")})
    table = Dataset.from_dict({"owner": owners, "image": pixels, "label": [0, 1, None, 1]}, features=images)
    assert _sizes(table, image_column="image", label_column="label") == {"a": 1, "b": 1}
    # Rows that were picked out of others, and a split of its own for validation.
    picked = DatasetDict({"train": table.select([3, 1, 0]), "validation": table.select([2, 3])})
    assert _sizes(picked, image_column="image", label_column="label") == {"a": 1, "b": 2}


def test_rows_of_json_lines_may_lack_a_key(tmp_path):
    rows = [{"owner": "a", "words": "x", "mood": "y"}, {"words": "x", "mood": "y"}, {"owner": "b", "mood": "y"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert _sizes(path, text_column="words", label_column="mood") == {"a": 1}
