"""Queues of requests to forget: reading a file of them, and knowing which are done already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.merging import require_merged
from hf_clamu.operations.lifecycle.receipts import salted_ids
from hf_clamu.storage import parse_json

__all__ = ["ForgetRequest", "TriagedRequest", "added_before", "parse_requests", "read_requests", "triage"]

# A request whose receipt has no private part any more.
_ANONYMOUS = (
    "Its receipt {path} lacks the part 'private', so it does not say for which tasks it was carried out, and tasks of "
    "this line are merged or are not the same number. Give what is to be forgotten a request with an id of its own."
)


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """A request to forget tasks.

    Args:
        tasks (*tuple* of `str`): their ids.
        name (`str`, *optional*): what the request is called.
    """

    tasks: tuple[str, ...]
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class TriagedRequest:
    """What is to be done for a request.

    Args:
        request (`ForgetRequest`): the request.
        status (`str`): `"open"`, `"done"` or `"failed"`.
        tasks (*tuple* of `str`): those of its tasks that are merged.
        receipts (*tuple* of `Path`): the receipts that say that it is done.
        problem (`str`): why it failed.
    """

    request: ForgetRequest
    status: Literal["open", "done", "failed"]
    tasks: tuple[str, ...] = ()
    receipts: tuple[Path, ...] = ()
    problem: str = ""


def read_requests(path: Path) -> list[ForgetRequest]:
    """Read a file of JSON lines such as `{"id": "req-17", "task": "user_3"}` or `{"id": "req-18", "tasks": [...]}`.

    Other keys are passed over, and so are empty lines.

    Raises:
        TaskDataError: if the file or one of its lines cannot be used; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskDataError(f"The requests in {path} cannot be read: {error}") from error
    return parse_requests(text, str(path))


def parse_requests(text: str, name: str) -> list[ForgetRequest]:
    """Return the requests of JSON lines, see `read_requests`.

    Args:
        text (`str`): the lines.
        name (`str`): of their file, for messages.
    """
    found: dict[str, ForgetRequest] = {}
    # Not splitlines(), which also cuts at what may stand inside a JSON string, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        values, problem = None, ""
        try:
            values = parse_json(line)
        except ValueError as error:
            problem = f" ({error})"
        if not isinstance(values, dict):
            raise TaskDataError(
                f'{where}: expected a JSON object such as {{"id": "req-17", "task": "user_3"}}, found '
                f"{line[:80]!r}{problem}."
            )
        request = values.get("id")
        if not isinstance(request, str) or not request:
            raise TaskDataError(f"{where}: a request needs an 'id', which is a text; found {request!r}.")
        if request in found:
            raise TaskDataError(f"{where}: the id {request!r} occurs twice; each request needs its own.")
        found[request] = ForgetRequest(name=request, tasks=_tasks(values, where))
    return list(found.values())


def _tasks(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = [values[key] for key in ("task", "tasks") if key in values]
    listed = given[0] if len(given) == 1 else None
    named = [listed] if isinstance(listed, str) else listed
    if not isinstance(named, list) or not named or not all(isinstance(one, str) and one for one in named):
        raise TaskDataError(f"{where}: a request needs a 'task' (a text) or 'tasks' (a list of texts).")
    return tuple(dict.fromkeys(named))


def triage(
    requests: Sequence[ForgetRequest], merged: Sequence[str], history: Mapping[Path, Mapping[str, Any]]
) -> list[TriagedRequest]:
    """Say of each request whether it is open, done already, or cannot be carried out.

    A request is done if a receipt of its name covers all of its tasks, even if they came back later, or if none of
    them is merged and receipts say that they were forgotten. It fails, as a whole, if a task is neither merged nor
    known from a receipt, or if the receipt of its name does not say any more which tasks it was for.

    Args:
        requests (*sequence* of `ForgetRequest`): with the ids that the ledger has.
        merged (*sequence* of `str`): ids of the merged tasks.
        history (*mapping* of `Path` to *mapping*): receipts that led to the present state, the last ones first.
    """
    return [_triaged(request, set(merged), merged, history) for request in requests]


def _triaged(
    request: ForgetRequest, present: set[str], merged: Sequence[str], history: Mapping[Path, Mapping[str, Any]]
) -> TriagedRequest:
    receipts = {path: receipt for path, receipt in history.items() if receipt["request"] == "unmerge"}
    forgotten: dict[str, Path] = {}
    for path, receipt in receipts.items():
        for task_id in salted_ids(receipt) or ():
            forgotten.setdefault(task_id, path)
    gone = {one for one in request.tasks if one not in present}
    for path, receipt in receipts.items():
        if request.name is None or receipt.get("id") != request.name:
            continue
        salts = salted_ids(receipt)
        if salts is not None and all(one in salts or (one in gone and one in forgotten) for one in request.tasks):
            return TriagedRequest(request=request, status="done", receipts=(path,))
        if salts is None and len(gone) == len(request.tasks) == len(receipt["tasks"]):
            return TriagedRequest(request=request, status="done", receipts=(path,))
        if salts is None:
            return TriagedRequest(request=request, status="failed", problem=_ANONYMOUS.format(path=path))
    not_forgotten = [one for one in request.tasks if one in gone and one not in forgotten]
    if not_forgotten:
        try:
            require_merged(not_forgotten, merged)
        except TaskNotFoundError as error:
            return TriagedRequest(request=request, status="failed", problem=str(error))
    open_tasks = tuple(one for one in request.tasks if one in present)
    if open_tasks:
        return TriagedRequest(request=request, status="open", tasks=open_tasks)
    paths = tuple(dict.fromkeys(forgotten[one] for one in request.tasks))
    return TriagedRequest(request=request, status="done", receipts=paths)


def added_before(history: Mapping[Path, Mapping[str, Any]]) -> set[str]:
    """Return the tasks that receipts say were added.

    Args:
        history (*mapping* of `Path` to *mapping*): receipts that led to the present state.
    """
    added = [receipt for receipt in history.values() if receipt["request"] == "add"]
    return {task_id for receipt in added for task_id in salted_ids(receipt) or ()}
