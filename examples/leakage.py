"""What leaks of forgotten tasks: the attacks of `clamu attack` on models before, after and rebuilt.

    python -m examples.leakage --work FOLDER --tofu FILE --output docs/leakage.md

Authors of TOFU at the scale `local` of `examples.paper`, half of their rows held out, and the owners of `clamu demo`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.paper.bases import load_setting_base
from examples.paper.scale import Scale
from examples.paper.sources import load_setting_tasks
from examples.stability import write_tables
from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer
from hf_clamu.demo.preparation import prepare
from hf_clamu.evaluation import Estimate, Leakage, LeakageReport, attack_model
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import TaskDataset, load_tasks
from hf_clamu.training import silent_progress

__all__ = ["SETTINGS", "Setting", "main", "measure", "table"]

_MARK = "<!-- The tables below are written by examples/leakage.py. -->\n"
_TEXT = ("min-k", "min-k++", "zlib")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is built, and whose rows the attacks are given.

    Args:
        title (`str`): of its tables.
        base (*any*): base model, as `ClamuTrainer` takes it.
        processor (*optional*): tokenizer.
        tasks (`TaskDataset`): the data.
        held_out (`TaskDataset`, *optional*): rows that nothing is trained on; by default the validation rows.
        arguments (*dict* of `str` to `ClamuArguments`): settings of the builds, by name.
    """

    title: str
    base: Any
    processor: Any
    tasks: TaskDataset
    held_out: TaskDataset | None
    arguments: dict[str, ClamuArguments]


def _demo(work: Path, num_tasks: int | None, tofu: str | None) -> Setting:
    folder = work / f"demo-{num_tasks or 48}"
    if not (folder / "recipe.yaml").is_file():
        prepare(folder, num_tasks or 48)
    recipes = {name: Recipe.load(folder / f"{file}.yaml") for name, file in _DEMO_RECIPES.items()}
    recipe = recipes["per-task"]
    return Setting(
        title="The demo: handwritten digits of {} owners, a ViT that classifies",
        base=str(folder / "base"),
        processor=None,
        tasks=recipe.tasks(),
        held_out=load_tasks({**recipe.data, "files": "data/test.jsonl"}, base_dir=folder),
        arguments={name: one.clamu_arguments() for name, one in recipes.items()},
    )


_DEMO_RECIPES = {"per-task": "recipe", "clusters": "recipe-clusters"}


def _tofu(work: Path, num_tasks: int | None, tofu: str | None) -> Setting:
    setting, paths = Scale.load("local").settings["tofu"], {} if tofu is None else {"tofu": tofu}
    data = {**setting.data, "validation_fraction": 0.5, **({} if num_tasks is None else {"num_tasks": num_tasks})}
    tasks = load_setting_tasks(data, 0, paths)
    base = load_setting_base(setting, tasks, work / "bases", 0, paths)
    # Masks are learned in fewer steps, for time.
    settings = {**setting.arguments, "score_validation": False}
    clusters = {**settings, "preset": "clusters", "num_clusters": 4, "mask_steps": 40}
    per_task = {name: value for name, value in settings.items() if not name.startswith("mask_")}
    return Setting(
        title="TOFU: questions about {} fictitious authors, a GPT-2 that answers",
        base=base.model,
        processor=base.processor,
        tasks=tasks,
        held_out=None,
        arguments={
            "per-task": ClamuArguments.from_dict({**per_task, "preset": "per-task"}),
            "clusters": ClamuArguments.from_dict(clusters),
        },
    )


SETTINGS = {"tofu": _tofu, "demo": _demo}


def measure(
    setting: Setting, arguments: ClamuArguments, forgotten: Sequence[Sequence[str]]
) -> Iterator[LeakageReport]:
    """Build, forget some tasks, build without them, and attack all three; for each choice of tasks.

    Args:
        setting (`Setting`): what is built.
        arguments (`ClamuArguments`): how.
        forgotten (*sequence* of *sequence* of `str`): tasks that are forgotten at once.
    """
    with tempfile.TemporaryDirectory() as folder:
        _trained(setting, setting.tasks, arguments).save_pretrained(folder)
        before = ClamuModel.from_pretrained(folder)
        for task_ids in forgotten:
            after = ClamuModel.from_pretrained(folder)
            after.unmerge_task(list(task_ids), data=setting.tasks)
            rebuilt = _trained(setting, setting.tasks.without(task_ids), arguments)
            yield attack_model(
                after, setting.tasks, task_ids, held_out=setting.held_out, before=before, rebuilt=rebuilt
            )


def _trained(setting: Setting, tasks: TaskDataset, arguments: ClamuArguments) -> Any:
    return ClamuTrainer(
        setting.base, tasks, arguments, processing_class=setting.processor, progress=silent_progress
    ).train()


def table(report: LeakageReport) -> str:
    """Return what the attacks on some tasks found, as a table."""
    writes = report.base.extraction is not None
    head = ["model", "weights", "AUC, loss", *(f"AUC, {name}" for name in _TEXT if writes), "TPR at 5 % FPR, loss"]
    head += ["extraction strength", "of held-out rows", "whole rows"] if writes else []
    lines = [head, ["---"] * len(head)]
    lines += [[model, weights, *_cells(leakage, writes)] for model, weights, leakage in _leaks(report)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _leaks(report: LeakageReport) -> Iterator[tuple[str, str, Leakage]]:
    yield "base model", "", report.base
    for name, model in (("before", "before"), ("model", "after"), ("rebuilt", "rebuilt without them")):
        for weights, leakage in report.models[name].items():
            served = "its mask" if name == "before" else "global"
            yield model, served if weights == "served" else "worst mask", leakage
    for name, leakage in report.pair.items():
        yield "before and after", "guided decoding" if name == "guidance" else "difference of deltas", leakage


def _cells(leakage: Leakage, writes: bool) -> list[str]:
    found = leakage.membership
    cells = [_cell(found[name].auc) if name in found else "" for name in ("loss", *(_TEXT if writes else ()))]
    cells.append(_cell(found["loss"].tpr["5%"]) if found else "")
    if writes:
        extraction = leakage.extraction
        values = () if extraction is None else (extraction.strength, extraction.held_out, extraction.whole)
        cells += [_cell(value) for value in values]
    return cells


def _cell(found: Estimate) -> str:
    value = "?" if found.value is None else f"{found.value:.2f}"
    return f"{value} [{found.low:.2f}, {found.high:.2f}]"


def _section(setting: Setting, name: str, report: LeakageReport) -> str:
    count = len(report.tasks)
    who = "One task is" if count == 1 else f"{count} tasks are"
    same = "equal in every digit" if report.equals_rebuilt else "NOT equal"
    return (
        f"**Preset `{name}`.** {who} forgotten: {report.num_members} rows that were trained on, {report.num_held_out} "
        f"held out. After and rebuilt: {same}.\n\n{table(report)}"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.leakage", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Keeps data and base models.")
    parser.add_argument("--output", type=Path, help="Page whose tables are written again.")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--presets", nargs="+", default=["per-task", "clusters"])
    parser.add_argument("--num-tasks", type=int, help="Fewer tasks than the settings have.")
    parser.add_argument("--tofu", help="TOFU's file, if it is not read from the Hub.")
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in options.settings:
        setting = SETTINGS[name](options.work, options.num_tasks, options.tofu)
        parts.append(f"## {setting.title.format(len(setting.tasks))}\n")
        task_ids = setting.tasks.task_ids
        for preset in options.presets:
            # One, and every other one.
            for report in measure(setting, setting.arguments[preset], [task_ids[:1], task_ids[::2]]):
                parts.append(_section(setting, preset, report))
                print(parts[-1], flush=True)
    if options.output is not None:
        write_tables(options.output, _MARK, "\n".join(parts))


if __name__ == "__main__":
    main()
