"""How well local models are learned, by learning rate and steps, and what the default gives, on held-out rows.

    python -m examples.finetune_defaults --work FOLDER --output docs/learning-rates.md --banking77 FOLDER

Each task is finetuned alone, as a build does it; nothing is merged.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.paper.bases import load_setting_base
from examples.paper.scale import Scale
from examples.paper.sources import load_setting_tasks
from examples.stability import keep_row, kept_rows, write_tables
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.merging import PRESETS, ClamuArguments
from hf_clamu.operations.context import open_trainer
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.tasks import Example, TaskDataset
from hf_clamu.training import TaskTrainer, Workspace, deterministic, measure

__all__ = ["RATES", "SETTINGS", "SPACES", "Row", "page"]

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# What stands in a table's title, what differs in the paper's data, and how many of the tasks are finetuned.
SETTINGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "images_label": ("ViT of width 48, pretrained on digits, two of ten digits per task", {"num_tasks": 24}, 24),
    "reddit_cls": ("GPT-2 of width 64, pretrained on docstrings, two of eight packages per user, new head", {}, 12),
    "banking77": (
        "MiniLM, width 384, 22 million weights, two to five of 77 intents per user, new head",
        {"max_length": 24},
        6,
    ),
}
_LORA = PRESETS["adapters"].peft_config
# The adapter and the settings of each space.
SPACES: dict[str, tuple[Any, dict[str, Any]]] = {
    "all weights": (None, {"localization": "global"}),
    "all weights, fixed signs": (None, {"localization": "sift"}),
    "LoRA": (_LORA, {"localization": "global"}),
    "LoRA, fixed signs": (_LORA, {"localization": "sift"}),
}
_MARK = "<!-- The tables below are written by examples/finetune_defaults.py. -->\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The accuracy of local models on held-out rows, mean over the tasks.

    Args:
        setting, space (`str`), seed, steps (`int`): what was measured.
        rate (`float`): learning rate.
        is_default (`bool`): whether this rate was the default here; measure again after a change of the rule.
        score (`float`): in [0, 1].
    """

    setting: str
    space: str
    seed: int
    steps: int
    rate: float
    is_default: bool
    score: float


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A live model with its tasks.

    Args:
        workspace (`Workspace`): the live model.
        tasks (`TaskDataset`): the data.
        processor (*optional*): tokenizer.
        arguments (`ClamuArguments`): the default settings of the space.
        held_out (*dict* of `str` to *sequence* of `Example`): of each task that is finetuned.
    """

    workspace: Workspace
    tasks: TaskDataset
    processor: Any
    arguments: ClamuArguments
    held_out: dict[str, Sequence[Example]]

    def score(self, steps: int, rate: float) -> float:
        """Return the mean accuracy of the local models."""
        arguments = replace(self.arguments, finetune_steps=steps, learning_rate=rate)
        trainer = TaskTrainer(self.workspace, self.tasks, self.processor, arguments, arguments.codec)
        scores = []
        for task_id, examples in self.held_out.items():
            trainer.finetune(task_id)
            scores.append(measure(self.workspace, examples, self.tasks.spec.kind).score)
        return fmean(scores)


def _open(name: str, space: str, seed: int, work: Path, paths: dict[str, str]) -> _Opened:
    setting, (_, changes, num_finetuned) = Scale.load("local").settings[name], SETTINGS[name]
    peft_config, settings = SPACES[space]
    tasks = load_setting_tasks({**setting.data, **changes}, seed, paths)
    given = ClamuArguments(**settings, clustering="none", num_threads=1, seed=seed)
    base = load_setting_base(
        setting, tasks, work / "bases", seed, paths, space=PeftSpace.for_settings(given, peft_config, None)
    )
    arguments = resolved_arguments(given, base.model, base.space)
    workspace = open_trainer(base.model, base.processor, tasks, arguments, space=base.space).workspace
    held_out = {one: tasks.encode(one, base.processor).validation for one in tasks.task_ids[:num_finetuned]}
    return _Opened(workspace=workspace, tasks=tasks, processor=base.processor, arguments=arguments, held_out=held_out)


def page(rows: Sequence[Row]) -> str:
    """Return a table for each setting, with a row for each space, number of steps and seed."""
    parts = []
    for name in [name for name in SETTINGS if any(row.setting == name for row in rows)]:
        own = [row for row in rows if row.setting == name]
        rates = [rate for rate in RATES if any(row.rate == rate for row in own)]
        lines = [["space", "steps", "seed", *(f"{rate:.0e}" for rate in rates), "default", "best"]]
        lines.append(["---"] * len(lines[0]))
        keys = itertools.product(SPACES, sorted({row.steps for row in own}), sorted({row.seed for row in own}))
        for space, steps, seed in keys:
            found = [row for row in own if (row.space, row.steps, row.seed) == (space, steps, seed)]
            if not found:
                continue
            scores = {row.rate: f"{100 * row.score:.1f}" for row in found}
            best = max(found, key=lambda row: row.score)
            ends = [*[row for row in found if row.is_default][:1], best]
            cells = [scores.get(rate, "") for rate in rates]
            lines.append(
                [space, str(steps), str(seed), *cells, *(f"{scores[row.rate]} at {row.rate:.1e}" for row in ends)]
            )
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {SETTINGS[name][0]}\n\n{table}\n")
    return "\n".join(parts)


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.finetune_defaults", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Keeps base models and measured rows.")
    parser.add_argument("--output", type=Path, help="Page whose tables are written again.")
    parser.add_argument("--banking77", help="File or folder of its rows, instead of the Hub's.")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--spaces", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 50])
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "local_models.jsonl"
    rows = kept_rows(kept, Row)
    done = {(row.setting, row.space, row.seed, row.steps, row.rate) for row in rows}
    paths = {} if options.banking77 is None else {"banking77": options.banking77}
    with deterministic(1):
        for name, seed, space in itertools.product(options.settings, options.seeds, options.spaces):
            opened = _open(name, space, seed, options.work, paths)
            default = opened.arguments.peak_learning_rate
            for steps, rate in itertools.product(options.steps, sorted({*options.rates, default})):
                if (name, space, seed, steps, rate) in done:
                    continue
                values = {"setting": name, "space": space, "seed": seed, "steps": steps, "rate": rate}
                rows.append(Row(**values, is_default=rate == default, score=opened.score(steps, rate)))
                keep_row(kept, rows[-1])
    if options.output is not None:
        write_tables(options.output, _MARK, page(rows))


if __name__ == "__main__":
    main()
