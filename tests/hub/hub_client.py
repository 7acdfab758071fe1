"""The real client in another process: it reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
# The module of that name, in an expression.
ARCHIVE_STEPS = "__import__('importlib').import_module('tests.hub.archive_steps')"
# What a line may name: `api`, the modules `erase`, `pull` and `push` of hf_clamu.hub, `huggingface_hub` and `Path`.
_WORKER = """
import dataclasses, json, os, sys, warnings
from pathlib import Path
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import huggingface_hub
api = huggingface_hub.HfApi()
from hf_clamu.hub import erase, pull, push
from hf_clamu.checkpoint.reader import read_checkpoint
def plain(value):
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)
for line in sys.stdin:
    try:
        with warnings.catch_warnings(record=True) as caught:
            answer = {"value": eval(json.loads(line))}
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        answer = {"error": str(error), "kinds": kinds}
    answers.write(json.dumps(answer, default=plain) + "\\n")
    answers.flush()
"""


class ClientError(Exception):
    """What the client raised."""

    def __init__(self, message: str, kinds: list[str]) -> None:
        super().__init__(message)
        self.kinds = kinds


class Client:
    """Evaluates expressions in a process whose Hub is the double.

    Values come back as JSON. Arguments are written into the expression with `repr`.
    """

    def __init__(self, url: str, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        proxies = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        settings = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self.log = (home / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            env={**kept, **proxies, **settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUNBUFFERED": "1"},
            cwd=TESTS.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __call__(self, expression: str) -> Any:
        self.send(expression)
        return self.receive()

    def send(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            pytest.fail(f"the client ended: {self.log.read()[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"], answer["kinds"])
        return answer["value"]

    def call(self, function: str, *args: Any, **options: Any) -> Any:
        """Call a function of `hub` or `api` with values that `repr` can write; paths become strings."""
        given = [repr(value) if not isinstance(value, Path) else f"Path({str(value)!r})" for value in args]
        for name, value in options.items():
            given.append(f"{name}={f'Path({str(value)!r})' if isinstance(value, Path) else repr(value)}")
        return self(f"{function}({', '.join(given)})")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.log.close()


def add(name: str, data: bytes) -> str:
    """The expression of an operation that adds a file."""
    return f"huggingface_hub.CommitOperationAdd({name!r}, {data!r})"


def delete(name: str) -> str:
    """The expression of an operation that deletes a file, or a folder if the name ends with a slash."""
    return f"huggingface_hub.CommitOperationDelete({name!r})"
