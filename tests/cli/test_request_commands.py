"""`clamu unmerge --from`, `add` and `update` as a user runs them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def queue(work):
    """Write lines of requests and give the file's name."""

    def write(*lines):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (work / "queue.jsonl").write_text(text, encoding="utf-8")
        return "queue.jsonl"

    return write


def _receipts(work):
    return {path.name: json.loads(path.read_bytes()) for path in sorted((work / "receipts").glob("*.json"))}


def test_a_queue_is_worked_off_once(clamu, work, tiny, queue):
    name = queue({"id": "a", "task": "user_3"}, "", {"id": "b", "tasks": ["user_1", "user_3"], "from": "mail"})
    assert clamu("train", "text.yaml", "--output", "less", "--without", "user_1", "--without", "user_3").code == 0
    found = clamu("unmerge", "text", "--from", name, "--json").json
    assert [entry["status"] for entry in found["requests"]] == ["forgotten"] * 2
    assert found["num_tasks"] == 2
    assert tiny.digests(work / "text") == tiny.digests(work / "less")
    receipts = _receipts(work)
    assert [work / "receipts" / name for name in receipts] == sorted(
        work / entry["receipt_file"] for entry in found["requests"]
    )
    again = clamu("unmerge", "text", "--from", name)
    assert (again.code, again.out.count("done already")) == (0, 3)
    assert _receipts(work) == receipts
    # By whatever name it was asked for before.
    later = clamu("unmerge", "text", "--from", queue({"id": "c", "task": "user_3"}), "--json").json
    assert [entry["status"] for entry in later["requests"]] == ["done already"]
    assert clamu("unmerge", "text", "user_3", "user_1").out.startswith("Nothing to do: user_3, user_1 was forgotten")
    assert _receipts(work) == receipts


def test_one_bad_request_does_not_stop_the_others(clamu, work, queue):
    lines = [{"id": "a", "tasks": ["user_1", "usr_2"]}, {"id": "b", "task": "user_3"}]
    found = clamu("unmerge", "text", "--from", queue(*lines), "--json")
    assert found.code == 2
    bad, good = found.json["requests"]
    assert (bad["status"], good["status"], found.json["num_tasks"]) == ("failed", "forgotten", 3)
    assert "'usr_2'" in bad["error"]
    assert "user_2" not in bad["error"]  # somebody else's id
    assert len(_receipts(work)) == 1
    assert "user_1" in json.dumps(clamu("info", "text", "--json").json["clusters"])


def test_a_task_that_came_back_is_not_forgotten_by_an_old_request(clamu, work, queue):
    name = queue({"id": "a", "task": "user_3"})
    assert clamu("unmerge", "text", "--from", name).code == 0
    assert clamu("add", "text", "--new", "rows.jsonl").out.startswith("Added user_3; text has 4 tasks now.")
    found = clamu("unmerge", "text", "--from", name, "--json").json
    assert [(entry["status"], entry["merged_again"]) for entry in found["requests"]] == [("done already", ["user_3"])]
    assert "a new request needs a new id" in clamu("unmerge", "text", "--from", name).out
    found = clamu("unmerge", "text", "--from", queue({"id": "b", "task": "user_3"}), "--json").json
    assert [entry["status"] for entry in found["requests"]] == ["forgotten"]


def test_receipts_of_another_model_do_not_count(clamu, work, queue):
    name = queue({"id": "a", "task": "user_3"})
    assert clamu("unmerge", "text", "--from", name).code == 0
    found = clamu("unmerge", "lm", "--from", name, "--json").json
    assert [entry["status"] for entry in found["requests"]] == ["forgotten"]
    # Nor do they say that a model that never had the task forgot it.
    assert clamu("train", "text.yaml", "--output", "never", "--without", "user_3", "--without", "user_2").code == 0
    assert "It was never merged" in clamu("unmerge", "never", "user_3").error


def test_an_empty_queue(clamu, work, queue, tiny):
    before = tiny.digests(work / "text")
    assert clamu("unmerge", "text", "--from", queue()).out.startswith("0 requests")
    assert tiny.digests(work / "text") == before


BAD = {
    "not JSON": ("user_1", "line 1: expected a JSON object"),
    "a list": ("[1]", "line 1: expected a JSON object"),
    "no id": ({"task": "user_1"}, "line 1: a request needs an 'id'"),
    "a number": ({"id": 7, "task": "user_1"}, "which is a text; found 7"),
    "no task": ({"id": "a"}, "line 1: a request needs a 'task'"),
    "both": ({"id": "a", "task": "user_1", "tasks": ["user_2"]}, "line 1: a request needs a 'task'"),
    "no tasks": ({"id": "a", "tasks": []}, "line 1: a request needs a 'task'"),
    "numbers": ({"id": "a", "tasks": [1]}, "line 1: a request needs a 'task'"),
}


@pytest.mark.parametrize("name", BAD)
def test_lines_that_are_no_requests(clamu, work, queue, tiny, name):
    line, message = BAD[name]
    before = tiny.digests(work)
    found = clamu("unmerge", "text", "--from", queue(line, {"id": "b", "task": "user_3"}))
    assert (found.code, message in found.error) == (2, True), found.error
    (work / "queue.jsonl").unlink()
    assert tiny.digests(work) == before


def test_an_id_that_occurs_twice(clamu, work, queue):
    line = {"id": "a", "task": "user_3"}
    assert "line 2: the id 'a' occurs twice" in clamu("unmerge", "text", "--from", queue(line, line)).error


def test_add_and_update(clamu, work, tiny):
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    fewer = [row for row in rows if row["user"] != "user_1" or not row["text"].startswith("great")]
    fewer.append({"user": "user_1", "text": "another", "label": "bad"})

    def write(name, chosen):
        (work / name).write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")

    write("fewer.jsonl", fewer)
    assert clamu("train", "text.yaml", "--output", "target", "--data", "fewer.jsonl").code == 0
    write("one.jsonl", [row for row in fewer if row["user"] == "user_1"])
    assert clamu("update", "text", "--new", "one.jsonl", "--output", "apart").code == 0
    assert (
        clamu("update", "text", "user_1", "--new", "fewer.jsonl", "--data", "rows.jsonl", "--json").json["status"]
        == "updated"
    )
    for name in ("text", "apart"):
        assert tiny.digests(work / name) == tiny.digests(work / "target")
    found = clamu("update", "text", "user_1", "--new", "fewer.jsonl", "--data", "rows.jsonl", "--json").json
    assert found == {"status": "nothing to do", "output": "text", "next": ["clamu receipts text"]}
    write("rows.jsonl", fewer)
    assert clamu("verify", "text").code == 0
    assert clamu("unmerge", "text", "user_1").code == 0
    told = clamu("update", "text", "--new", "one.jsonl")
    assert (told.code, told.out[:13]) == (0, "Nothing to do")
    assert "1 tasks of one.jsonl are not merged and left out: clamu add merges them." in told.err
    assert "'user_1'" in clamu("update", "text", "user_1", "--new", "one.jsonl").error
    for status in ("added", "nothing to do"):
        assert clamu("add", "text", "user_1", "--new", "one.jsonl", "--json").json["status"] == status
    assert tiny.digests(work / "text") == tiny.digests(work / "target")


def test_ids_that_look_alike(clamu, work):
    good = (work / "rows.jsonl").read_text(encoding="utf-8")
    (work / "rows.jsonl").write_text(good.replace('"user_2"', '"User_1 "'), encoding="utf-8")
    told = clamu("train", "text.yaml", "--output", "near")
    assert told.code == 2
    assert "'user_1' (line 7 of rows.jsonl) and 'User_1 ' (line 13 of rows.jsonl)" in told.error
    assert "look alike" in clamu("plan", "text.yaml", "--ids", "strip").error
    assert clamu("train", "text.yaml", "--output", "near", "--ids", "as-is").code == 0
    found = clamu("unmerge", "near", "user_01").error
    assert "Did you mean 'User_1 ', 'user_1'?" in found
    found = clamu("unmerge", "near", "user_1")
    assert found.code == 0
    assert "Also merged, and not forgotten by this: 'User_1 ', which looks like what is forgotten." in found.err
    assert "Also merged" not in clamu("unmerge", "near", "user_3").err
    found = clamu("unmerge", "near", "user_0", "user_3")
    assert found.out.startswith("Forgot user_0 ")
    assert found.err == "Forgotten before, so nothing was to do: user_3.\n"


def test_blanks_around_ids_are_stripped_where_the_recipe_says_so(clamu, work, tiny):
    good = (work / "rows.jsonl").read_text(encoding="utf-8")
    (work / "rows.jsonl").write_text(good.replace('"user_2"', '" user_2"', 2), encoding="utf-8")
    recipe = (work / "text.yaml").read_text(encoding="utf-8").replace("files:", "ids: strip, files:")
    (work / "strip.yaml").write_text(recipe, encoding="utf-8")
    assert clamu("train", "strip.yaml", "--output", "strip").code == 0
    assert clamu("info", "strip", "--json").json["task_spec"]["ids"] == "strip"
    assert clamu("verify", "strip").code == 0
    # The option instead of the recipe is the same recipe.
    assert clamu("train", "text.yaml", "--output", "option", "--ids", "strip").code == 0
    assert tiny.digests(work / "option") == tiny.digests(work / "strip")
    row = {"user": " user_2 ", "text": "great 1 of 2"}
    (work / "asked.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (answer,) = clamu("predict", "strip", "--data", "asked.jsonl", "--json").json["predictions"]
    assert answer["served_by"] == "cluster"
    assert clamu("unmerge", "strip", "user_2").code == 0
    assert clamu("train", "strip.yaml", "--output", "without", "--without", "user_2").code == 0
    assert tiny.digests(work / "strip") == tiny.digests(work / "without")


def test_rows_of_others_that_came_since_stop_no_request(clamu, work):
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"user": "USER_0 ", "text": "great", "label": "good"}) + "\n")
    assert "look alike" in clamu("plan", "text.yaml").error
    assert clamu("unmerge", "text", "user_1").code == 0
    assert clamu("verify", "text").code == 0


def test_new_ids_that_look_like_merged_ones(clamu, work):
    row = {"user": "user_01", "text": "great", "label": "good"}
    (work / "new.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    told = clamu("add", "text", "--new", "new.jsonl")
    assert told.code == 2
    assert "New ids look like merged ones: 'user_01' (line 1 of new.jsonl) and 'user_1' (merged)." in told.error
    assert clamu("add", "text", "--new", "new.jsonl", "--ids", "as-is").code == 0


def test_rows_in_several_files(clamu, work, tiny):
    lines = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {"early.jsonl": [0, 1], "late.jsonl": [2], "last.jsonl": [3]}
    for name, users in parts.items():
        kept = (line for line in lines if any(f'"user_{user}"' in line for user in users))
        (work / name).write_text("".join(kept), encoding="utf-8")
    (work / "rows.jsonl").unlink()
    early, late, last = (["--data", name] for name in parts)
    assert clamu("train", "text.yaml", "--output", "parts", *early, *late, *last).code == 0
    assert tiny.digests(work / "parts") == tiny.digests(work / "text")
    assert clamu("evaluate", "parts", *late, *last, "--json").json["num_tasks"] == 2
    assert len(clamu("predict", "parts", *late, *last, "--json").json["predictions"]) == 12
    assert clamu("unmerge", "parts", "user_2", "user_3", *early, *late, *last).code == 0
    assert clamu("add", "parts", "--new", "late.jsonl", "--new", "last.jsonl", *early).code == 0
    assert clamu("verify", "parts", *early, *late, *last).code == 0
    assert tiny.digests(work / "parts") == tiny.digests(work / "text")
    assert clamu("plan", "text.yaml", *early, *late, "--json").json["num_tasks"] == 3


def test_an_archive(clamu, work, tiny):
    recipe = (work / "text.yaml").read_text(encoding="utf-8")
    (work / "kept.yaml").write_text(recipe + "archive: by-recipe\n", encoding="utf-8")
    assert clamu("train", "kept.yaml", "--output", "kept").code == 0
    assert clamu("train", "text.yaml", "--output", "again", "--archive", "archive").code == 0
    assert tiny.digests(work / "by-recipe") == tiny.digests(work / "archive")
    assert tiny.digests(work / "kept") == tiny.digests(work / "again") == tiny.digests(work / "text")
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "rows.jsonl").write_text("".join(row for row in rows if "user_1" not in row), encoding="utf-8")
    (work / "one.jsonl").write_text("".join(row for row in rows if "user_1" in row), encoding="utf-8")
    # The model in DIR still has the task where the result goes elsewhere.
    found = clamu("unmerge", "again", "user_1", "--output", "apart", "--archive", "archive", "--json").json
    assert (found["receipt"]["archive"], found["receipt"]["vectors_from"]) == ("kept", "archive")
    assert len(list((work / "archive").iterdir())) == 4
    found = clamu("unmerge", "again", "user_1", "--archive", "archive", "--json").json
    assert json.loads((work / found["receipt_file"]).read_bytes()) == found["receipt"]
    assert found["receipt"]["archive"] == "destroyed"
    assert len(list((work / "archive").iterdir())) == 3
    assert tiny.digests(work / "apart") == tiny.digests(work / "again")
    assert clamu("verify", "again").code == 0
    assert clamu("add", "again", "--new", "one.jsonl", "--archive", "archive").code == 0
    assert tiny.digests(work / "archive") == tiny.digests(work / "by-recipe")
    assert tiny.digests(work / "again") == tiny.digests(work / "text")
    (work / "one.jsonl").write_text("".join(row for row in rows if "user_1" in row and "3" not in row), "utf-8")
    assert clamu("update", "again", "--new", "one.jsonl", "--archive", "archive").code == 0
    assert len(list((work / "archive").iterdir())) == 4
    found = clamu("unmerge", "text", "user_1", "--archive", "archive")
    assert (found.code, "has no vector of task 'user_1'" in found.error) == (1, True)


def test_old_rows_that_are_gone(clamu, work, tiny):
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "rows.jsonl").write_text("".join(row for row in rows if "user_1" not in row), encoding="utf-8")
    (work / "one.jsonl").write_text("".join(row for row in rows if "user_1" in row and "great" in row), "utf-8")
    before = tiny.digests(work / "text")
    for arguments in (["unmerge", "text", "user_1"], ["update", "text", "--new", "one.jsonl"]):
        assert "--on-mismatch rebuild" in clamu(*arguments).error
    assert tiny.digests(work / "text") == before
    assert clamu("update", "text", "--new", "one.jsonl", "--on-mismatch", "rebuild").code == 0
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write((work / "one.jsonl").read_text(encoding="utf-8"))
    assert clamu("verify", "text").code == 0


def test_with_sift_the_rows_of_the_forgotten_are_enough(clamu, work, tiny):
    settings = ("num_clusters: 2,", "num_clusters: 2, localization: sift, score_validation: false,")
    (work / "sift.yaml").write_text((work / "text.yaml").read_text(encoding="utf-8").replace(*settings), "utf-8")
    assert clamu("train", "sift.yaml", "--output", "sift").code == 0
    assert clamu("train", "sift.yaml", "--output", "less", "--without", "user_1").code == 0
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "theirs.jsonl").write_text("".join(row for row in rows if '"user_1"' in row), encoding="utf-8")
    found = clamu("unmerge", "sift", "user_1", "--data", "theirs.jsonl", "--json")
    assert found.code == 0, found.out
    assert tiny.digests(work / "sift") == tiny.digests(work / "less")
    assert (work / "sift/task_masks/task_002.safetensors").is_file()
    assert not (work / "sift/task_masks/task_003.safetensors").exists()
    assert clamu("verify", "sift").code == 0
