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
    (trouble,) = told["trouble"]
    assert trouble.startswith("71 rows that another owner has, too (12 owners;")
    assert clamu("plan", "recipe.yaml", "--json").json["num_tasks"] == 12
    recipe = Recipe.load(folder / "recipe.yaml")
    assert recipe.snapshot
    assert recipe.clamu_arguments().localization == "sift"


def test_dirt_is_named_with_its_lines(clamu, folder):
    (folder / "rows.csv").write_text(DIRTY, encoding="utf-8")
    told = clamu("init", "rows.csv").out
    for part in (
        "rows.csv: 5 rows",
        "owners  3 in column 'Customer ID'",
        "column 'body'",
        "1. labels that look alike: 'good' (line 2 of rows.csv) and 'Good' (line 5 of rows.csv)\n     Write one label",
        "2. 1 empty cell in column 'body': line 7\n     Fill in what is missing, delete these rows, or build",
        "1 id with white space at the ends, which ids: strip removes: line 4",
        "1 row that repeats an earlier one of the same owner: line 6",
    ):
        assert part in told
    assert "ids that look alike" not in told
    assert told.endswith("Solve points 1 and 2, then check what is left.\nNext: clamu plan recipe.yaml\n")
    assert Recipe.load(folder / "recipe.yaml").data["ids"] == "strip"


def test_what_blocks_the_training_is_told_apart(clamu, folder):
    rows = [{"owner": owner, "text": f"text {n}", "label": "x"} for n, owner in enumerate(["A", "a", "B ", "B", "c"])]
    _write(folder / "rows.jsonl", [*rows, *rows[:2]])
    for ids, expected in (("strict", 1), (None, 1), ("as-is", 0)):
        options = [] if ids is None else ["--ids", ids]
        told = clamu("init", "rows.jsonl", "--force", "--json", *options).json
        assert [len(told["blocking"]), told["ids"]] == [expected, ids or "strip"]
        assert Recipe.load(folder / "recipe.yaml").data.get("ids", "strict") == told["ids"]
        assert clamu("plan", "recipe.yaml").code == (2 if expected else 0)
    told = clamu("init", "rows.jsonl", "--force", "--ids", "strict").out
    pairs = "'A' (line 1 of rows.jsonl) and 'a' (line 2 of rows.jsonl); 'B ' (line 3 of rows.jsonl) and 'B' (line 4"
    assert f"1. ids that look alike: {pairs}" in told
    assert "or give ids: strip (--ids strip), which removes white space at the ends" in told
    assert pairs in clamu("plan", "recipe.yaml").error
    told = clamu("init", "rows.jsonl", "--force", "--ids", "as-is", "--json").json
    assert told["next"] == ["clamu plan recipe.yaml", "clamu train recipe.yaml --output model"]


def test_repeated_rows_of_one_owner_and_of_several_are_told_apart(clamu, folder):
    rows = [("A", "Hi."), ("B", "Hi."), ("A", "Hi."), ("B", "Bye."), ("B", "Bye."), ("C", "Hello.")]
    _write(folder / "rows.jsonl", [{"owner": owner, "text": text, "label": "x"} for owner, text in rows])
    told = clamu("init", "rows.jsonl", "--json").json
    assert told["trouble"][:2] == [
        "2 rows that repeat an earlier one of the same owner: line 3, line 5",
        "3 rows that another owner has, too (2 owners; forgetting one leaves the copies of the others): line 1, "
        "line 2, line 3",
    ]
    assert told["blocking"] == []


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


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_several_files_are_one_table(clamu, folder):
    (folder / "old.csv").write_text(DIRTY, encoding="utf-8")
    _write(folder / "new.jsonl", [{"Customer ID": "c1001", "channel": "web", "body": "Hello.", "stars": "good"}])
    told = clamu("init", "old.csv", "new.jsonl")
    assert "old.csv, new.jsonl: 6 rows" in told.out
    assert "'C1001' (line 5 of old.csv) and 'c1001' (line 1 of new.jsonl)" in told.out
    assert "1 empty cell in column 'body': line 7 of old.csv" in told.out
    assert Recipe.load(folder / "recipe.yaml").data["files"] == ["old.csv", "new.jsonl"]
    assert clamu("init", "one.csv", "two.csv", "--sample", "--output", "x.yaml").error.endswith("Give one name.")


def test_prompts_and_completions_train_a_language_model(clamu, folder):
    rows = [{"user": f"u{n % 3}", "question": f"What is {n}?", "answer": f"It is {n}."} for n in range(12)]
    _write(folder / "rows.jsonl", rows)
    told = clamu("init", "rows.jsonl", "--json").json
    assert (told["prompt_column"], told["completion_column"]) == ("question", "answer")
    assert "label_column" not in told
    assert Recipe.load(folder / "recipe.yaml").tasks().spec.kind == "causal-lm"
    assert clamu("plan", "recipe.yaml", "--json").json["num_tasks"] == 3
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("finetune_steps: 60", "finetune_steps: 1")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert clamu("train", "recipe.yaml", "--output", "model").code == 0
    told = clamu("predict", "model", "What is 1?", "--task", "u1", "--max-new-tokens", "1").err
    assert told.startswith("The base model is the toy that clamu init writes (random weights)")
    words = ["--prompt-column", "answer", "--label-column", "question", "--output", "x.yaml"]
    assert "do not go together" in clamu("init", "rows.jsonl", *words).error


def _image_rows(size: int) -> list[dict[str, object]]:
    pixels = [[(row * column) % 17 for column in range(size)] for row in range(size)]
    return [{"owner": f"o{n % 3}", "image": pixels, "label": str(n % 2)} for n in range(12)]


def test_images_as_numbers_get_a_model_of_their_shape(clamu, folder):
    _write(folder / "rows.jsonl", _image_rows(8))
    assert "images  column 'image', of shape 1x8x8" in clamu("init", "rows.jsonl").out
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("finetune_steps: 60", "finetune_steps: 1")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert clamu("train", "recipe.yaml", "--output", "model", "--json").json["num_tasks"] == 3
    assert clamu("evaluate", "model").err.startswith("The base model is the toy that clamu init writes")


def test_image_files_come_in_parquet(clamu, folder):
    from datasets import Dataset, Features, Image, Value
    from PIL.Image import new

    features = Features({"owner": Value("string"), "image": Image(), "label": Value("string")})
    columns: dict[str, list[object]] = {"owner": [f"o{n % 3}" for n in range(6)], "label": ["a", "b"] * 3}
    for name, sizes in (("equal", [12] * 6), ("unequal", [8, 9] * 3)):
        columns["image"] = [new("RGB", (size, size), (n, 0, 0)) for n, size in enumerate(sizes)]
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    assert "of shape 3x12x12" in clamu("init", "equal.parquet").out
    assert clamu("plan", "recipe.yaml", "--json").json["num_tasks"] == 3
    told = clamu("init", "unequal.parquet", "--output", "other.yaml").error
    assert "no single shape (channels x height x width: 3x8x8, 3x9x9)" in told
    assert clamu("init", "unequal.parquet", "--output", "other.yaml", "--base", "org/vit").code == 0


def test_names_of_image_files_are_no_images(clamu, folder):
    (folder / "rows.csv").write_text("user,image,label\na,x.png,b\nc,y.jpg,d\n", encoding="utf-8")
    told = clamu("init", "rows.csv").error
    assert "Column 'image' of rows.csv holds names of image files. Images are read from Parquet" in told


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


def chats(folder: Path, form: str = "messages") -> list[dict]:
    from tests.test_conversations import rows

    made = [{**row, "tools": row.get("tools")} for row in rows(form)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    return made


@pytest.mark.parametrize("form", ["messages", "prompts"])
def test_conversations_go_from_init_to_a_model(clamu, folder, form):
    chats(folder, form)
    told = clamu("init", "chats.jsonl", "--preset", "clusters", "--json").json
    names = {"messages": {"messages_column": "messages"}}
    names["prompts"] = {"prompt_column": "prompt", "completion_column": "completion"}
    assert {"task_column": "user", "tools_column": "tools", **names[form]}.items() <= told.items()
    assert told["blocking"] == []
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\n  finetune_steps: \d+", "\n  finetune_steps: 2\n  mask_steps: 2", text)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert ("assistant_only_loss: true" in text) == (form == "messages")
    assert clamu("train", "recipe.yaml", "--output", "model").code == 0
    assert clamu("unmerge", "model", "ann").code == 0
    assert clamu("init", "chats.jsonl", "--base", "org/chat", "--output", "large.yaml").code == 0
    data = Recipe.load(folder / "large.yaml").data
    assert "chat_template" not in data
    assert data.get("completion_only_loss") is (True if form == "messages" else None)


def test_conversations_that_training_refuses_are_found(clamu, folder):
    rows = chats(folder)
    rows[2]["messages"] = rows[2]["messages"][:1]
    rows[3]["messages"][0]["role"] = "robot"
    rows[5]["messages"] = []
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    told = clamu("init", "chats.jsonl", "--messages-column", "messages")
    expected = (
        "2 conversations that cannot be learned: line 3, line 4 (there is no assistant turn, so there is nothing"
    )
    assert expected in told.out
    assert "1 empty cell in column 'messages': line 6" in told.out


def test_conversations_in_csv_are_seen(clamu, folder):
    from datasets import Dataset

    made = [{"user": row["user"], "chat": json.dumps(row["messages"])} for row in chats(folder)]
    Dataset.from_list(made).to_csv(folder / "chats.csv")
    assert clamu("init", "chats.csv", "--json").json["messages_column"] == "chat"
    assert clamu("plan", "recipe.yaml").code == 0
