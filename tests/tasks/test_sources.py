from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import digits, load_tasks

COLUMNS = {"task_column": "user", "text_column": "text", "label_column": "label"}


@pytest.fixture
def csv_file(dataset, tmp_path):
    path = tmp_path / "data" / "rows.csv"
    path.parent.mkdir()
    dataset.to_csv(path)
    return path


def test_relative_files_and_their_way_back(csv_file, tmp_path, tokenizer):
    source = {"files": "data/rows.csv", **COLUMNS, "validation_fraction": 0.5}
    tasks = load_tasks(source, base_dir=tmp_path)
    assert tasks.source == source
    again = load_tasks(json.loads(json.dumps(tasks.source)), search_dirs=[tmp_path / "elsewhere", tmp_path])
    assert again.spec == tasks.spec
    assert again.encode("u2", tokenizer).digest == tasks.encode("u2", tokenizer).digest


def test_absolute_paths_are_not_kept(csv_file):
    tasks = load_tasks({"files": [str(csv_file)], **COLUMNS})
    assert tasks.source["files"] == ["rows.csv"]
    assert load_tasks(tasks.source, base_dir=csv_file.parent).task_ids == tasks.task_ids
    assert load_tasks({"files": "/gone/rows.csv", **COLUMNS}, search_dirs=[csv_file.parent]).task_ids == tasks.task_ids
    with pytest.raises(RecipeError, match=r"given twice: rows.csv"):
        load_tasks({"files": ["/a/rows.csv", "/b/rows.csv"], **COLUMNS})


def test_missing_files_say_where_was_looked(tmp_path):
    with pytest.raises(TaskDataError, match=r"looked for .*here.*rows.csv, .*there.*rows.csv.*--data PATH"):
        load_tasks({"files": "rows.csv", **COLUMNS}, base_dir=tmp_path / "here", search_dirs=[tmp_path / "there"])
    with pytest.raises(TaskDataError, match="given as --data"):
        load_tasks({"builtin": "digits"}, data=tmp_path / "none.csv")


def test_data_replaces_files(csv_file):
    source = {"files": "gone.csv", **COLUMNS}
    for data in (csv_file, str(csv_file), [csv_file]):
        tasks = load_tasks(source, data=data)
        assert tasks.source == source
        assert tasks.task_ids == ("u1", "u2", "u3")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_data_replaces_a_builtin(tmp_path, suffix):
    source = {"builtin": "digits", "options": {"num_tasks": 6}}
    path = tmp_path / f"digits.{suffix}"
    dataset = digits(num_tasks=6)
    dataset.to_json(path) if suffix == "jsonl" else dataset.to_parquet(path)
    one, two = load_tasks(source), load_tasks(source, data=path)
    assert one.spec == two.spec
    assert one.source == two.source == source
    assert [one.encode(task, None).digest for task in one] == [two.encode(task, None).digest for task in two]


def test_builtin_stdlib():
    tasks = load_tasks({"builtin": "stdlib", "max_length": 64})
    assert len(tasks) == 24
    assert tasks.num_labels == 8
    assert tasks.spec.max_length == 64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"builtin": "digits", "file": "x"}, "Unknown key 'file' in the data section. Did you mean 'files'"),
        ({"builtin": "digits", "files": "x.csv"}, "exactly one of .*; found builtin and files"),
        ({**COLUMNS}, "exactly one of .*; found none of them"),
        ({"builtin": "letters"}, "there are digits, stdlib"),
        ({"builtin": "digits", "options": {"num_task": 3}}, "Did you mean 'num_tasks'"),
        ({"builtin": "digits", "options": {"num_tasks": "3"}}, "num_tasks must be an integer"),
        ({"builtin": "digits", "split": "train"}, "'split' in the data section goes with 'dataset'"),
        ({"files": [], **COLUMNS}, "files must be a path or a list"),
        ({"files": "x.csv", "text_column": "t", "label_column": "l"}, "task_column is missing"),
        ({"dataset": "/home/me/data", **COLUMNS}, "local data go under 'files'"),
    ],
)
def test_bad_data_sections(source, message):
    with pytest.raises(RecipeError, match=message):
        load_tasks(source)


def test_hub_errors_are_readable(monkeypatch):
    import datasets

    def load_dataset(name, config, *, split, revision):
        raise FileNotFoundError(f"{name} {config} {split} {revision} does not exist.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TaskDataError, match=r"'org/x' from the Hub: org/x c train v1 does not exist. .*--data PATH"):
        load_tasks({"dataset": "org/x", "config": "c", "split": "train", "revision": "v1", **COLUMNS})


def test_import_does_not_pull_in_slow_libraries():
    code = (
        "import sys, hf_clamu.tasks; print([m for m in ('datasets', 'transformers', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "[]\n"
