"""Saved models, archives and unfinished runs of one version, and what another version makes of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.oracle.calls import served
from tests.oracle.cells import Cell, write_work
from tests.oracle.chains import write_locals
from tests.oracle.steps import Bench, say

__all__ = ["interchange", "write_models"]

CELLS = (
    Cell(scaling="auto"),
    Cell(kind="image", localization="tall", clustering="task_vectors", place="archive"),
    Cell(kind="lm", localization="emr", clustering="column", space="frozen_a", place="archive", keyed=True),
    Cell(kind="words", localization="sift", clustering="none", space="parameters"),
    Cell(kind="seq2seq", localization="global", clustering="random", space="product", keyed=True),
    Cell(localization="sift", clustering="features", place="archive"),
)
# A run that ends itself at one of its renames of files below its folder: no name of the package is needed for it.
_DYING = """
import os, signal, sys
left = [int(sys.argv[1])]
here = os.getcwd()
def watch(event, arguments):
    if event == "os.rename" and os.path.abspath(os.fsdecode(arguments[1])).startswith(here):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from hf_clamu.cli import main
code = main(sys.argv[2:])
sys.stderr.write(f"{int(sys.argv[1]) - left[0]} renames, exit code {code}")
sys.exit(code)
"""
_UNMERGE = ["unmerge", "model", "user_1", "--receipts", "receipts"]
# Commands, and after which part of their renames they are killed.
_UNFINISHED: dict[str, tuple[list[str], float]] = {
    "unfinished-train": (["train", "recipe.yaml", "--output", "model"], 0.5),
    "unfinished-unmerge": (_UNMERGE, 0.5),
    "unfinished-receipts": (_UNMERGE, 1.0),
}


def write_models(out: Path, work: Path, hub: Any) -> None:
    """Write models, archives, a merged model of checkpoints, and runs that were killed half way.

    Args:
        out (`Path`): a new folder.
        work (`Path`): an empty folder for what is not kept.
        hub: the double.
    """
    out.mkdir(parents=True)
    bench = Bench(out, hub)
    for cell in CELLS:
        _train(bench, cell, cell.name)
        say(cell.name)
    _merged(bench)
    for name, (command, part) in _UNFINISHED.items():
        cell = Cell()
        write_work(cell, out / name)
        if command[0] != "train":
            bench.enter(name)
            bench.command("train", "train", "recipe.yaml", "--output", "model")
        _kill(out / name, work / name, command, part)
        say(name)
    for name, steps in bench.record["exits"].items():
        assert not any(steps.values()), f"{name}: {steps} {bench.record['texts'][name]}"


def _train(bench: Bench, cell: Cell, name: str) -> None:
    write_work(cell, bench.root / name)
    bench.enter(name)
    with _key(cell):
        archive = ["--archive", "vectors"] if cell.place == "archive" else []
        bench.command("train", "train", "recipe.yaml", "--output", "model", *archive)


def _merged(bench: Bench) -> None:
    cell = Cell(localization="tall", clustering="task_vectors")
    _train(bench, cell, "merged")
    folder = bench.root / "merged"
    bench.command("export", "export", "model", "--output", "plain")
    shutil.rmtree("model")
    write_locals(folder / "plain", folder / "locals", ("user_0", "user_1", "user_2"))
    how = ["--base", "plain", "--output", "model", "--set", "localization=tall", "--set", "clustering=none"]
    bench.command("merge", "merge", "locals", *how)


def _kill(folder: Path, copy: Path, command: Sequence[str], part: float) -> None:
    """Run a command once to its end in a copy, and then in its folder up to a part of its renames."""
    shutil.copytree(folder, copy)
    whole = _run(copy, 10**6, command)
    assert whole.returncode == 0, whole.stderr
    count = int(whole.stderr.rpartition(" renames")[0].split()[-1])
    assert count > 1, f"{command[0]} renames {count} files: no middle to be killed in"
    killed = _run(folder, max(2, round(count * part)), command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def _run(folder: Path, renames: int, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    import hf_clamu

    tree = Path(hf_clamu.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", _DYING, str(renames), *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def interchange(source: Path, work: Path, hub: Any) -> dict[str, Any]:
    """Load, serve, verify, unmerge and extend copies of each model, finish the unfinished, and say what came out.

    Args:
        source (`Path`): what `write_models` wrote, by any version.
        work (`Path`): an empty folder.
        hub: the double.
    """
    bench = Bench(work, hub)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        shutil.copytree(folder, work / folder.name)
        cell = Cell(**json.loads((folder / "cell.json").read_text(encoding="utf-8")))
        bench.enter(folder.name)
        with _key(cell):
            if folder.name in _UNFINISHED:
                bench.command("info before", "info", "model")
                bench.command("finish", *_UNFINISHED[folder.name][0])
                bench.command("verify", "verify", "model")
                bench.command("again", "unmerge", "model", "user_1", "--receipts", "receipts")
            else:
                _use(bench, cell, folder.name)
        say(folder.name)
    return bench.record


def _use(bench: Bench, cell: Cell, name: str) -> None:
    import hf_clamu

    key = os.environ.get("CLAMU_TASK_ID_KEY")
    model = bench.call("load", lambda: hf_clamu.ClamuModel.from_pretrained("model", task_id_key=key))
    bench.answer("load", bench.call("served", lambda: served(model)))
    bench.call("save", lambda: model.save_pretrained("saved"))
    data = ["--checkpoint", "locals"] if name == "merged" else ["--data", "rows.jsonl"]
    kept = ["--archive", "vectors"] if cell.place == "archive" else []
    request = ["--receipts", "receipts", *kept]
    bench.command("verify", "verify", "model", *data)
    bench.command("predict", "predict", "model", "--data", "rows.jsonl")
    bench.command("unmerge", "unmerge", "model", "user_1", *data, *request)
    bench.command("verify again", "verify", "model", *data)
    if name == "merged":
        bench.command("add", "add", "model", "user_1", *data, *request)
    else:
        bench.command("add", "add", "model", "--new", "all.jsonl", "--data", "rows.jsonl", *request)
    bench.command("export", "export", "model", "--output", "out")


@contextlib.contextmanager
def _key(cell: Cell) -> Iterator[None]:
    """Set the key of the task ids while a keyed cell runs."""
    if cell.keyed:
        os.environ["CLAMU_TASK_ID_KEY"] = "a secret of the oracle"
    try:
        yield
    finally:
        os.environ.pop("CLAMU_TASK_ID_KEY", None)
