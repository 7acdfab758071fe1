"""Real processes: launched together, killed, and started again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from recipes import write_work


@pytest.fixture
def work(tmp_path):
    """A folder with a recipe for each localization, and data of eight users."""
    write_work(tmp_path)
    return tmp_path


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Fork:
    """A run of `clamu` that can be killed."""

    def __init__(self, server, logs: Path, request: dict) -> None:
        self._server = server
        self._logs = logs
        self.pid = self._ask({**request, "logs": str(logs)})

    def _ask(self, request: dict) -> int:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> Ended:
        code = self._ask({"wait": self.pid})
        return Ended(code, *((self._logs / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")))

    def wait_until_stopped(self) -> None:
        """Return once the run has stopped itself (SIGSTOP)."""
        while not self._is("T"):
            assert not self._is("Z"), "the run ended before it came there"
            time.sleep(0.002)

    def _is(self, state: str) -> bool:
        """Say whether the system shows the run in a state, a letter (see proc(5))."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == state

    def end(self, after: float, number: int) -> Ended:
        """Send a signal after some seconds, if it still runs then."""
        time.sleep(after)
        os.kill(self.pid, number)
        return self.wait()


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """Starts `clamu`, or a script of this folder, with arguments in a folder: `fork(folder, "train", ...)`."""
    with _server(tmp_path_factory.mktemp("logs")) as start:
        yield start


@pytest.fixture(scope="session")
def cold_fork(tmp_path_factory):
    """The same, where each run imports on its own what it needs."""
    with _server(tmp_path_factory.mktemp("logs"), "cold") as start:
        yield start


@contextlib.contextmanager
def _server(root, *words):
    numbers = itertools.count()
    command = [sys.executable, str(Path(__file__).parent / "forks.py"), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def start(
            folder: Path,
            *arguments: str,
            die_in: str | None = None,
            calls: int = 0,
            by: int = signal.SIGKILL,
            script: str | None = None,
            **env: str,
        ) -> Fork:
            logs = root / str(next(numbers))
            logs.mkdir()
            for name in ("stdout", "stderr"):
                (logs / name).touch()  # a run that is killed at once does not come to it
            request = {"arguments": arguments, "cwd": str(folder), "env": env}
            return Fork(server, logs, {**request, "die_in": die_in, "calls": calls, "by": int(by), "script": script})

        yield start
        server.stdin.close()
