"""The commands of a cell, one after the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.oracle.cells import Cell, write_work
from tests.oracle.steps import Bench

__all__ = ["run_chain", "write_locals"]


def run_chain(bench: Bench, cell: Cell, *, name: str | None = None) -> None:
    """Train, serve, forget, add, update, verify and export a model, where its cell says that it is."""
    name = name or cell.name
    write_work(cell, bench.root / name)
    folder = bench.enter(name)
    repo = f"owner/{cell.kind}-{cell.localization}"
    archive = {"archive": ["--archive", "vectors"], "hub archive": ["--archive", f"hf://{repo}-vectors"]}
    kept = archive.get(cell.place, [])
    if cell.keyed:
        os.environ["CLAMU_TASK_ID_KEY"] = "a secret of the oracle"
    try:
        bench.command("train", "train", "recipe.yaml", "--output", "model", *kept)
        place = "model"
        if cell.place == "hub":
            bench.command("push", "push", "model", repo, "--private")
            place = repo
        request = ["--receipts", "receipts", *kept]
        if cell.place == "hub":
            request.append("--keep-history")
        bench.command("info", "info", place)
        bench.command("verify", "verify", place, "--data", "rows.jsonl")
        bench.command("unmerge", "unmerge", place, "user_1", "--data", "rows.jsonl", *request)
        bench.command("export", "export", place, "--output", "plain", "--task", "user_2")
        bench.command("add", "add", place, "--new", "all.jsonl", "--data", "rows.jsonl", *request)
        bench.command("update", "update", place, "user_2", "--new", "changed.jsonl", "--data", "all.jsonl", *request)
        bench.command("verify again", "verify", place, "--data", "now.jsonl")
        bench.command("predict", "predict", place, "--data", "new.jsonl")
        bench.command("evaluate", "evaluate", place, "--data", "now.jsonl")
        if cell.place == "folder":
            _merge(bench, cell, folder)
    finally:
        os.environ.pop("CLAMU_TASK_ID_KEY", None)


def _merge(bench: Bench, cell: Cell, folder: Path) -> None:
    """Merge local models that were made from the exported one, and work with the result."""
    if not (folder / "plain").is_dir():
        return
    write_locals(folder / "plain", folder / "locals", ("user_0", "user_1", "user_2"))
    if cell.localization in ("tall", "emr", "global") and cell.clustering in ("task_vectors", "random", "none"):
        settings = ["--set", f"localization={cell.localization}", "--set", f"clustering={cell.clustering}"]
        how, data = ["--base", "plain", *settings], []
    else:
        settings = ["--set", "localization=clamu"] if cell.localization == "sift" else []
        how, data = ["--base", "plain", "--recipe", "recipe.yaml", *settings], ["--data", "rows.jsonl"]
    last = ["--checkpoint", "locals", *data]
    bench.command("merge", "merge", "locals/user_0", "locals/user_1", *how, "--output", "merged", *data)
    bench.command("merge, add", "add", "merged", "user_2", *last)
    bench.command("merge, unmerge", "unmerge", "merged", "user_0", *last)
    bench.command("merge, verify", "verify", "merged", *last)
    bench.command("merge, export", "export", "merged", "--output", "merged-plain")


def write_locals(base: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Write local models: the base with noise, which is drawn from their names."""
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    for number, name in enumerate(names):
        shutil.copytree(base, folder / name)
        for path in sorted((folder / name).glob("*.safetensors")):
            values: dict[str, Any] = load_file(path)
            noise = np.random.default_rng(number)
            for key in sorted(values):
                step = noise.integers(-8, 9, values[key].shape).astype(np.float32) / 512
                values[key] = values[key] + step.astype(values[key].dtype)
            save_file(values, path, metadata={"format": "pt"})
