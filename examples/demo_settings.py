"""Choose steps and learning rates of the demo's ways on validation rows, each from the same grid.

    python -m examples.demo_settings

The validation rows are cut from the training rows; the held-out rows of the demo are not read. `--shared` gives all
owners one way to label, for comparison: then one joint model is best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_clamu.demo import prepare
from hf_clamu.demo.running import open_setting
from hf_clamu.demo.ways import WAYS, Setting
from hf_clamu.evaluation import labels_of_examples
from hf_clamu.tasks import digits, load_tasks
from hf_clamu.training import silent_progress

__all__ = ["GRID", "accuracy", "open_validation"]

# Steps per owner, learning rates; LoRA's rates are ten times as high.
GRID = ((5, 10, 20), (5e-4, 1e-3, 2e-3, 4e-3))
# The names of the ways by the name of what they finetune.
_WAYS = {"joint": "joint", "local": "local", "lora": "lora", "clusters": "clamu", "per-task": "sift"}


def open_validation(folder: Path, *, shared: bool) -> Setting:
    """Prepare the demo and hold out validation rows, three in ten of the training rows.

    Args:
        folder (`Path`): a new folder.
        shared (`bool`): whether all owners call 0 to 4 "few".
    """
    recipe = prepare(folder)
    if shared:
        _label_alike(folder / "data" / "train.jsonl")
    tasks = load_tasks({**recipe.data, "validation_fraction": 0.3}, base_dir=folder)
    setting = open_setting(folder, recipe, silent_progress)
    held_out = {task_id: tasks.encode(task_id, None).validation for task_id in tasks}
    return replace(setting, tasks=tasks, held_out={task_id: rows for task_id, rows in held_out.items() if rows})


def _label_alike(file: Path) -> None:
    digit_of = {(row["task"], row["id"]): row["label"] for row in digits()}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["label"] = "few" if digit_of[row["task"], row["id"]] < 5 else "many"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def accuracy(setting: Setting, name: str, steps: int, rate: float) -> float:
    """Build a way with some settings, and return its mean accuracy over the owners on the validation rows."""
    changes: dict[str, Any] = {"finetune_steps": steps, "learning_rate": rate, "score_validation": False}
    setting = replace(
        setting,
        per_task=replace(setting.per_task, **changes),
        clusters=replace(setting.clusters, **changes),
        chosen={**setting.chosen, name: (steps, rate)},
    )
    way = next(way for way in WAYS if way.name == _WAYS[name])
    with tempfile.TemporaryDirectory() as folder:
        approach = way.build(setting, Path(folder) / "built")
        scores = []
        for task_id, examples in setting.held_out.items():
            right = zip(approach.answers(task_id), labels_of_examples(examples), strict=True)
            scores.append(statistics.fmean(given == label for given, label in right))
    return statistics.fmean(scores)


def main() -> None:
    """Print a table of each way, and what is best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", action="store_true", help="all owners label alike")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS))
    options = parser.parse_args()
    steps, rates = GRID
    with tempfile.TemporaryDirectory() as folder:
        setting = open_validation(Path(folder) / "demo", shared=options.shared)
        for name in options.ways:
            factor = 10 if name == "lora" else 1
            found = {
                (count, factor * rate): accuracy(setting, name, count, factor * rate)
                for count in steps
                for rate in rates
            }
            best = max(found, key=lambda one: found[one])
            print(f"{name}: best {best[0]} steps at {best[1]:g}: {found[best]:.3f}", flush=True)
            print({f"{count} at {rate:g}": round(score, 3) for (count, rate), score in found.items()}, flush=True)


if __name__ == "__main__":
    main()
