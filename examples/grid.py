"""What a coarser grid costs: the settings of `examples.paper`, built with 28 bits and with `fraction_bits: auto`.

    python -m examples.grid --work FOLDER --tofu FILE --output docs/grid.md

Every row is a build by `ClamuTrainer`, with an archive, and what it reports of its validation examples.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from examples.paper.bases import load_setting_base
from examples.paper.scale import Scale, Setting
from examples.paper.sources import load_setting_tasks
from examples.stability import keep_row, kept_rows, write_tables
from hf_clamu import ClamuArguments, ClamuTrainer
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import silent_progress

__all__ = ["BUILDS", "SETTINGS", "Build", "Row", "main", "page"]

SETTINGS = ("images_task", "images_label", "users_cls", "users_lm", "reddit_cls", "reddit_lm", "tofu")
_EXACT = "28"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Settings of a build, and what is read of its scores.

    Args:
        settings (*dict*): what differs from the setting's own.
        methods (*dict* of `str` to `str`): names for the table, with the score of each.
        only (*tuple* of `str`): settings that it is for; all of them if empty.
    """

    settings: dict[str, Any]
    methods: dict[str, str]
    only: tuple[str, ...] = ()


BUILDS = {
    "clamu": Build(
        settings={"preset": "clusters", "num_clusters": 6, "mask_steps": 30, "global_scaling": 1.0},
        methods={"average": "global", "ClAMU, 6 masks": "own"},
    ),
    "sift": Build(settings={"preset": "per-task"}, methods={"SIFT, mask per task": "own"}),
    "adapters": Build(
        settings={"preset": "adapters", "learning_rate": "auto"},
        methods={"SIFT through LoRA": "own"},
        only=("images_label",),
    ),
}
_MARK = "<!-- The tables below are written by examples/grid.py. -->\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of one build.

    Args:
        setting, method (`str`), seed (`int`): what was measured.
        grid (`str`): `"auto"`, or the bits that the recipe named.
        bits (`int`): that the saved model has.
        score (`float`): on the validation examples, mean over the tasks.
        vector_bytes, delta_bytes (`float`): per weight, of a vector's file in the archive and of the saved delta.
    """

    setting: str
    seed: int
    method: str
    grid: str
    bits: int
    score: float
    vector_bytes: float
    delta_bytes: float


def measure(
    name: str, setting: Setting, tasks: TaskDataset, build: Build, grid: str, *, seed: int, work: Path, paths: Any
) -> Iterator[Row]:
    """Build once, and yield a row for each method.

    Args:
        name (`str`), setting (`Setting`), tasks (`TaskDataset`): what is built of.
        build (`Build`): how.
        grid (`str`): `"auto"`, or a number of bits.
        seed (`int`): of the run.
        work (`Path`): keeps base models.
        paths (*mapping* of `str` to `str`): local files, by source.
    """
    own = {"fraction_bits": grid if grid == "auto" else int(grid), "score_validation": True, "seed": seed}
    arguments = ClamuArguments.from_dict({**setting.arguments, **build.settings, **own})
    base = load_setting_base(setting, tasks, work / "bases", seed, paths)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClamuTrainer(
            base.model,
            tasks,
            arguments,
            processing_class=base.processor,
            archive_dir=folder,
            progress=silent_progress,
        )
        model = trainer.train()
        archived = sum(path.stat().st_size for path in Path(folder).iterdir())
    scores, delta = trainer.scores, model.merged.state.delta
    assert scores is not None, "every setting has validation examples"
    weights = sum(steps.numel() for steps in delta.values())
    for method, score in build.methods.items():
        yield Row(
            setting=name,
            seed=seed,
            method=method,
            grid=grid,
            bits=model.clamu_config.arguments["fraction_bits"],
            score=scores[score],
            vector_bytes=archived / len(tasks) / weights,
            delta_bytes=sum(steps.nbytes for steps in delta.values()) / weights,
        )


def page(rows: Sequence[Row]) -> str:
    """Return the table: a line for each setting and method that was measured on both grids."""
    lines = [
        ["setting", "method", "seeds", "28 bits", "auto", "difference", "standard error", "bits", "vector", "delta"],
        ["---"] * 10,
    ]
    for name, method in dict.fromkeys((row.setting, row.method) for row in rows):
        fine, coarse = (
            {row.seed: row for row in rows if (row.setting, row.method, row.grid) == (name, method, grid)}
            for grid in (_EXACT, "auto")
        )
        seeds = sorted(fine.keys() & coarse.keys())
        if not seeds:
            continue
        scores = [[100 * found[seed].score for seed in seeds] for found in (fine, coarse)]
        error = f"{stdev(scores[0]) / len(seeds) ** 0.5:.1f}" if len(seeds) > 1 else ""
        lines.append(
            [
                Scale.load("local").settings[name].title,
                method,
                str(len(seeds)),
                *(f"{fmean(values):.1f}" for values in scores),
                f"{fmean(scores[1]) - fmean(scores[0]):+.1f}",
                error,
                ", ".join(sorted({str(coarse[seed].bits) for seed in seeds})),
                _both([fine, coarse], seeds, lambda row: row.vector_bytes),
                _both([fine, coarse], seeds, lambda row: row.delta_bytes),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _both(grids: Sequence[dict[int, Row]], seeds: Sequence[int], value: Callable[[Row], float]) -> str:
    return " → ".join(f"{fmean(value(found[seed]) for seed in seeds):.2f}" for found in grids)


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for and is not measured yet, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.grid", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Keeps base models and measured rows.")
    parser.add_argument("--output", type=Path, help="Page whose table is written again.")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--builds", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--grids", nargs="+", default=[_EXACT, "auto"], help="auto, or numbers of bits.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-tasks", type=int, default=24)
    parser.add_argument("--scale", default="local", help="A scale of examples.paper.")
    parser.add_argument("--tofu", help="TOFU's file, if it is not read from the Hub.")
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    kept, paths = options.work / "grid.jsonl", {} if options.tofu is None else {"tofu": options.tofu}
    rows = kept_rows(kept, Row)
    done = {(row.setting, row.seed, row.method, row.grid) for row in rows}
    for seed, name in itertools.product(options.seeds, options.settings):
        setting = Scale.load(options.scale).settings[name]
        tasks = load_setting_tasks({**setting.data, "num_tasks": options.num_tasks}, seed, paths)
        for build, grid in itertools.product([BUILDS[one] for one in options.builds], options.grids):
            is_done = all((name, seed, method, grid) in done for method in build.methods)
            if is_done or (build.only and name not in build.only):
                continue
            for row in measure(name, setting, tasks, build, grid, seed=seed, work=options.work, paths=paths):
                rows.append(row)
                keep_row(kept, row)
    if options.output is not None:
        write_tables(options.output, _MARK, page(sorted(rows, key=lambda row: SETTINGS.index(row.setting))))


if __name__ == "__main__":
    main()
