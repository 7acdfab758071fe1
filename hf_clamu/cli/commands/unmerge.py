"""`clamu unmerge`: parse, open, plan, subtract, save, report."""

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
    Json,
    KeyToSign,
    MaxDrop,
    ModelToChange,
    OnMismatchOfUnmerge,
    Output,
    Receipts,
    TasksToForget,
)
from hf_clamu.cli.output import emit, is_main_process, note, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.program import same_command
from hf_clamu.errors import RecipeError, TaskNotFoundError

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.effects.values import ChangeEffect
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, TriagedRequest

__all__ = ["share_open", "subtract", "triage_requests", "unmerge"]

_Requests = Annotated[
    Path | None,
    typer.Option("--from", help='JSON lines of requests: {"id": "req-17", "task": "user_3"}.', show_default=False),
]


def unmerge(
    folder: ModelToChange,
    tasks: TasksToForget = None,
    requests: _Requests = None,
    data: Data = None,
    checkpoint: Checkpoints = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: Archive = None,
    on_mismatch: OnMismatchOfUnmerge = "error",
    dry_run: DryRun = False,
    max_drop: MaxDrop = None,
    key: KeyToSign = None,
    as_json: Json = False,
) -> None:
    """Forget tasks: what is left is byte for byte what a build without them gives.

    A folder is replaced as a whole; a Hub id gets one commit. Requests that are done already are recognised by their
    receipts.
    """
    from hf_clamu.operations.request import on_mismatch_of

    asked = _parse(tasks, requests)
    way_out = on_mismatch_of(on_mismatch, "unmerge", has_archive=archive is not None)
    options: dict[str, Any] = {"data": data, "checkpoints": checkpoints_of(checkpoint or ()), "on_mismatch": way_out}
    places: dict[str, Any] = {"output": output, "receipts": receipts, "archive": archive}
    ways: dict[str, Any] = {"erase_history": erase_history, "dry_run": dry_run, "max_drop": max_drop, "key": key}
    effect = None
    with open_change(folder, **places, **ways) as change:
        statuses = triage_requests(change, asked)
        wanted = share_open(statuses)
        _warn_of_near_ids(change.model, wanted)
        if wanted:
            effect = subtract(change, wanted, {**options, "progress": progress_bars})
            if not dry_run:
                change.save()
    if is_main_process():
        then = change.then(is_plain=bool(wanted) and not (data or checkpoint or archive))
        if requests is not None:
            _report_queue(change, statuses, effect, as_json, then)
        elif dry_run and effect is not None:
            report_dry_run(change, effect, as_json)
        else:
            _report(change, asked[0], statuses[0], as_json, then)


def _parse(tasks: Sequence[str] | None, requests: Path | None) -> list[ForgetRequest]:
    """Return the requests of a file, or the one that the command line is; its name is `None`."""
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, read_requests

    if bool(tasks) == (requests is not None):
        raise RecipeError("Give either the tasks to forget or --from FILE with requests.")
    return [ForgetRequest(tasks=tuple(dict.fromkeys(tasks or ())))] if requests is None else read_requests(requests)


def triage_requests(change: OpenChange, asked: Sequence[ForgetRequest]) -> list[TriagedRequest]:
    """Say which requests are open, done or impossible; of several processes the main one, which recovered, does."""
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, triage

    if not is_main_process():
        return []
    model = change.model
    in_ledger = [ForgetRequest(name=one.name, tasks=tuple(map(model.ledger_id, one.tasks))) for one in asked]
    return triage(in_ledger, model.tasks, change.target.history(model))


def share_open(statuses: Sequence[TriagedRequest]) -> dict[str | None, list[str]]:
    """Return the tasks of each open request, the same in all processes.

    Raises:
        TaskNotFoundError: if the request of the command line cannot be carried out; those of a file are reported.
    """
    from hf_clamu.training import Workers

    wanted = [(status.request.name, list(status.tasks)) for status in statuses if status.status == "open"]
    problem = next((status.problem for status in statuses if status.request.name is None), "")
    wanted, problem = Workers.current().gather([wanted, problem])[0]
    if problem:
        raise TaskNotFoundError(problem)
    return dict(wanted)


def _warn_of_near_ids(model: ClamuModel, wanted: Mapping[str | None, Sequence[str]]) -> None:
    """Say that tasks stay whose ids look like those that are forgotten."""
    from hf_clamu.tasks.near_names import names_like

    alike = names_like([task_id for task_ids in wanted.values() for task_id in task_ids], model.tasks)
    if alike and is_main_process():
        shown = ", ".join(map(repr, alike[:5])) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")
        note(
            f"Also merged, and not forgotten by this: {shown}, which {'looks' if len(alike) == 1 else 'look'} like "
            "what is forgotten. If that is the same owner, forget it, too."
        )


def subtract(
    change: OpenChange, wanted: Mapping[str | None, list[str]], options: Mapping[str, Any]
) -> ChangeEffect | None:
    """Take the tasks out of the model, and derive clusters and masks from the others."""
    requests = {name: task_ids for name, task_ids in wanted.items() if name is not None}
    if requests and not change.is_dry:
        return change.carry_out(change.model.unmerge_requests, requests, **options)
    leaving = dict.fromkeys(task_id for task_ids in wanted.values() for task_id in task_ids)
    return change.carry_out(change.model.unmerge_task, list(leaving), **options)


def _report(
    change: OpenChange, asked: ForgetRequest, status: TriagedRequest, as_json: bool, then: Sequence[str]
) -> None:
    """Print what became of the tasks that the command line names."""
    values: dict[str, Any] = {"status": "done already", "output": change.target.name}
    if status.status == "open":
        values |= {"status": "forgotten", **change.receipt_values(change.model.receipts[-1], change.model.last_effect)}
    else:
        values["receipt_files"] = list(map(str, status.receipts))
    ids = list(zip(asked.tasks, status.request.tasks, strict=True))
    before = [name for name, task_id in ids if status.tasks and task_id not in status.tasks]
    if before:
        note(f"Forgotten before, so nothing was to do: {', '.join(before)}.")
    names = ", ".join(name for name, task_id in ids if not status.tasks or task_id in status.tasks)
    files = values.get("receipt_files") or [values["receipt_file"]]
    emit(as_json, values, lambda: _text(names, values, change.model.last_effect), quiet=files, then=then)


def _text(names: str, values: Mapping[str, Any], effect: ChangeEffect | None) -> str:
    if values["status"] == "done already":
        return f"Nothing to do: {names} was forgotten before, see {', '.join(values['receipt_files'])}."
    receipt = values["receipt"]
    count = receipt["num_tasks"]
    head = f"Forgot {names} ({receipt['how']}); {count['after']} of {count['before']} tasks are left in "
    left = f"Rows of {names} in your own files are still there: delete them, too."
    return "\n".join([f"{head}{values['output']}.", *effect_lines(effect), *receipt_lines(values), left])


def _report_queue(
    change: OpenChange,
    statuses: Sequence[TriagedRequest],
    effect: ChangeEffect | None,
    as_json: bool,
    then: Sequence[str],
) -> None:
    """Print what became of each request of a file; exit with 2 if one failed."""
    model = change.model
    made = {receipt["id"]: receipt for receipt in model.receipts if "id" in receipt}
    entries = []
    for status in statuses:
        request = status.request
        entry: dict[str, Any] = {"id": request.name, "tasks": list(request.tasks)}
        if status.status == "open" and change.is_dry:
            entry |= {"status": "dry run"}
        elif status.status == "open":
            receipt_file = change.receipt_values(made[request.name])["receipt_file"]
            entry |= {"status": "forgotten", "receipt_file": receipt_file}
        elif status.status == "done":
            entry |= {"status": "done already", "receipt_file": str(status.receipts[0])}
            again = sorted(set(request.tasks) & set(model.tasks))
            entry |= {"merged_again": again} if again else {}
        else:
            entry |= {"status": "failed", "error": status.problem}
        entries.append(entry)
    values = {"output": change.target.name, "num_tasks": len(model.tasks), "requests": entries}
    values |= {"status": "dry run"} if change.is_dry else {}
    values |= {} if effect is None else {"effect": effect.to_dict()}
    files = [entry["receipt_file"] for entry in entries if "receipt_file" in entry]
    then = [same_command(without="--dry-run")] if change.is_dry else then
    emit(as_json, values, lambda: "\n".join([_queue_text(values), *effect_lines(effect)]), quiet=files, then=then)
    if any(status.status == "failed" for status in statuses):
        raise typer.Exit(2)


def _queue_text(values: Mapping[str, Any]) -> str:
    count = dict.fromkeys(("dry run" if "status" in values else "forgotten", "done already", "failed"), 0)
    rows = []
    for entry in values["requests"]:
        count[entry["status"]] += 1
        result = entry.get("error") or entry.get("receipt_file", "-")
        if "merged_again" in entry:
            result += f" (merged again since: {', '.join(entry['merged_again'])}; a new request needs a new id)"
        rows.append((entry["id"], entry["status"], result))
    summary = ", ".join(f"{number} {status}" for status, number in count.items())
    head = f"{len(rows)} requests: {summary}; {values['num_tasks']} tasks are left in {values['output']}."
    return head if not rows else f"{head}\n\n{table(('request', 'status', 'receipt'), rows, left=(0, 1, 2))}"
