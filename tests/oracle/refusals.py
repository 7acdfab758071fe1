"""What is refused, with exit code and type, and the commands that no cell has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.oracle.cells import Cell, rows, write_rows, write_work
from tests.oracle.chains import write_locals
from tests.oracle.steps import Bench

__all__ = ["run_refusals"]

_CELL = Cell(localization="emr")


def run_refusals(bench: Bench) -> None:
    """Run commands that go wrong, and the rarer ones that go well."""
    write_work(_CELL, bench.root / "refusals")
    folder = bench.enter("refusals")
    _recipes(bench, folder)
    bench.command("train", "train", "recipe.yaml", "--output", "model")
    shutil.copytree("model", "other")
    bench.command("train there", "train", "recipe.yaml", "--output", "model")
    bench.command("train over", "train", "recipe.yaml", "--output", "other", "--overwrite", "--without", "user_3")
    bench.command("train dry", "train", "recipe.yaml", "--output", "dry", "--dry-run")
    bench.command("plan", "plan", "recipe.yaml")
    bench.command("usage", "unmerge")
    bench.command("usage option", "info", "model", "--no-such-option")
    bench.command("no model", "info", "nowhere")
    bench.command("no repo", "info", "owner/nowhere")
    bench.command("unmerge unknown", "unmerge", "model", "user_77")
    bench.command("unmerge without rows", "unmerge", "model", "user_1", "--data", "nowhere.jsonl")
    bench.command("add merged", "add", "model", "user_1", "--new", "rows.jsonl")
    bench.command("export unknown", "export", "model", "--output", "out", "--task", "user_77")
    bench.command("export cluster", "export", "model", "--output", "out", "--cluster", "77")
    bench.command("export both", "export", "model", "--output", "out", "--cluster", "0", "--task", "user_1")
    bench.command("predict unknown", "predict", "model", "great 1", "--task", "user_77")
    bench.command("predict fallback", "predict", "model", "great 1", "--task", "user_77", "--fallback", "base")
    bench.command("push elsewhere", "push", "model", "other/model")
    _changed_data(bench)
    _queue(bench, folder)
    _damage(bench, folder)
    _merges(bench, folder)
    bench.command("push", "push", "model", "owner/model")
    bench.command("hub unmerge", "unmerge", "owner/model", "user_0", "--data", "rows.jsonl", "--erase-history")
    bench.command("erase unasked", "erase", "owner/model")
    bench.command("erase", "erase", "owner/model", "--yes")
    for number in (0, 1, 2, 3):  # down to nothing
        bench.command(f"unmerge {number}", "unmerge", "other", f"user_{number}", "--receipts", "down")
    bench.command("verify nothing", "verify", "other")
    bench.command("export nothing", "export", "other", "--output", "out-nothing")


def _recipes(bench: Bench, folder: Path) -> None:
    recipe = _CELL.recipe
    arguments = recipe["arguments"]
    wrong = {
        "no base": {**recipe, "base_model": None},
        "unknown key": {**recipe, "arguments_": {}},
        "unknown setting": {**recipe, "arguments": {**arguments, "num_cluster": 2}},
        "wrong value": {**recipe, "arguments": {**arguments, "finetune_steps": "2"}},
        "wrong choice": {**recipe, "arguments": {**arguments, "localization": "ties"}},
        "no column": {**recipe, "data": {**recipe["data"], "text_column": "texts"}},
        "no file": {**recipe, "data": {**recipe["data"], "files": "nowhere.jsonl"}},
        "no such base": {**recipe, "base_model": "owner/nowhere"},
        "sift and product": Cell(localization="sift", space="product").recipe,
        "diverging": {**recipe, "arguments": {**arguments, "learning_rate": 1e30, "finetune_steps": 4}},
    }
    for name, values in wrong.items():
        (folder / "wrong.yaml").write_text(json.dumps(values), encoding="utf-8")
        bench.command(f"train {name}", "train", "wrong.yaml", "--output", "wrong")
    bench.command("train no recipe", "train", "nowhere.yaml", "--output", "wrong")


def _changed_data(bench: Bench) -> None:
    write_rows(Path("other.jsonl"), [*rows("text", range(3)), *rows("text", range(3, 4), revision=3)])
    bench.command("verify changed", "verify", "model", "--data", "other.jsonl")
    bench.command("unmerge changed", "unmerge", "model", "user_3", "--data", "other.jsonl")
    rebuild = ["--on-mismatch", "rebuild", "--output", "rebuilt", "--receipts", "receipts"]
    bench.command("unmerge rebuild", "unmerge", "model", "user_3", "--data", "other.jsonl", *rebuild)
    bench.command("unmerge elsewhere", "unmerge", "model", "user_3", "--output", "without", "--receipts", "receipts")


def _queue(bench: Bench, folder: Path) -> None:
    lines = [{"id": "1", "task": "user_1"}, {"id": "2", "tasks": ["user_77"]}, {"id": "3", "tasks": ["user_2"]}]
    (folder / "queue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bench.command("queue", "unmerge", "model", "--from", "queue.jsonl")
    bench.command("queue again", "unmerge", "model", "--from", "queue.jsonl")
    (folder / "queue.jsonl").write_text('{"task": 3}\n', encoding="utf-8")
    bench.command("queue wrong", "unmerge", "model", "--from", "queue.jsonl")


def _damage(bench: Bench, folder: Path) -> None:
    for name in ("config.json", "ledger.json", "delta.safetensors", "features.safetensors", "tokenizer.json"):
        shutil.copytree("without", "damaged")
        path = folder / "damaged" / name
        if path.exists():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        bench.command(f"damaged {name}", "predict", "damaged", "great 1")
        bench.command(f"damaged {name}, verify", "verify", "damaged", "--data", "rows.jsonl")
        path.unlink(missing_ok=True)
        bench.command(f"lost {name}", "info", "damaged")
        shutil.rmtree("damaged")
    mask = next((folder / "without" / "masks").glob("*/adapter_model.safetensors"))
    shutil.copytree("without", "damaged")
    (folder / "damaged" / mask.relative_to(folder / "without")).unlink()
    bench.command("lost mask", "predict", "damaged", "great 1")
    shutil.rmtree("damaged")


def _merges(bench: Bench, folder: Path) -> None:
    bench.command("export", "export", "without", "--output", "plain")
    write_locals(folder / "plain", folder / "locals", ("user_0", "user_1"))
    how = ["--base", "plain", "--output", "merged"]
    both = ["locals/user_0", "locals/user_1"]
    bench.command("merge sift", "merge", *both, *how, "--set", "localization=sift")
    bench.command("merge features", "merge", *both, *how, "--set", "clustering=features")
    bench.command("merge setting", "merge", *both, *how, "--set", "no_such=1")
    bench.command("merge nowhere", "merge", "locals/user_7", *how)
    config = json.loads((folder / "locals" / "user_1" / "config.json").read_text(encoding="utf-8"))
    config["n_head"] = 4
    (folder / "locals" / "user_1" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    bench.command("merge other heads", "merge", *both, *how)
    bench.command("merge one", "merge", "locals/user_0", *how)
    bench.command("merge lost", "unmerge", "merged", "user_0", "--checkpoint", "user_0=locals/user_7")
    bench.command("merge changed", "unmerge", "merged", "user_0", "--checkpoint", "user_0=plain")
