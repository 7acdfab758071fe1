"""The one worker: started whatever lies about, and for every model of the desk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from desk_pages import stop_workers, worker_of

from hf_clamu.desk import supervisor as supervisor_file
from hf_clamu.desk.office import DeskModel, Office, WorkerOptions
from hf_clamu.desk.supervisor import Supervisor
from hf_clamu.errors import RunInProgressError
from hf_clamu.operations.intake.book import Asked
from hf_clamu.operations.intake.working import is_worked_on


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


def test_a_run_that_hangs_is_stopped_and_waits_for_somebody(office, work, monkeypatch):
    monkeypatch.setattr(supervisor_file, "_SECONDS_TO_END", 0.2)
    model, supervisor = office["model"], Supervisor(office)
    model.take_in([Asked(tasks=(name,), name=f"letter of {name}") for name in ("user_7", "user_9")])
    model.book.order()
    supervisor.look()
    until = time.monotonic() + 60
    while (pid := worker_of(work)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(pid, signal.SIGSTOP)  # it hangs: no other signal but one reaches it
    # Another desk on the same model leaves it alone, and changes nothing.
    with pytest.raises(RunInProgressError, match=rf"did not start the worker .*\(process {pid}\)"):
        Supervisor(office).end_run(model)
    assert all(one.is_waiting for one in model.book.read())
    assert supervisor.end_run(model, "anna<b>") == ["letter of user_7", "letter of user_9"]
    assert supervisor.end_run(model) == []
    until = time.monotonic() + 20
    while is_worked_on(model.book.folder):
        assert time.monotonic() < until
        supervisor.look()
        time.sleep(0.1)
    for _ in range(3):  # not started again, and no death that counts
        supervisor.look()
    assert not supervisor.is_busy
    before = model.book.read()
    assert {one.outcome.status for one in before} == {"failed"}
    assert re.match(r"Stopped by anna<b>(;| before)", before[0].outcome.reason)
    model.book.order(["letter of user_9"])
    done = {one.name: one.outcome for one in _wait(office, supervisor, "letter of user_9")}
    assert done["letter of user_9"].status == "forgotten"
    assert done["letter of user_7"] == before[0].outcome


def _wait(office, supervisor, name):
    until = time.monotonic() + 120
    while any(one.name == name and one.is_waiting for one in office["model"].book.read()) or supervisor.is_busy:
        assert time.monotonic() < until, office["model"].states()
        supervisor.look()
        time.sleep(0.2)
    return office["model"].book.read()
