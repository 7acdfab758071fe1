"""What a command says to do next works when it is pasted: each line is carried out as it is printed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# A name that a shell takes apart if it is not quoted.
MODEL = "it's a $model"


@pytest.fixture
def place(work):
    (work / "text").rename(work / MODEL)
    return work


@pytest.fixture
def follow(clamu, place):
    """Run a command, check that people and programs are told the same, and carry out what it says to do next."""

    def pasted(line):
        words = shlex.split(line)
        if words[0] == "clamu":
            return clamu(*words[1:]).code
        names = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(["bash", "-c", line], env={**os.environ, "PATH": names}, check=False).returncode

    def run(*words, code=0, then=0):
        told = clamu(*words, "--json")
        assert told.code == code, told.err
        lines = told.json["next"]
        assert lines
        codes = [pasted(line) for line in lines]
        assert codes == [then] * len(lines), lines
        return lines

    return run


def test_people_read_the_same_commands_that_programs_get(clamu, place):
    told = clamu("verify", MODEL).out.splitlines()[-1]
    assert told == f"Next: clamu receipts {shlex.quote(MODEL)}"
    assert clamu("verify", MODEL, "--json").json["next"] == [told.removeprefix("Next: ")]
    assert "Next" not in clamu("verify", MODEL, "--format", "quiet").out


def test_a_line_is_pasted_into_a_real_shell(clamu, place):
    line = clamu("evaluate", MODEL, "--json").json["next"][0]
    script = place / "bin" / "clamu"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom hf_clamu.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    paths = {"PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["serving"] == "base"


def test_builds(follow, place):
    assert follow("train", "text.yaml", "--output", "a new one")[0].startswith("clamu evaluate ")
    (place / "rows.jsonl").rename(place / "elsewhere.jsonl")
    follow("train", "text.yaml", "--output", "other data", "--data", "elsewhere.jsonl")
    assert follow("train", "lm.yaml", "--output", "lm again", "--data", "elsewhere.jsonl")[0].startswith("clamu info ")


def test_a_merge(follow, tiny, place):
    tiny.local_models("text", place)
    settings = ["--set", "localization=emr", "--set", "clustering=random", "--set", "num_clusters=2"]
    follow("merge", "--base", "base", "local", "--output", "all of them", *settings)


def test_requests(follow, clamu, place):
    assert follow("unmerge", MODEL, "user_1", "--dry-run") == [f"clamu unmerge {shlex.quote(MODEL)} user_1 --json"]
    assert clamu("info", MODEL, "--task", "user_1").code == 2  # it was forgotten by the pasted line
    assert follow("unmerge", MODEL, "user_1")[0].startswith("clamu receipts")  # done already
    assert follow("unmerge", MODEL, "user_2")[0].startswith("clamu verify")
    assert follow("add", MODEL, "user_1", "--new", "rows.jsonl")[0].startswith("clamu receipts")
    assert follow("update", MODEL, "--new", "rows.jsonl")[0].startswith("clamu receipts")
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    changed = [{**row, "text": row["text"] + "!"} for row in rows if row["user"] == "user_0"]
    (place / "changed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    assert follow("update", MODEL, "--new", "changed.jsonl")[0].startswith("clamu receipts")


def test_requests_with_places_of_their_own(follow, place):
    places = ["--output", "out here", "--receipts", "my receipts"]
    assert follow("unmerge", MODEL, "user_1", "--data", "rows.jsonl", *places) == [
        f"clamu receipts 'out here' --receipts {shlex.quote('my receipts')}"
    ]
    (place / "asked.jsonl").write_text('{"id": "req-1", "task": "user_2"}\n', encoding="utf-8")
    assert "--from asked.jsonl" in follow("unmerge", MODEL, "--from", "asked.jsonl", "--dry-run")[0]
    follow("unmerge", MODEL, "--from", "asked.jsonl")
    follow("queue", "add", MODEL, "user_3")


def test_measuring(follow, place):
    assert follow("evaluate", MODEL) == [f"clamu evaluate {shlex.quote(MODEL)} --json --serving base"]
    assert follow("evaluate", MODEL, "--task", "user_1") == [f"clamu info {shlex.quote(MODEL)} --members"]
    tasks = [f"--task=user_{number}" for number in range(4)]
    line = follow("attack", MODEL, *tasks, "--data", "rows.jsonl")[0]
    assert line.endswith("--data rows.jsonl --dry-run -- user_0 user_1 user_2 user_3")


def test_checks(follow, place):
    follow("verify", MODEL)
    follow("audit", MODEL, code=1)
    assert follow("prove", MODEL, "user_1") == [f"clamu prove {shlex.quote(MODEL)} user_1 --json --output proof.json"]
    assert follow("prove", MODEL, "user_1", "--output", "the proof")[0].startswith("clamu check 'the proof' --ledger")
    card = place / MODEL / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    follow("verify", MODEL, code=1, then=1)
    assert json.loads((place / "verify.json").read_bytes())["differences"] == ["README.md"]


def test_exports(follow, clamu, place):
    assert "GPT2ForSequenceClassification" in follow("export", MODEL, "--output", "it's plain")[0]
    follow("export", MODEL, "--output", "with adapters", "--adapters", "all", "--rank", "1")


def test_a_signature(follow, keys, place):
    private = place / "my key.pem"
    private.write_bytes((keys / "p256.pem").read_bytes())
    openssl, checking = follow("sign", MODEL, "--key", private)
    assert openssl.startswith("openssl pkey -in ")
    assert checking.endswith(f"--key {shlex.quote(f'{private}.pub')}")
    public = f"{private}.pub"
    assert f"--key {shlex.quote(public)}" in follow("verify", MODEL, "--key", public)[0]


def test_a_recipe(follow, clamu, place):
    (place / "model").mkdir()
    (place / "new").mkdir()
    lines = clamu("init", "--sample", "new/my rows.csv", "--output", "new/my recipe.yaml", "--json").json["next"]
    assert lines == ["clamu plan 'new/my recipe.yaml'", "clamu train 'new/my recipe.yaml' --output model-2"]
    assert clamu(*shlex.split(lines[0])[1:]).code == 0
    assert clamu(*shlex.split(lines[1])[1:]).code == 0
