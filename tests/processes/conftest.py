"""Real processes: launched together, killed, and started again."""

from __future__ import annotations

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

    def __init__(self, server, logs: Path) -> None:
        self._server = server
        self._logs = logs
        self.pid = int(server.stdout.readline())

    def wait(self) -> Ended:
        self._server.stdin.write("wait\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Ended(code, *((self._logs / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")))

    def end(self, after: float, number: int) -> Ended:
        """Send a signal after some seconds, if it still runs then."""
        time.sleep(after)
        os.kill(self.pid, number)
        return self.wait()


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """Starts `clamu`, or a script of this folder, with arguments in a folder: `fork(folder, "train", ...)`."""
    logs = tmp_path_factory.mktemp("logs")
    command = [sys.executable, str(Path(__file__).parent / "forks.py")]
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
            request = {"arguments": arguments, "cwd": str(folder), "env": env, "logs": str(logs)}
            request |= {"die_in": die_in, "calls": calls, "by": int(by), "script": script}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return Fork(server, logs)

        yield start
        server.stdin.close()
