"""The one worker: started whatever lies about, and for every model of the desk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from desk_pages import stop_workers

from hf_clamu.desk.office import DeskModel, Office, WorkerOptions
from hf_clamu.desk.supervisor import Supervisor
from hf_clamu.operations.intake.book import Asked


@pytest.fixture
def office(work):
    shutil.copytree("model", "other")
    options = WorkerOptions(verify="none")
    yield Office([DeskModel(source=name, options=options) for name in ("model", "other")])
    stop_workers(work)


def _look_until_done(office, name):
    supervisor, until = Supervisor(office), time.monotonic() + 120
    while any(one.is_open for one in office[name].book.read()) or supervisor.is_busy:
        assert time.monotonic() < until, office[name].states()
        supervisor.look()
        time.sleep(0.2)
    return office[name].book.read()


def test_a_damaged_model_and_files_that_lie_about_stop_nothing(office, work):
    for model in office.models.values():
        model.take_in([Asked(tasks=("user_7",), name="letter")])
        model.book.order()
    (path,) = office["model"].book.folder.glob("received/*.json")
    path.write_text("{", encoding="utf-8")
    # Nobody reads what is written there: whoever opens it to write waits for ever.
    os.mkfifo(office["other"].book.folder / "worker.log")
    for name in ("typer.py", "torch.py"):
        Path(name).write_text("open('imported', 'w').close()\n", encoding="utf-8")
    (done,) = _look_until_done(office, "other")
    assert (done.outcome.status, done.outcome.reason) == ("forgotten", "")
    assert not Path("imported").exists()
    assert not office["other"].book.folder.joinpath("worker.log").is_fifo()
