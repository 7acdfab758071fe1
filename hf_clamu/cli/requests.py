"""The commands of `clamu` that change who is merged: `unmerge`, `add` and `update`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.kernels import before_model
from hf_clamu.cli.merge import CheckpointOption, checkpoints_of
from hf_clamu.cli.models import load_model
from hf_clamu.cli.options import Data, Json
from hf_clamu.cli.output import emit, is_main_process, note, quieten, require_room, table
from hf_clamu.cli.pending import Place, working_on
from hf_clamu.errors import RecipeError, TaskNotFoundError

if TYPE_CHECKING:
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, TriagedRequest
    from hf_clamu.tasks import TaskDataset

__all__ = ["add_request_commands"]

Folder = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="Folder of a saved model, or a Hub id.", show_default=False, callback=before_model
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="Write the result there and leave DIR as it is.", show_default=False)
]
EraseHistory = Annotated[
    bool | None,
    typer.Option(
        "--erase-history/--keep-history",
        help="For a Hub id: remove old commits for good after the push; asked by default.",
        show_default=False,
    ),
]
Receipts = Annotated[
    Path | None, typer.Option(help="Folder for receipts [default: 'receipts' beside DIR].", show_default=False)
]
ArchivePlace = Annotated[
    str | None,
    typer.Option(
        "--archive",
        help="Folder or hf://ORG/NAME of task vectors that the build kept: used, kept up to date.",
        show_default=False,
    ),
]
OnMismatch = Annotated[
    Literal["error", "rebuild"],
    typer.Option(help="What to do if data, bits or environment differ from the ledger."),
]
New = Annotated[list[Path], typer.Option("--new", help="File of the new rows; may be repeated.", show_default=False)]


def unmerge(
    folder: Folder,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK", help="Ids to forget.", show_default=False)
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option("--from", help='JSON lines of requests: {"id": "req-17", "task": "user_3"}.', show_default=False),
    ] = None,
    data: Data = None,
    checkpoint: CheckpointOption = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: ArchivePlace = None,
    on_mismatch: Annotated[
        Literal["error", "rebuild", "localize"],
        typer.Option(
            help="If data, bits or environment differ from the ledger: stop, build anew, or with --archive derive "
            "clusters and masks here."
        ),
    ] = "error",
    as_json: Json = False,
) -> None:
    """Forget tasks: what is left is byte for byte what a build without them gives.

    A folder is replaced as a whole; a Hub id gets one commit. Requests that are done already are recognised by their
    receipts.
    """
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, read_requests
    from hf_clamu.trainer import progress_bars
    from hf_clamu.training import Workers

    if bool(tasks) == (requests is not None):
        raise RecipeError("Give either the tasks to forget or --from FILE with requests.")
    if on_mismatch == "localize" and archive is None:
        raise RecipeError("--on-mismatch localize goes with --archive: without one, tasks are retrained here.")
    named = [ForgetRequest(tasks=tuple(dict.fromkeys(tasks or ())))]
    if requests is not None:
        named = read_requests(requests)
    quieten()
    with working_on(folder, output, receipts, archive) as place:
        model = _opened(place)
        # What is to be done is for the main process to say: it has settled what was left.
        planned = _planned(model, named, place) if is_main_process() else []
        wanted = [(one.request.name, list(one.tasks)) for one in planned if one.status == "open"]
        problem = planned[0].problem if planned and requests is None else ""
        wanted, problem = Workers.current().gather([wanted, problem])[0]
        if problem:
            raise TaskNotFoundError(problem)
        _warn_of_near_ids(model, wanted)
        if wanted:
            _require_room(place)
            options: dict[str, Any] = {"data": data, "on_mismatch": on_mismatch, "progress": progress_bars}
            options |= {"checkpoints": checkpoints_of(checkpoint or ()), **place.options()}
            if requests is None:
                model.unmerge_task(wanted[0][1], **options)
            else:
                model.unmerge_requests(dict(wanted), **options)
            place.save(model, erase_history)
    if not is_main_process():
        return
    if requests is None:
        values = _one(place, planned[0], model)
        # Some may have been forgotten before.
        pairs = list(zip(named[0].tasks, planned[0].request.tasks, strict=True))
        before = [name for name, one in pairs if planned[0].tasks and one not in planned[0].tasks]
        if before:
            note(f"Forgotten before, so nothing was to do: {', '.join(before)}.")
        names = ", ".join(name for name, one in pairs if not planned[0].tasks or one in planned[0].tasks)
        emit(as_json, values, lambda: _one_text(names, values))
        return
    values = _queue(place, planned, model)
    emit(as_json, values, lambda: _queue_text(values))
    if any(one.status == "failed" for one in planned):
        raise typer.Exit(2)


def _warn_of_near_ids(model: Any, wanted: Sequence[tuple[str | None, list[str]]]) -> None:
    """Say that tasks stay whose ids look like those that are forgotten; whose they are is not told."""
    from hf_clamu.tasks.near_names import near_names

    asked = {task_id for _, task_ids in wanted for task_id in task_ids}
    groups = near_names([*model.tasks, *asked]) if asked else []
    count = sum(len(set(group) - asked) for group in groups if asked.intersection(group))
    if count and is_main_process():
        note(
            f"{count} other merged {'id differs' if count == 1 else 'ids differ'} from what is forgotten in white "
            "space or case alone, and nothing of them is forgotten. If they are the same owner's, name them, too."
        )


def _opened(place: Place) -> Any:
    """Return the model to change, or, if a run that died had finished it, the result."""
    if place.is_settled:
        return load_model(place.name)
    if place.output is not None:
        require_room(place.output)
    return load_model(place.source)


def _require_room(place: Place) -> None:
    """Refuse a place that may not be written to, before anything is trained; `working_on` saw whether it can be."""
    from hf_clamu.storage.replace import require_replaceable

    if place.is_settled and place.output is not None:
        require_room(place.output)
    if not place.receipts.is_dir():
        require_replaceable(place.receipts)


def _planned(model: Any, named: Sequence[ForgetRequest], place: Place) -> list[TriagedRequest]:
    from hf_clamu.operations.lifecycle.queue import ForgetRequest, triage

    known = [ForgetRequest(name=one.name, tasks=tuple(map(model.ledger_id, one.tasks))) for one in named]
    return triage(known, model.tasks, place.history(model))


def _receipt(place: Place, receipt: Mapping[str, Any]) -> dict[str, Any]:
    from hf_clamu.operations.lifecycle.receipts import receipt_path

    return {"receipt": receipt, "receipt_file": str(receipt_path(place.receipts, receipt))}


def _one(place: Place, planned: TriagedRequest, model: Any) -> dict[str, Any]:
    if planned.status == "open":
        return {"status": "forgotten", "output": place.name, **_receipt(place, model.receipts[-1])}
    return {"status": "done already", "output": place.name, "receipt_files": list(map(str, planned.receipts))}


def _one_text(names: str, values: Mapping[str, Any]) -> str:
    if values["status"] == "done already":
        return f"Nothing to do: {names} was forgotten before, see {', '.join(values['receipt_files'])}."
    receipt = values["receipt"]
    count = receipt["num_tasks"]
    head = f"Forgot {names} ({receipt['how']}); {count['after']} of {count['before']} tasks are left in "
    return "\n".join([f"{head}{values['output']}.", *_receipt_lines(values)])


def _receipt_lines(values: Mapping[str, Any]) -> list[str]:
    return [
        f"state before {values['receipt']['digests']['before']}",
        f"state after  {values['receipt']['digests']['after']}",
        f"Receipt: {values['receipt_file']} (remove its part 'private' before you show it to others).",
    ]


def _queue(place: Place, planned: Sequence[TriagedRequest], model: Any) -> dict[str, Any]:
    made = {receipt["id"]: receipt for receipt in model.receipts if "id" in receipt}
    entries = []
    for one in planned:
        entry: dict[str, Any] = {"id": one.request.name, "tasks": list(one.request.tasks)}
        if one.status == "open":
            entry |= {"status": "forgotten", **_receipt(place, made[one.request.name])}
            del entry["receipt"]
        elif one.status == "done":
            entry |= {"status": "done already", "receipt_file": str(one.receipts[0])}
            again = sorted(set(one.request.tasks) & set(model.tasks))
            entry |= {"merged_again": again} if again else {}
        else:
            entry |= {"status": "failed", "error": one.problem}
        entries.append(entry)
    return {"output": place.name, "num_tasks": len(model.tasks), "requests": entries}


def _queue_text(values: Mapping[str, Any]) -> str:
    count = dict.fromkeys(("forgotten", "done already", "failed"), 0)
    rows = []
    for entry in values["requests"]:
        count[entry["status"]] += 1
        said = entry.get("error") or entry["receipt_file"]
        if "merged_again" in entry:
            said += f" (merged again since: {', '.join(entry['merged_again'])}; a new request needs a new id)"
        rows.append((entry["id"], entry["status"], said))
    summary = ", ".join(f"{number} {status}" for status, number in count.items())
    head = f"{len(rows)} requests: {summary}; {values['num_tasks']} tasks are left in {values['output']}."
    return head if not rows else f"{head}\n\n{table(('request', 'status', 'receipt'), rows, left=(0, 1, 2))}"


def add(
    folder: Folder,
    new: Annotated[
        list[Path] | None,
        typer.Option("--new", help="File of the new rows; may be repeated.", show_default=False),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK", help="Only these of FILE [default: all that are not merged].", show_default=False
        ),
    ] = None,
    data: Data = None,
    checkpoint: CheckpointOption = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: ArchivePlace = None,
    as_json: Json = False,
) -> None:
    """Merge more tasks: the result is byte for byte a build that had them from the start.

    They are finetuned on the rows of FILE, or come from checkpoints that were finetuned elsewhere.
    """
    from hf_clamu.operations.lifecycle.queue import added_before
    from hf_clamu.trainer import progress_bars

    if not new and not checkpoint:
        raise RecipeError("Give the new rows (--new FILE), or checkpoints (--checkpoint ID=FOLDER).")
    folders = checkpoints_of(checkpoint or ())
    quieten()
    with working_on(folder, output, receipts, archive) as place:
        model = _opened(place)
        given = _given(model, new, tasks) if new else _ids_of(model, folders, tasks)
        done = set(model.tasks)
        if tasks and new:  # what was merged by others is an error then
            done &= added_before(place.history(model))
        left = [one for one in given.task_ids if one not in done]
        _change(
            place,
            model,
            left,
            lambda kept: model.add_task(
                given.select(left),
                checkpoints={one: folders[one] for one in folders if model.ledger_id(one) in {*left, *model.tasks}},
                data=data,
                progress=progress_bars,
                **kept,
            ),
            erase_history,
        )
    _say(place, model, "Added", as_json)


def update(
    folder: Folder,
    new: New,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="TASK", help="Only these of FILE [default: all that are merged].", show_default=False),
    ] = None,
    data: Data = None,
    checkpoint: CheckpointOption = None,
    output: Output = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: ArchivePlace = None,
    on_mismatch: OnMismatch = "error",
    as_json: Json = False,
) -> None:
    """Give merged tasks other rows: the result is byte for byte a build with the new ones.

    FILE has all rows that the tasks are to have from now on. The old rows are read as for unmerge.
    """
    from hf_clamu.trainer import progress_bars

    quieten()
    with working_on(folder, output, receipts, archive) as place:
        model = _opened(place)
        given = _given(model, new, tasks)
        left = [one for one in given.task_ids if tasks or one in model.tasks]
        if len(left) < len(given):
            names = ", ".join(map(str, new))
            note(f"{len(given) - len(left)} tasks of {names} are not merged and left out: clamu add merges them.")
        _change(
            place,
            model,
            left,
            lambda kept: model.update_task(
                given.select(left),
                data=data,
                checkpoints=checkpoints_of(checkpoint or ()),
                on_mismatch=on_mismatch,
                progress=progress_bars,
                **kept,
            ),
            erase_history,
        )
    _say(place, model, "Updated", as_json)


def _ids_of(model: Any, folders: Mapping[str, str], tasks: Sequence[str] | None) -> TaskDataset:
    """Return the tasks, without rows, of which there are checkpoints."""
    from hf_clamu.tasks import TaskDataset, TaskSpec

    config = model.clamu_config
    given = TaskDataset.without_rows(
        TaskSpec.from_dict(config.task_spec), map(model.ledger_id, folders), keyed=config.task_ids != "plain"
    )
    return given.select(list(map(model.ledger_id, tasks))) if tasks else given


def _given(model: Any, new: Sequence[Path], tasks: Sequence[str] | None) -> TaskDataset:
    given: TaskDataset = model.load_tasks(new)
    return given.select(list(map(model.ledger_id, tasks))) if tasks else given


def _change(
    place: Place,
    model: Any,
    left: list[str],
    change: Callable[[Mapping[str, Any]], Any],
    erase_history: bool | None,
) -> None:
    from hf_clamu.training import Workers

    # What is to be done is for the main process to say: it has settled what was left.
    left[:] = Workers.current().gather(left)[0]
    if left:
        _require_room(place)
        change(place.options())
    if model.receipts:
        place.save(model, erase_history)


def _say(place: Place, model: Any, verb: str, as_json: bool) -> None:
    if not is_main_process():
        return
    if not model.receipts:
        values: dict[str, Any] = {"status": "nothing to do", "output": place.name}
        emit(as_json, values, lambda: f"Nothing to do: {place.name} has these tasks with these rows.")
        return
    values = {"status": verb.lower(), "output": place.name, **_receipt(place, model.receipts[-1])}
    names = ", ".join(sorted(values["receipt"]["private"]["salts"]))
    head = f"{verb} {names}; {place.name} has {len(model.tasks)} tasks now."
    emit(as_json, values, lambda: "\n".join([head, *_receipt_lines(values)]))


def add_request_commands(app: typer.Typer) -> None:
    """Add `unmerge`, `add` and `update`."""
    app.command()(unmerge)
    app.command()(add)
    app.command()(update)
