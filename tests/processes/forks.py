"""Runs `clamu` in forks of one process that has imported everything, so that many starts cost little.

What a run imported is imported here when it is waited for, so that each module costs its time once; a model is several
thousand of them. With the argument `cold` that is left out: for what is looked up when a module is imported.

Reads a line per request from stdin. `{"arguments": [...], "cwd": ..., "env": {...}, "logs": ...}` starts a run and is
answered with its process id; `{"wait": id}` is answered with the exit status (negative: the signal) once that run has
ended. Until then the id is the run's own, even if it has ended. Output goes to the folder `logs`. With
`"die_in": "module:name"` a run sends itself the signal `"by"` when it calls that function, after `"calls"` calls that
went well; with the signal -1 the function raises an OSError. With `"script"` a script of this folder runs
instead of `clamu`. Runs that nobody waited for are killed at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch

from hf_clamu import cli, evaluation, trainer  # noqa: F401 - what a run needs is there before the fork
from hf_clamu.models import modeling_clamu  # noqa: F401

_MODULES = "modules.json"


def main() -> None:
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    running: dict[int, Path] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _learn(running.pop(request["wait"]) / _MODULES)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
            continue
        child = os.fork()
        if child == 0:
            _run(request)
        running[child] = Path(request["logs"])
        print(child, flush=True)  # noqa: T201
    for child in running:
        os.kill(child, signal.SIGKILL)


def _learn(path: Path) -> None:
    """Import what a run has imported; nothing is known of one that was killed."""
    names = []
    with contextlib.suppress(OSError, ValueError):
        names = [] if "cold" in sys.argv else json.loads(path.read_bytes())
    for name in names:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def _run(request: dict) -> None:
    code, known = 70, set(sys.modules)
    try:
        logs = Path(request["logs"])
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(request["cwd"])
        os.environ |= request.get("env", {})
        tempfile.tempdir = None  # it is looked up once
        # Whoever started the tests may have it ignored, as shells do for what runs in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request.get("die_in"):
            _plant(*request["die_in"].split(":"), request["calls"], request["by"])
        if request.get("script"):
            code = _run_script(request["script"], request["arguments"])
        else:
            code = cli.main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        # The disk may be full, as a test wants it.
        with contextlib.suppress(OSError):
            (logs / _MODULES).write_text(json.dumps(sorted(set(sys.modules) - known)), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_script(name: str, arguments: list[str]) -> int:
    """Run a script of this folder as if it had been started with arguments; return what it exits with."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(str(Path(__file__).parent / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _plant(module: str, name: str, calls: int, by: int) -> None:
    """Make a run end itself when it calls a function."""
    *path, last = name.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    whole = getattr(owner, last)
    left = [calls]

    def dying(*arguments, **options):
        if left[0] == 0 and by < 0:
            raise OSError("No such luck")
        if left[0] == 0:
            os.kill(os.getpid(), by)
        left[0] -= 1
        return whole(*arguments, **options)

    setattr(owner, last, dying)


if __name__ == "__main__":
    main()
