"""A Hub of our own for these tests, and a client that knows no other."""

from __future__ import annotations

import pytest
from hub_client import Client
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
