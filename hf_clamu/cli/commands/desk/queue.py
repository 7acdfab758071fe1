"""`clamu queue`: requests from the day they came until they are answered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.changes import open_change
from hf_clamu.cli.checkpoints import checkpoints_of
from hf_clamu.cli.options import (
    Archive,
    Checkpoints,
    Data,
    EraseHistory,
    Json,
    KeyToSign,
    MaxDrop,
    ModelToChange,
    ModelToRead,
    OnMismatchOfUnmerge,
    Receipts,
    TasksToForget,
    Verify,
)
from hf_clamu.cli.output import emit, is_main_process, table
from hf_clamu.cli.terminal.program import command_line
from hf_clamu.errors import RecipeError, RunInProgressError
from hf_clamu.known_names import Verification

if TYPE_CHECKING:
    from hf_clamu.operations.intake.book import Asked, RequestBook
    from hf_clamu.operations.intake.checking import Ledger
    from hf_clamu.operations.intake.received import Outcome, ReceivedRequest
    from hf_clamu.operations.intake.states import RequestState

__all__ = ["queue"]

queue = typer.Typer(
    name="queue",
    help="Requests to forget, from the day they came until they are answered: add, list, run, remove.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Day = "2026-01-31"
_SECONDS_BETWEEN_TRIES = 3.0  # while somebody else changes the model
_Names = Annotated[list[str], typer.Argument(metavar="ID", help="What requests are called.", show_default=False)]


@queue.command()
def add(
    folder: ModelToRead,
    tasks: TasksToForget = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="What the request is called [default: day and number].", show_default=False),
    ] = None,
    received: Annotated[
        str | None, typer.Option(metavar=_Day, help="The day it came [default: today].", show_default=False)
    ] = None,
    due: Annotated[
        str | None,
        typer.Option(metavar=_Day, help="The day to answer it by [default: 30 days later].", show_default=False),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            "--from", help="CSV with a column 'task', and 'id', 'received', 'due'; or JSON lines.", show_default=False
        ),
    ] = None,
    receipts: Receipts = None,
    as_json: Json = False,
) -> None:
    """Take in requests to forget, after checking that their tasks are merged; nothing is carried out."""
    from hf_clamu.operations.intake.book import Asked, RequestBook

    if bool(tasks) == (requests is not None) or (requests is not None and (name or received or due)):
        raise RecipeError("Give the tasks of one request, or --from FILE with requests alone.")
    if requests is None:
        asked = [Asked(tasks=tuple(tasks or ()), name=name, received=received, due=due)]
    else:
        asked = _read(requests)
    ledger = _ledger(folder, receipts)
    added = RequestBook.of(folder).add(ledger.checked(asked), answered=ledger.answered)
    values = {"model": folder, "requests": [one.to_dict() for one in added]}
    then = [command_line("queue", "run", folder)]
    emit(as_json, values, lambda: _added_text(added), quiet=[one.name for one in added], then=then)


def _read(path: Path) -> list[Asked]:
    from hf_clamu.operations.intake.reading import read_asked

    if not path.is_file():
        raise RecipeError(f"There is no file {path}. Give a CSV or JSON lines of requests (--from).")
    return read_asked(str(path), path.read_bytes())


def _ledger(folder: str, receipts: Path | None) -> Ledger:
    from hf_clamu.cli.models import task_id_key
    from hf_clamu.operations.intake.checking import Ledger

    return Ledger.of(folder, receipts=receipts, task_id_key=task_id_key())


def _added_text(added: Sequence[ReceivedRequest]) -> str:
    if len(added) == 1:
        (one,) = added
        return f"Request {one.name} is taken in: {len(one.tasks)} task{'s' * (len(one.tasks) > 1)}, due {one.due}."
    return f"{len(added)} requests are taken in; the first is due {min(one.due for one in added)}."


@queue.command(name="list")
def list_(
    folder: ModelToRead,
    only_open: Annotated[bool, typer.Option("--open", help="Leave out what is answered.")] = False,
    as_json: Json = False,
) -> None:
    """List the requests of a model: state, due day, overdue ones first."""
    from hf_clamu.operations.intake.book import RequestBook
    from hf_clamu.operations.intake.states import merged_now, read_states

    found = read_states(RequestBook.of(folder), merged_now(folder))
    states = [one for one in found if one.request.is_open or not only_open]
    entries = [
        {**one.request.to_dict(), "state": one.word, "text": one.text, "is_overdue": one.request.is_overdue}
        for one in states
    ]
    names = [one.request.name for one in states]
    emit(as_json, {"model": folder, "requests": entries}, lambda: _list_text(folder, states), quiet=names)


def _list_text(folder: str, states: Sequence[RequestState]) -> str:
    num_open, num_overdue = (sum(getattr(one.request, key) for one in states) for key in ("is_open", "is_overdue"))
    head = f"{folder}: {len(states)} request{'s' * (len(states) != 1)}, {num_open} open, {num_overdue} overdue."
    rows = [
        (
            one.request.name,
            f"{one.request.due}{' OVERDUE' if one.request.is_overdue else ''}",
            one.word,
            str(len(one.request.tasks)),
            one.text or (one.request.outcome.receipt or "" if one.request.outcome else ""),
        )
        for one in states
    ]
    columns = ("request", "due", "state", "tasks", "more")
    return "\n\n".join([head, table(columns, rows, left=(0, 1, 2, 4))]) if rows else head


@queue.command()
def remove(folder: ModelToRead, names: _Names, as_json: Json = False) -> None:
    """Strike requests out: what is open is not done, and receipts stay."""
    from hf_clamu.operations.intake.book import RequestBook

    RequestBook.of(folder).remove(list(dict.fromkeys(names)))
    emit(as_json, {"model": folder, "removed": names}, lambda: f"Struck out: {', '.join(names)}.", quiet=names)


@queue.command()
def run(
    folder: ModelToChange,
    data: Data = None,
    checkpoint: Checkpoints = None,
    erase_history: EraseHistory = None,
    receipts: Receipts = None,
    archive: Archive = None,
    on_mismatch: OnMismatchOfUnmerge = "error",
    verify: Verify = "rebuild",
    max_drop: MaxDrop = None,
    key: KeyToSign = None,
    only_waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those that were given to a worker before, which stopped.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Carry out all open requests at once: one localization, verified before it is saved, a receipt for each.

    Stopped at any moment, the same command goes on from there. Exit 2 if a request failed.
    """
    from hf_clamu.operations.intake.book import RequestBook
    from hf_clamu.operations.intake.working import working
    from hf_clamu.operations.request import on_mismatch_of

    way_out = on_mismatch_of(on_mismatch, "unmerge", has_archive=archive is not None)
    options: dict[str, Any] = {"data": data, "checkpoints": checkpoints_of(checkpoint or ()), "on_mismatch": way_out}
    places: dict[str, Any] = {"output": None, "receipts": receipts, "archive": archive}
    ways: dict[str, Any] = {"erase_history": erase_history, "max_drop": max_drop, "key": key}
    book = RequestBook.of(folder)
    with working(book.folder) if is_main_process() else contextlib.nullcontext():
        taken = _taken(book, only_waiting)
        if taken:
            _work(folder, book, taken, options, {**places, **ways}, verify, is_patient=only_waiting)
    if is_main_process():
        _report(folder, book, taken, as_json)


def _taken(book: RequestBook, only_waiting: bool) -> list[ReceivedRequest]:
    """Return the requests to carry out, the same in all processes."""
    from hf_clamu.operations.intake.received import ReceivedRequest
    from hf_clamu.training import Workers

    found = []
    if is_main_process():
        if not only_waiting:
            book.order()
        found = [one.to_dict() for one in book.waiting()]
    shared = Workers.current().gather(found)[0]
    return [ReceivedRequest.from_dict(one) for one in shared]


def _work(
    folder: str,
    book: RequestBook,
    taken: Sequence[ReceivedRequest],
    options: Mapping[str, Any],
    places: Mapping[str, Any],
    verification: Verification,
    *,
    is_patient: bool,
) -> None:
    from hf_clamu.cli.commands.desk.working import Worker
    from hf_clamu.operations.intake.working import WorkLog

    log = WorkLog(book.folder, [one.name for one in taken])
    worker = Worker(model=folder, book=book, requests=taken, log=log, verification=verification)
    log.enter("retraining")
    try:
        while True:
            try:
                with open_change(folder, **places) as change:
                    worker.carry_out(change, options)
                break
            except RunInProgressError:
                if not is_patient:
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)
    except Exception as error:
        if is_main_process():
            worker.fail(error)
        raise
    finally:
        log.enter("done")


def _report(folder: str, book: RequestBook, taken: Sequence[ReceivedRequest], as_json: bool) -> None:
    """Print what became of each request; exit with 2 if one failed."""
    names = {one.name for one in taken}
    done = [one for one in book.read() if one.name in names]
    values = {"model": folder, "requests": [one.to_dict() for one in done]}
    then = [command_line("receipts", folder)] if done else []
    emit(as_json, values, lambda: _run_text(folder, done), quiet=[one.name for one in done], then=then)
    if any(one.outcome is not None and one.outcome.status == "failed" for one in done):
        raise typer.Exit(2)


def _run_text(folder: str, done: Sequence[ReceivedRequest]) -> str:
    if not done:
        return f"Nothing to do: no request on {folder} is open."
    outcomes: list[tuple[str, Outcome]] = [(one.name, one.outcome) for one in done if one.outcome is not None]
    words = [outcome.status for _, outcome in outcomes]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    rows = [(name, one.status, one.reason or one.receipt or "") for name, one in outcomes]
    return f"{folder}: {counts}.\n\n{table(('request', 'became', 'receipt'), rows, left=(0, 1, 2))}"
