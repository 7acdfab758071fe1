"""What an owner whom nobody has named is served: `cluster="auto"` beside own cluster, global model and base.

    python -m tests.benchmarks.routing --work FOLDER            # prints the table
    python -m tests.benchmarks.routing --work FOLDER --write    # and writes it into docs/how-to/serve.md

Every held-out row of a merged task is answered as if its owner were unknown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from examples.stability import Setting, open_setting
from hf_clamu.merging import PRESETS, ClamuArguments, MergedState, merge_tasks, routing_features
from hf_clamu.serving.auto_routing import nearest_tasks
from hf_clamu.training import TaskTrainer, deterministic, example_features, losses_and_scores, prompts_of
from tests.benchmarks import pages

SETTINGS = {
    "demo": "48 owners of `clamu demo`",
    "images_label": "48 tasks, two digits each in one of three views",
    "reddit_cls": "48 users, two packages of docstrings each",
    "users_cls": "48 users, all packages of docstrings each",
}
_METHODS = {
    "per task (`sift`)": {"localization": "sift", "clustering": "none", "scaling": 1.0},
    "6 clusters (preset `clusters`)": {**PRESETS["clusters"].settings, "num_clusters": 6},
}
COLUMNS = ("setting", "masks", "own", "auto", "routed to the own", "global", "base", "time per input")


def measured(name: str, setting: Setting, masks: str) -> list[str]:
    """Return a line of the table: percentages, means over the tasks."""
    values = {**_METHODS[masks], "global_scaling": None, "keep_features": True}
    arguments = replace(setting.arguments, **values)
    trainer = TaskTrainer(
        setting.trainer.workspace, setting.trainer.tasks, setting.processor, arguments, arguments.codec
    )
    state = merge_tasks(trainer, arguments)
    started = time.perf_counter()
    own, routed = _routes(setting, trainer, state, arguments)
    routing = time.perf_counter() - started
    by_mask = torch.tensor([_scores(setting, trainer, state, number) for number in range(len(state.clusters))])
    rows = torch.arange(len(own))
    trainer.load_masked(state.delta, state.global_alpha)
    started = time.perf_counter()
    merged = _held_out_scores(setting, trainer)
    answering = time.perf_counter() - started
    trainer.workspace.reset()
    base = _held_out_scores(setting, trainer)
    shares = [by_mask[own, rows].tolist(), by_mask[routed, rows].tolist(), (own == routed).float().tolist()]
    percentages = [_mean(setting, values) for values in (*shares, merged, base)]
    return [SETTINGS[name], masks, *percentages, f"{1 + routing / answering:.1f} times"]


def _routes(
    setting: Setting, trainer: TaskTrainer, state: MergedState, arguments: ClamuArguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every held-out row, the number of its owner's cluster and of the one that is found."""
    kind = trainer.tasks.spec.kind
    tasks_TD = routing_features(state, arguments, kind)
    assert tasks_TD is not None
    trainer.workspace.reset()
    clusters = torch.tensor([state.cluster_of(task_id) for task_id in state.task_ids])
    owners = [row for row, task_id in enumerate(state.task_ids) for _ in setting.held_out[task_id]]
    examples = [example for task_id in state.task_ids for example in setting.held_out[task_id]]
    inputs_BD = example_features(trainer.workspace, prompts_of(examples, kind))
    return clusters[torch.tensor(owners)], clusters[nearest_tasks(inputs_BD, tasks_TD)]


def _scores(setting: Setting, trainer: TaskTrainer, state: MergedState, cluster: int) -> list[float]:
    trainer.load_masked(state.delta, state.alpha, state.mask(cluster))
    return _held_out_scores(setting, trainer)


def _held_out_scores(setting: Setting, trainer: TaskTrainer) -> list[float]:
    """Return the score of every held-out row, by sorted task."""
    examples = [example for task_id in sorted(setting.held_out) for example in setting.held_out[task_id]]
    return losses_and_scores(trainer.workspace, examples, trainer.tasks.spec.kind)[1]


def _mean(setting: Setting, values: Sequence[float]) -> str:
    """Return the mean over the tasks, each counting the same."""
    left, means = iter(values), []
    for task_id in sorted(setting.held_out):
        means.append(fmean(next(left) for _ in setting.held_out[task_id]))
    return f"{100 * fmean(means):.1f} %"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps base models")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--write", action="store_true", help="write the table into docs/how-to/serve.md")
    options = parser.parse_args(argv)
    rows = []
    with deterministic(1):
        for name in options.settings:
            setting = open_setting(name, options.work, mask_steps=30)
            for masks in _METHODS:
                rows.append(measured(name, setting, masks))
                sys.stderr.write(" | ".join(rows[-1]) + "\n")
    text = pages.table(COLUMNS, rows)
    sys.stdout.write(text + "\n")
    if options.write:
        command = f"python -m tests.benchmarks.routing --settings {' '.join(options.settings)}"
        pages.write("how-to/serve.md", "routing", f"{text}\n\n`{command}`, seed 0.")


if __name__ == "__main__":
    main()
