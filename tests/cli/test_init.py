"""`clamu init`: from a file of rows to a recipe that trains."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from hf_clamu.recipe import Recipe

DIRTY = """\
Customer ID,channel,body,stars
C1000,mail,"The parcel is late.
Please check it.",good
"C1000 ",mail,The parcel is late again.,bad
C1001,web,"Thanks, it works.",Good
C1001,web,"Thanks, it works.",Good
C1002,web,,bad
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_sample_goes_from_init_to_a_plan(clamu, folder):
    told = clamu("init", "--sample", "--json").json
    assert (told["num_rows"], len(told["owners"]), len(told["labels"])) == (240, 12, 3)
    assert (told["task_column"], told["text_column"], told["label_column"]) == ("shop", "message", "topic")
    assert told["trouble"] == []
    assert clamu("plan", "recipe.yaml", "--json").json["num_tasks"] == 12
    recipe = Recipe.load(folder / "recipe.yaml")
    assert recipe.snapshot
    assert recipe.clamu_arguments().localization == "sift"


def test_dirt_is_named_with_its_lines(clamu, folder):
    (folder / "rows.csv").write_text(DIRTY, encoding="utf-8")
    told = clamu("init", "rows.csv").out
    for part in (
        "rows.csv: 5 rows",
        "'Customer ID'",
        "column 'body'",
        "ids that look alike: 'C1000' (line 2 of rows.csv) and 'C1000 ' (line 4 of rows.csv)",
        "labels that look alike: 'good' (line 2 of rows.csv) and 'Good' (line 5 of rows.csv)",
        "1 empty cells in column 'body': line 7",
        "1 rows that repeat an earlier one: line 6",
    ):
        assert part in told
    assert Recipe.load(folder / "recipe.yaml").data["ids"] == "strip"


def test_columns_are_guessed_by_content_or_named(clamu, folder):
    rows = [{"a": f"x{n % 3}", "b": f"a long text of number {n}", "c": str(n % 2)} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = clamu("init", "rows.jsonl", "--output", "one.yaml", "--json").json
    assert (told["task_column"], told["text_column"], told["label_column"]) == ("a", "b", "c")
    options = ["--task-column", "c", "--label-column", "a", "--base", "org/name", "--preset", "clusters"]
    assert clamu("init", "rows.jsonl", "--output", "two.yaml", *options, "--json").json["task_column"] == "c"
    recipe = Recipe.load(folder / "two.yaml")
    assert (recipe.base_model, recipe.tokenizer, recipe.arguments["preset"]) == ("org/name", None, "clusters")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Give the file of rows (DATA), or --sample"),
        (("none.csv",), "There is no data file none.csv"),
        (("rows.txt",), "expected a file ending in"),
        (("rows.csv", "--task-column", "owner"), "rows.csv has no column 'owner' (task_column); it has"),
        (("plain.csv",), "No column of plain.csv shows that it is the task_column"),
        (("rows.csv", "--output", "rows.csv"), "rows.csv exists already"),
        (("empty.csv",), "empty.csv has no rows"),
    ],
)
def test_what_cannot_be_used_is_refused(clamu, folder, words, message):
    (folder / "rows.csv").write_text(DIRTY, encoding="utf-8")
    (folder / "plain.csv").write_text("x\nlong words\nother words\n", encoding="utf-8")
    (folder / "empty.csv").write_text("a,b,c\n", encoding="utf-8")
    told = clamu("init", *words)
    assert told.code == 2
    assert message in told.error
    assert not (folder / "recipe.yaml").exists()


_PAGE = (Path(__file__).parents[2] / "docs" / "from-your-csv.md").read_text(encoding="utf-8")


def test_the_page_shows_what_the_sample_gives(clamu, folder):
    (shown,) = re.findall(r"^```text\n(.*?)^```", _PAGE, flags=re.MULTILINE | re.DOTALL)
    assert clamu("init", "--sample").out == shown


@pytest.mark.slow
def test_the_commands_of_the_page_run(clamu, folder):
    lines = [line for line in _PAGE.splitlines() if line.startswith("clamu ")]
    assert len(lines) > 5
    for line in lines:
        assert clamu(*shlex.split(line)[1:]).code == 0, line
