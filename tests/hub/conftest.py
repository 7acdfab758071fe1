"""A Hub of our own for these tests, and a client that knows no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_client import ARCHIVE_STEPS, Client
from hub_double import HubDouble


@pytest.fixture(scope="session")
def server():
    with HubDouble() as double:
        yield double


@pytest.fixture
def double(server):
    """The double, without the repositories and faults of other tests."""
    with server.lock:
        server.repos.clear()
        server.buckets.clear()
        server.requests.clear()
        server.faults.clear()
    return server


@pytest.fixture(scope="session")
def session_client(server, tmp_path_factory):
    client = Client(server.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture
def client(session_client, double):
    return session_client


@pytest.fixture(scope="session")
def saved_models(tiny, tmp_path_factory):
    """Folders of a model of four tasks, and of the same model after one was forgotten."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny.train("image")
    model.save_pretrained(folder / "before")
    forgotten = sorted(model.tasks)[0]
    model.unmerge_task(forgotten)
    model.save_pretrained(folder / "after")
    return folder / "before", folder / "after", forgotten


@pytest.fixture
def steps(client):
    """Call a function of `archive_steps` in the client's process."""

    def call(name, *args, **options):
        return client.call(f"{ARCHIVE_STEPS}.{name}", *map(str, args), **options)

    return call


@pytest.fixture
def home(session_client, tmp_path_factory):
    """Where vectors wait to be uploaded: below the client's HF_HOME."""
    return Path(session_client.log.name).parent / "clamu-archives"


@pytest.fixture(scope="session")
def expected(tiny, tmp_path_factory):
    """Folders of a model of all tasks, and of one without `user_1`."""
    folder = tmp_path_factory.mktemp("expected")
    tiny.train("text").save_pretrained(folder / "all")
    tiny.train("text", tiny.tasks("text").without("user_1")).save_pretrained(folder / "without")
    return folder


@pytest.fixture
def recipe(tiny, tmp_path):
    """A recipe of the tasks of `tiny`, with the file of their rows beside it."""
    rows = tiny.rows("text")
    lines = [json.dumps({key: rows[key][number] for key in rows}) for number in range(len(rows["user"]))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "validation_fraction": 0.3}
    values = {
        "base_model": tiny.config("text"),
        "tokenizer": "bytes",
        "data": {"files": "rows.jsonl", **columns},
        "arguments": {"finetune_steps": 2, "mask_steps": 2, "num_clusters": 2, "num_threads": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path / "recipe.yaml"


@pytest.fixture
def command(client, tmp_path):
    """Run a command in the working directory of these tests: its exit code, what it prints and what it says."""

    def command(*words):
        steps = "__import__('importlib').import_module('tests.hub.dry_run_steps').run"
        return client.call(steps, tmp_path, *map(str, words))

    return command


@pytest.fixture
def run(command):
    """Run a command in the working directory of these tests; return what it printed, as JSON if it can be."""

    def run(*words, code=0):
        found, out, err = command(*words)
        assert found == code, err
        return json.loads(out) if "--json" in words else err

    return run
