"""`clamu attack`: what a model leaks of a task, before and after it is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_clamu.cli.models import load_model, open_model
from hf_clamu.cli.options import Data, Json, ModelToRead, other_model
from hf_clamu.cli.output import emit, quieten, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.completion import complete_task
from hf_clamu.cli.terminal.program import command_line

if TYPE_CHECKING:
    from hf_clamu.evaluation.attacks import Estimate, Leakage, LeakageReport
    from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["attack"]

_MEMBERSHIP = ("AUC", "TPR at 1 % FPR", "TPR at 5 % FPR")
_EXTRACTION = ("extraction strength", "of held-out rows", "whole rows")
_WEIGHTS = {"served": "as served", "worst": "worst cluster"}
_PAIR = {"guidance": "guided decoding", "difference": "difference of deltas"}


def attack(
    folder: ModelToRead,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="ID",
            help="Task, merged or forgotten; may be repeated.",
            autocompletion=complete_task,
        ),
    ],
    data: Data = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--held-out",
            help="File of rows of the same owners that were not trained on, instead of the tasks' validation rows; "
            "may be repeated.",
            show_default=False,
        ),
    ] = None,
    before: Annotated[str | None, other_model("The model before: attacked, too, alone and with this one.")] = None,
    rebuilt: Annotated[str | None, other_model("A build without the tasks, to compare with.")] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="NAME",
            help="loss, min-k, min-k++, zlib or extraction; may be repeated. By default all that fit the model.",
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(help="Of language models: how far guided decoding goes towards the model before, and beyond."),
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Attack a model: can it be told which rows a task was trained on, and do they come out of it?"""
    from hf_clamu.evaluation import attack_model

    quieten()
    model = open_model(folder)
    tasks = model.load_tasks(data)
    report = attack_model(
        model,
        tasks,
        task,
        held_out=None if held_out is None else model.load_tasks(held_out),
        before=None if before is None else load_model(before),
        rebuilt=None if rebuilt is None else load_model(rebuilt),
        attacks=attacks,
        guidance=guidance,
        progress=progress_bars,
    )
    values = {"state_digest": model.state_digest(), **report.to_dict()}
    emit(as_json, values, lambda: _text(report), quiet=report.tasks, then=[_next_command(model, folder, task, data)])


def _next_command(model: ClamuModel, folder: str, tasks: Sequence[str], data: Sequence[Path] | None) -> str:
    """Return what forgetting the merged ones of the tasks would change; `verify` if all are forgotten."""
    merged = [one for one in tasks if model.ledger_id(one) in model.tasks]
    files = [word for file in data or () for word in ("--data", str(file))]
    asked = command_line("unmerge", folder, *files, "--dry-run", "--", *merged)
    return asked if merged else command_line("verify", folder)


def _text(report: LeakageReport) -> str:
    count = f"task {report.tasks[0]}" if len(report.tasks) == 1 else f"{len(report.tasks)} tasks"
    parts = [f"{count}: {report.num_members} rows that were trained on, {report.num_held_out} held out"]
    membership: list[tuple[str, ...]] = []
    extraction: list[tuple[str, ...]] = []
    for model, weights, leakage in _leaks(report):
        for name, told in leakage.membership.items():
            cells = map(_cell, (told.auc, *told.tpr.values()))
            membership.append((model, _named(weights, told.cluster), name, *cells))
        if leakage.extraction is not None:
            found = leakage.extraction
            cells = map(_cell, (found.strength, found.held_out, found.whole))
            extraction.append((model, _named(weights, found.cluster), *cells))
    if membership:
        parts.append(table(("model", "weights", "attack", *_MEMBERSHIP), membership, left=(0, 1, 2)))
    if extraction:
        parts.append(table(("model", "weights", *_EXTRACTION), extraction, left=(0, 1)))
    return "\n\n".join([*parts, "\n".join(_remarks(report))])


def _leaks(report: LeakageReport) -> Iterator[tuple[str, str, Leakage]]:
    yield "base", "", report.base
    for name, found in report.models.items():
        for weights, leakage in found.items():
            yield "this model" if name == "model" else name, _WEIGHTS[weights], leakage
    for weights, leakage in report.pair.items():
        yield "both copies", _PAIR[weights], leakage


def _named(weights: str, cluster: int | None) -> str:
    return weights if cluster is None else f"{weights} ({cluster})"


def _cell(found: Estimate) -> str:
    return "–" if found.value is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _remarks(report: LeakageReport) -> Iterator[str]:
    for found in list(report.base.membership.values())[:1]:
        for rate, estimate in found.tpr.items():
            if estimate.needs is not None:
                yield f"A TPR at {rate.rstrip('%')} % FPR takes {estimate.needs} held-out rows."
    between = report.tasks_between
    if between is not None:
        yield f"Tasks that left between both copies: {between['left']}; that joined: {between['joined']}."
    if report.equals_rebuilt is not None:
        yield (
            "This model and the rebuilt one: equal in every digit."
            if report.equals_rebuilt
            else "This model and the rebuilt one differ, so they are not the same bytes: see clamu verify."
        )
    yield "In brackets: intervals of 95 %. An AUC of 0.5 is chance, which is no proof of forgetting: equal bytes are"
    yield "(clamu verify). Whoever keeps a copy of before keeps what it leaks."
