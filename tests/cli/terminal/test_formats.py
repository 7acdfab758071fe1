"""`--format`: each command in each format, contradictions, and refusals of the parser."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hf_clamu.cli.terminal.agent import agent_text
from hf_clamu.cli.terminal.formats import FORMATS, asked_for
from hf_clamu.escaping import escape, escape_cell

# A sound command, and what its quiet answer is.
ANSWERS = {
    "info": (["info", "text"], ["user_0", "user_1", "user_2", "user_3"]),
    "info of a task": (["info", "text", "--task", "user_2"], ["user_2"]),
    "predict": (["predict", "text", "great 1", "--task", "user_1"], None),
    "predict rows": (["predict", "lm", "--data", "rows.jsonl", "--max-new-tokens", "2"], None),
    "evaluate": (["evaluate", "text"], ["user_0", "user_1", "user_2", "user_3"]),
    "export": (["export", "text", "--output", "plain"], ["plain"]),
    "export of adapters": (["export", "text", "--output", "p", "--adapters", "all", "--rank", "1"], ["p"]),
    "verify": (["verify", "text"], []),
    "audit": (["audit", "text"], None),
    "attack": (["attack", "text", *(f"--task=user_{n}" for n in range(4))], [f"user_{n}" for n in range(4)]),
    "train": (["train", "text.yaml", "--output", "new"], ["new"]),
    "plan": (["plan", "text.yaml"], None),
    "init": (["init", "rows.jsonl", "--output", "other.yaml"], ["other.yaml"]),
    "prove": (["prove", "text", "user_1", "--output", "proof.json"], ["proof.json"]),
    "prove by rows": (["prove", "text", "user_1", "--data", "one.jsonl"], []),
    "unmerge": (["unmerge", "text", "user_1"], None),
    "dry run": (["unmerge", "text", "user_1", "--dry-run"], None),
    "receipts": (["receipts", "text"], []),
}


@pytest.fixture
def place(work):
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "one.jsonl").write_text("".join(row for row in rows if '"user_1"' in row), encoding="utf-8")
    return work


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("form", FORMATS)
def test_each_command_answers_in_each_format(clamu, place, form, name):
    words, expected = ANSWERS[name]
    found = clamu(*words, "--format", form)
    assert (found.code, "Traceback" in found.err) == (1 if name == "audit" else 0, False), found.err
    if form == "json":
        assert found.json
    if form == "quiet" and expected is not None:
        assert found.out.splitlines() == expected
    if form == "agent":
        assert "\x1b" not in found.out
        assert all("=" in line or "\t" in line or line.startswith("[") for line in found.out.splitlines()), found.out


def test_json_is_the_same_by_both_options(clamu, work):
    assert clamu("info", "text", "--json").out == clamu("info", "text", "--format", "json").out
    assert clamu("info", "text", "--format=json", "--json").out == clamu("info", "text", "--json").out
    assert clamu("info", "text").out == clamu("info", "text", "--format", "human").out


def test_quiet_requests_print_their_receipts(clamu, work):
    (receipt,) = clamu("unmerge", "text", "user_1", "--format", "quiet").out.splitlines()
    assert json.loads((work / receipt).read_bytes())["request"] == "unmerge"
    assert clamu("unmerge", "text", "user_1", "--format", "quiet").out.splitlines() == [receipt]  # done already
    assert clamu("receipts", "text", "--format", "quiet").out.splitlines() == [receipt]
    (work / "asked.jsonl").write_text('{"id": "req-1", "task": "user_2"}\n', encoding="utf-8")
    (second,) = clamu("unmerge", "text", "--from", "asked.jsonl", "--format", "quiet").out.splitlines()
    assert second != receipt
    assert clamu("update", "text", "--new", "rows.jsonl", "--format", "quiet").out == ""  # nothing to do
    changed = clamu("unmerge", "text", "user_0", "--dry-run", "--json").json["effect"]["tasks"]
    expected = [task_id for task_id, task in changed.items() if task["changed"]]
    assert clamu("unmerge", "text", "user_0", "--dry-run", "--format", "quiet").out.splitlines() == expected


def test_a_model_that_differs_names_the_files(clamu, work):
    card = work / "text" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    found = clamu("verify", "text", "--format", "quiet")
    assert (found.code, found.out) == (1, "README.md\n")


def test_answers_alone(clamu, work):
    found = clamu("predict", "text", "great 1", "poor 2", "--task", "user_1", "--format", "quiet")
    labels = [
        answer["label"] for answer in clamu("predict", "text", "great 1", "poor 2", "--json").json["predictions"]
    ]
    assert (found.err, len(found.out.splitlines())) == ("", 2)
    assert set(found.out.splitlines()) <= {"bad", "good"}
    table = clamu("predict", "text", "great 1", "--format", "agent").out.splitlines()
    assert table[0] == "[predictions]"
    head, row = (line.split("\t") for line in table[1:])
    assert dict(zip(head, row, strict=True))["label"] == labels[0]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_two_options_that_contradict_one_another(clamu, work):
    found = clamu("info", "text", "--json", "--format", "quiet")
    line = "--json means --format json, and --format quiet is given, too. Give one of them."
    assert (found.code, found.error) == (2, f"clamu: {line}")
    assert found.json == {"error": {"type": "RecipeError", "message": line}}


@pytest.mark.parametrize(
    "words",
    [
        ["info", "--format", "json"],
        ["info", "nowhere", "--format=json"],
        ["info", "nowhere", "--wrong", "--format", "json"],
        ["predict", "nowhere", "x", "--json", "--format", "json", "--max-new-tokens", "many"],
        ["informations", "--format", "json"],
    ],
)
def test_refusals_obey_the_format(clamu, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    found = clamu(*words)
    assert found.code == 2
    assert found.error == f"clamu: {found.json['error']['message']}"
    readable = clamu(*[word for word in words if word not in ("--format", "json", "--json", "--format=json")])
    assert (readable.out, readable.err) == ("", found.err)


def test_an_unknown_format_is_refused_with_those_that_are_known(clamu, tmp_path):
    found = clamu("info", "nowhere", "--format", "jsn")
    assert found.code == 2
    assert "'jsn' is not one of 'human', 'json', 'agent', 'quiet'. Did you mean 'json'?" in found.error


def test_a_format_ends_with_its_command(clamu, work):
    assert clamu("info", "text", "--format", "quiet").out.startswith("user_0")
    assert clamu("info", "text").out.startswith("text: GPT2")


def test_words_after_two_dashes_are_no_options():
    assert asked_for(["info", "x", "--format"]) == "human"
    assert asked_for(["info", "--format", "quiet"]) == "quiet"
    assert asked_for(["info", "--format", "quiet", "--json"]) == "json"
    done = subprocess.run(
        [sys.executable, "-m", "hf_clamu.cli", "info", "--", "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clamu: --json is not a folder")


# -- texts -----------------------------------------------------------------------------------------------------------


def test_the_agents_text_is_plain_and_means_one_thing():
    payload = {
        "text": "a b",
        "empty": "",
        "null": None,
        "word": "null",
        "digits": "007",
        "digest": "3fa9",
        "true": True,
        "number": 1.5,
        "lines": "a\nb",
        "nested": {"a.b": {"c": 1}, "none": {}},
        "list": ["x", 1],
        "rows": [{"id": "[red]x[/red]", "n": 1}, {"id": "a\tb", "more": [1, 2]}],
        "no_rows": [],
    }
    assert agent_text(payload).splitlines() == [
        "text=a b",
        'empty=""',
        "null=null",
        'word="null"',
        'digits="007"',
        "digest=3fa9",
        "true=true",
        "number=1.5",
        r'lines="a\nb"',
        'nested."a.b".c=1',
        "nested.none={}",
        'list=["x",1]',
        "no_rows=[]",
        "[rows]",
        "id\tn\tmore",
        '"[red]x[/red]"\t1\t',
        '"a\\tb"\t\t[1,2]',
    ]


def test_control_characters_do_not_get_through():
    hostile = "a\x1b[31mb\x9b1mc\x07\r\u202ed\u2066\x7f"
    assert escape(f"{hostile}\n\tx") == r"a\u001b[31mb\u009b1mc\u0007\u000d\u202ed\u2066\u007f" + "\n\tx"
    assert escape_cell("a\tb\nc") == r"a\u0009b\u000ac"
    assert escape("नमस्ते 👩‍👩‍👧 é") == "नमस्ते 👩‍👩‍👧 é"
    as_json = json.dumps({"id": hostile}, ensure_ascii=False)
    assert json.loads(escape(as_json)) == {"id": hostile}


@pytest.mark.parametrize("form", FORMATS)
def test_ids_with_control_characters_are_shown_escaped(clamu, tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = "evil\x1b[2J\x9b31m\u202e"
    found = clamu("info", f"nowhere{hostile}", "--format", form)
    assert found.code == 2
    assert not any(character in found.out + found.err for character in "\x1b\x9b\u202e")
    assert r"evil\u001b[2J\u009b31m\u202e" in found.err
