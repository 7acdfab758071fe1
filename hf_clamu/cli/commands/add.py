"""`clamu add` and `clamu update`: tasks that come, and tasks that get other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.changes import OpenChange, effect_lines, open_change, receipt_lines, report_dry_run
from hf_clamu.cli.checkpoints import checkpoints_of
from hf_clamu.cli.options import (
    Archive,
    Checkpoints,
    Data,
    DryRun,
    EraseHistory,
    Ids,
    Json,
    KeyToSign,
    MaxDrop,
    ModelToChange,
    NewRows,
    NewRowsOrNone,
    OnMismatch,
    Output,
    Receipts,
)
from hf_clamu.cli.output import emit, is_main_process, note
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.completion import complete_task
from hf_clamu.errors import RecipeError, TaskDataError

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.effects.values import ChangeEffect
    from hf_clamu.tasks import IdsSetting, TaskDataset

__all__ = ["add", "update"]


def add(
    folder: ModelToChange,
    new: NewRowsOrNone = None,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK", help="Only these of FILE [default: all that are not merged].", show_default=False
        ),
    ] = None,
    data: Data = None,
    ids: Ids = None,
    checkpoint: Checkpoints = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: Archive = None,
    dry_run: DryRun = False,
    max_drop: MaxDrop = None,
    key: KeyToSign = None,
    as_json: Json = False,
) -> None:
    """Merge more tasks: the result is byte for byte a build that had them from the start.

    They are finetuned on the rows of FILE, or come from checkpoints that were finetuned elsewhere.
    """
    from hf_clamu.operations.lifecycle.queue import added_before

    if not new and not checkpoint:
        raise RecipeError("Give the new rows (--new FILE), or checkpoints (--checkpoint ID=FOLDER).")
    folders = checkpoints_of(checkpoint or ())
    places: dict[str, Any] = {"output": output, "receipts": receipts, "archive": archive}
    options: dict[str, Any] = {"erase_history": erase_history, "dry_run": dry_run, "max_drop": max_drop, "key": key}
    with open_change(folder, **places, **options) as change:
        model = change.model
        offered = _new_tasks(model, new, tasks, ids) if new else _tasks_of_checkpoints(model, folders, tasks)
        done = set(model.tasks)
        if tasks and new:  # a named task that was merged by another command is an error
            done &= added_before(change.target.history(model))
        wanted = _share([task_id for task_id in offered.task_ids if task_id not in done])
        effect = None
        if wanted:
            present = {*wanted, *model.tasks}
            effect = change.carry_out(
                model.add_task,
                offered.select(wanted),
                checkpoints={name: folders[name] for name in folders if model.ledger_id(name) in present},
                data=data,
                progress=progress_bars,
            )
        _save_if_changed(change)
    _report(change, "Added", effect, as_json)


def update(
    folder: ModelToChange,
    new: NewRows,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK",
            help="Only these of FILE [default: all that are merged].",
            show_default=False,
            autocompletion=complete_task,
        ),
    ] = None,
    data: Data = None,
    ids: Ids = None,
    checkpoint: Checkpoints = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: Archive = None,
    on_mismatch: OnMismatch = "error",
    dry_run: DryRun = False,
    max_drop: MaxDrop = None,
    key: KeyToSign = None,
    as_json: Json = False,
) -> None:
    """Give merged tasks other rows: the result is byte for byte a build with the new ones.

    FILE has all rows that the tasks are to have from now on. The old rows are read as for unmerge.
    """

    folders = checkpoints_of(checkpoint or ())
    places: dict[str, Any] = {"output": output, "receipts": receipts, "archive": archive}
    options: dict[str, Any] = {"erase_history": erase_history, "dry_run": dry_run, "max_drop": max_drop, "key": key}
    with open_change(folder, **places, **options) as change:
        model = change.model
        offered = _new_tasks(model, new, tasks, ids)
        wanted = [task_id for task_id in offered.task_ids if tasks or task_id in model.tasks]
        if len(wanted) < len(offered):
            names = ", ".join(map(str, new))
            note(f"{len(offered) - len(wanted)} tasks of {names} are not merged and left out: clamu add merges them.")
        wanted = _share(wanted)
        effect = None
        if wanted:
            effect = change.carry_out(
                model.update_task,
                offered.select(wanted),
                data=data,
                checkpoints=folders,
                on_mismatch=on_mismatch,
                progress=progress_bars,
            )
        _save_if_changed(change)
    _report(change, "Updated", effect, as_json)


def _new_tasks(
    model: ClamuModel, new: Sequence[Path], tasks: Sequence[str] | None, ids: IdsSetting | None
) -> TaskDataset:
    """Return the tasks of files of new rows, or those of them that are named.

    Raises:
        TaskDataError: if ids look alike, or look like those of merged tasks, unless that is allowed.
    """
    from hf_clamu.tasks.near_names import describe_near, names_like

    ids = ids or model.merged.checkpoint.task_spec.ids
    offered = _named(model, model.load_tasks(new, ids=ids), tasks)
    alike = [] if ids == "as-is" else names_like(model.tasks, offered.task_ids)
    if alike:
        pairs = [[task_id, names_like([task_id], model.tasks)[0]] for task_id in alike]
        shown = describe_near(pairs, lambda one: offered.first_place(one) if one in alike else "merged", "ids")
        raise TaskDataError(
            f"New ids look like merged ones: {shown}. If they are one owner, write one id; if they are different "
            "owners, give --ids as-is."
        )
    return offered


def _tasks_of_checkpoints(model: ClamuModel, folders: Mapping[str, str], tasks: Sequence[str] | None) -> TaskDataset:
    """Return the tasks, without rows, of which there are checkpoints, or those of them that are named."""
    from hf_clamu.tasks import TaskDataset

    merged = model.merged.checkpoint
    offered = TaskDataset.without_rows(merged.task_spec, map(model.ledger_id, folders), keyed=merged.has_keyed_ids)
    return _named(model, offered, tasks)


def _named(model: ClamuModel, offered: TaskDataset, tasks: Sequence[str] | None) -> TaskDataset:
    return offered.select(list(map(model.ledger_id, tasks))) if tasks else offered


def _share(wanted: list[str]) -> list[str]:
    """Return the tasks that the main process wants: only it knows what an earlier run has done."""
    from hf_clamu.training import Workers

    return list(Workers.current().gather(wanted)[0])


def _save_if_changed(change: OpenChange) -> None:
    if change.model.receipts:
        change.save()


def _report(change: OpenChange, verb: str, effect: ChangeEffect | None, as_json: bool) -> None:
    if not is_main_process():
        return
    if change.is_dry and effect is not None:
        report_dry_run(change, effect, as_json)
        return
    model, name = change.model, change.target.name
    if not model.receipts:
        values: dict[str, Any] = {"status": "nothing to do", "output": name}
        text = f"Nothing to do: {name} has these tasks with these rows."
        emit(as_json, values, lambda: text, quiet=(), then=change.then(is_plain=False))
        return
    values = {"status": verb.lower(), "output": name, **change.receipt_values(model.receipts[-1], effect)}
    names = ", ".join(sorted(values["receipt"]["private"]["salts"]))
    head = f"{verb} {names}; {name} has {len(model.tasks)} tasks now."
    lines = [head, *effect_lines(effect), *receipt_lines(values)]
    then = change.then(is_plain=False)
    emit(as_json, values, lambda: "\n".join(lines), quiet=[values["receipt_file"]], then=then)
