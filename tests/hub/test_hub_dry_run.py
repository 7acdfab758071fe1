"""A dry run of a request on the Hub reads there, changes nothing anywhere, and foresees what the request does."""

from __future__ import annotations

import pytest

REPO, VECTORS = "org/served", "org/vectors"
REQUEST = ("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--archive", f"hf://{VECTORS}", "--json")
WRITES = {"POST", "PUT", "DELETE", "PATCH"}


@pytest.fixture
def served(run, recipe):
    """A model on the Hub, and an archive of its vectors there."""
    run("train", recipe, "--output", "local", "--archive", f"hf://{VECTORS}")
    run("push", "local", REPO)


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
    dry = run(*REQUEST, "--dry-run")
    assert (dry["status"], dry["output"]) == ("dry run", REPO)
    assert _state(double) == state
    assert tiny.digests(tmp_path) == files
    assert _writes(double) == writes
    assert [path for path in home.rglob("*") if path.is_file()] == []
    # Whoever forgets after it gets what it said.
    done = run(*REQUEST)
    assert {**done["effect"], "seconds": None} == {**dry["effect"], "seconds": None}
    assert done["effect"]["num_changed"] > 0
    assert (done["receipt"]["archive"], done["receipt"]["vectors_from"]) == ("destroyed", "archive")
    assert _state(double) != state


def test_without_a_vector_or_a_model_a_dry_run_says_so(double, served, command, tiny, tmp_path):
    state, files = _state(double), tiny.digests(tmp_path)
    for words, expected in (
        (("unmerge", REPO, "nobody", "--dry-run"), "nobody"),
        (("unmerge", "org/typo", "user_1", "--dry-run"), "org/typo"),
        (("unmerge", REPO, "user_1", "--archive", "hf://org/typo", "--data", "rows.jsonl", "--dry-run"), "org/typo"),
    ):
        code, _, err = command(*words)
        assert (code, expected in err) == (2, True), err
        assert len(err.splitlines()) == 1, err
    assert _state(double) == state
    assert tiny.digests(tmp_path) == files


def test_what_commands_on_the_hub_say_to_do_next_works(served, run):
    def told(*words):
        return run(*words)["next"]

    # As it is printed; what cannot be undone asks, so here it is told that nobody is there.
    assert told("push", "local", REPO, "--json") == [f"clamu info {REPO}"]
    run("info", REPO)
    assert told("unmerge", REPO, "user_1", "--data", "rows.jsonl", "--json") == [f"clamu erase {REPO}"]
    assert told("erase", REPO, "--yes", "--json") == [f"clamu info {REPO}"]
    run("info", REPO)
    lines = told("unmerge", REPO, "user_2", "--data", "rows.jsonl", "--erase-history", "--json")
    assert lines == [f"clamu receipts {REPO}"]
    run("receipts", REPO)
