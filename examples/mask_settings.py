"""How well masks of clusters serve, by clustering and by how they are learned, on held-out rows.

    python -m examples.mask_settings --work FOLDER --output docs/masks.md

Task vectors are finetuned once for each setting and seed. Forgotten tasks are not looked at here, see
`examples.stability`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from examples.stability import (
    SETTINGS,
    Setting,
    answered,
    answers_of,
    derived,
    keep_row,
    kept_rows,
    open_setting,
    partial_state,
    write_tables,
)
from hf_clamu.merging import PRESETS
from hf_clamu.training import deterministic

__all__ = ["CELLS", "Row", "page"]

_BEFORE: dict[str, Any] = {"mask_steps": 50, "scaling": 4.0, "mask_gradient_norm": "raw", "mask_factors": "none"}
_NOW = {name: PRESETS["clusters"].settings[name] for name in _BEFORE}
_RAW = {**_NOW, "mask_gradient_norm": "raw"}
# Changed settings by what stands in the first column; six clusters unless they say something else.
CELLS: dict[str, dict[str, Any]] = {
    **{clustering: {"clustering": clustering, **_BEFORE} for clustering in ("features", "anchored", "task_vectors")},
    "stable_kmeans": {"clustering": "stable_kmeans", **_BEFORE},
    "stable_kmeans, more steps and alpha": {
        "clustering": "stable_kmeans",
        **_BEFORE,
        **{name: _NOW[name] for name in ("mask_steps", "scaling")},
    },
    "stable_kmeans, factors": {"clustering": "stable_kmeans", **_BEFORE, "mask_factors": "tensor"},
    "preset clusters": {"clustering": "stable_kmeans", **_NOW},
    "preset clusters, K = 16": {"clustering": "stable_kmeans", **_NOW, "num_clusters": 16},
    "preset clusters, raw gradients": {"clustering": "stable_kmeans", **_RAW},
    "raw gradients, K = 16": {"clustering": "stable_kmeans", **_RAW, "num_clusters": 16},
    **{f"raw gradients, {name}": {"clustering": name, **_RAW} for name in ("features", "anchored", "task_vectors")},
}
_MARK = "<!-- The tables below are written by examples/mask_settings.py. -->\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The accuracy of one cell on held-out rows, mean over the tasks.

    Args:
        setting (`str`), seed (`int`), cell (`str`): what was measured; `local` is a model per task.
        score (`float`): in [0, 1].
    """

    setting: str
    seed: int
    cell: str
    score: float


def measure(setting: Setting, cell: str) -> float:
    """Return the mean accuracy over the tasks, each by the mask of its cluster; for `local` by its own model."""
    if cell == "local":
        scores = []
        for task_id in setting.trainer.tasks.task_ids:
            setting.trainer.load_masked(setting.trainer.vector(task_id).steps, 1.0)
            scores.append(answered(setting, task_id)[1])
        return fmean(scores)
    arguments = replace(setting.arguments, **CELLS[cell])
    state = derived(setting, arguments, partial_state(setting, arguments), None)
    return fmean(score for _, score in answers_of(setting, state).values())


def page(rows: Sequence[Row]) -> str:
    """Return a table for each setting: the seeds, and mean and spread where there are several."""
    parts = []
    for name in dict.fromkeys(row.setting for row in rows):
        own = [row for row in rows if row.setting == name]
        seeds = sorted({row.seed for row in own})
        lines = [["cell", *(f"seed {seed}" for seed in seeds), "mean ± spread"], ["---"] * (len(seeds) + 2)]
        for cell in ("local", *CELLS):
            found = {row.seed: 100 * row.score for row in own if row.cell == cell}
            values = [f"{found[seed]:.1f}" if seed in found else "" for seed in seeds]
            spread = f"{fmean(found.values()):.1f} ± {stdev(found.values()):.1f}" if len(found) > 1 else ""
            lines += [[cell, *values, spread]] if found else []
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {SETTINGS[name]}\n\n{table}\n")
    return "\n".join(parts)


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.mask_settings", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Keeps base models and measured rows.")
    parser.add_argument("--output", type=Path, help="Page whose tables are written again.")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=["demo", "images_label", "images_task"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", nargs="+", choices=["local", *CELLS], default=["local", *CELLS])
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "cells.jsonl"
    rows = kept_rows(kept, Row)
    done = {(row.setting, row.seed, row.cell) for row in rows}
    with deterministic(1):
        for name, seed in itertools.product(options.settings, options.seeds):
            wanted = [cell for cell in options.cells if (name, seed, cell) not in done]
            if not wanted:
                continue
            setting = open_setting(name, options.work, 50, seed=seed)
            for cell in wanted:
                rows.append(Row(setting=name, seed=seed, cell=cell, score=measure(setting, cell)))
                keep_row(kept, rows[-1])
    if options.output is not None:
        write_tables(options.output, _MARK, page(rows))


if __name__ == "__main__":
    main()
