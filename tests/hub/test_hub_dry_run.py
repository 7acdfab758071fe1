"""A dry run of a request on the Hub reads there, changes nothing anywhere, and foresees what the request does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPO, VECTORS = "org/served", "org/vectors"
REQUEST = ("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--archive", f"hf://{VECTORS}", "--json")
WRITES = {"POST", "PUT", "DELETE", "PATCH"}


@pytest.fixture
def home(session_client):
    """Where vectors of an archive on the Hub are while they are read or wait: below the client's HF_HOME."""
    return Path(session_client.log.name).parent / "clamu-archives"


@pytest.fixture
def run(client, tmp_path):
    """Run a command in the working directory of these tests: its exit code, what it prints and what it says."""

    def run(*words):
        return client.call("__import__('importlib').import_module('tests.hub.dry_run_steps').run", tmp_path, *words)

    return run


@pytest.fixture
def served(tiny, run, tmp_path):
    """A model on the Hub, and an archive of its vectors there."""
    rows = tiny.rows("text")
    lines = [json.dumps({key: rows[key][number] for key in rows}) + "\n" for number in range(len(rows["user"]))]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "validation_fraction": 0.3}
    recipe = {
        "base_model": tiny.config("text"),
        "tokenizer": "bytes",
        "data": {"files": "rows.jsonl", **columns},
        "arguments": {"finetune_steps": 2, "mask_steps": 2, "num_clusters": 2, "num_threads": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    for words in (
        ("train", "recipe.yaml", "--output", "local", "--archive", f"hf://{VECTORS}"),
        ("push", "local", REPO),
    ):
        code, _, err = run(*words)
        assert code == 0, err


def _state(double):
    """Every branch, every file's contents, and all that was ever stored."""
    with double.lock:
        return {
            name: (dict(repo.branches), sorted(repo.commits), sorted(repo.lfs)) for name, repo in double.repos.items()
        }


def _writes(double):
    with double.lock:
        return [(kind, method, path) for kind, method, path, _ in double.requests if method in WRITES]


def test_a_dry_run_changes_nothing_on_the_hub_and_foresees_the_request(tiny, double, served, run, home, tmp_path):
    state, files, writes = _state(double), tiny.digests(tmp_path), _writes(double)
    code, out, err = run(*REQUEST, "--dry-run")
    assert code == 0, err
    dry = json.loads(out)
    assert (dry["status"], dry["output"]) == ("dry run", REPO)
    assert _state(double) == state
    assert tiny.digests(tmp_path) == files
    assert _writes(double) == writes
    assert [path for path in home.rglob("*") if path.is_file()] == []
    # Whoever forgets after it gets what it said.
    code, out, err = run(*REQUEST)
    assert code == 0, err
    done = json.loads(out)
    assert {**done["effect"], "seconds": None} == {**dry["effect"], "seconds": None}
    assert done["effect"]["num_changed"] > 0
    assert (done["receipt"]["archive"], done["receipt"]["vectors_from"]) == ("destroyed", "archive")
    assert _state(double) != state


def test_without_a_vector_or_a_model_a_dry_run_says_so(double, served, run, tiny, tmp_path):
    state, files = _state(double), tiny.digests(tmp_path)
    for words, expected in (
        (("unmerge", REPO, "nobody", "--dry-run"), "nobody"),
        (("unmerge", "org/typo", "user_1", "--dry-run"), "org/typo"),
        (("unmerge", REPO, "user_1", "--archive", "hf://org/typo", "--data", "rows.jsonl", "--dry-run"), "org/typo"),
    ):
        code, _, err = run(*words)
        assert (code, expected in err) == (2, True), err
        assert len(err.splitlines()) == 1, err
    assert _state(double) == state
    assert tiny.digests(tmp_path) == files


def test_what_commands_on_the_hub_say_to_do_next_works(served, run):
    def told(*words):
        code, out, err = run(*words)
        assert code == 0, err
        return json.loads(out)["next"]

    # As it is printed; what cannot be undone asks, so here it is told that nobody is there.
    assert told("push", "local", REPO, "--json") == [f"clamu info {REPO}"]
    assert run("info", REPO)[0] == 0
    assert told("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--json") == [f"clamu erase {REPO}"]
    assert told("erase", REPO, "--yes", "--json") == [f"clamu info {REPO}"]
    assert run("info", REPO)[0] == 0
    lines = told("unmerge", REPO, "user_2", "--data", "rows.jsonl", "--erase-history", "--json")
    assert lines == [f"clamu receipts {REPO}"]
    assert run("receipts", REPO)[0] == 0
