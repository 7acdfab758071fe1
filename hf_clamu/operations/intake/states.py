"""What state a request is in, in one word and a sentence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.ledger import read_ledger
from hf_clamu.errors import ClamuError
from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.received import ReceivedRequest
from hf_clamu.operations.intake.working import Work, work_now

__all__ = ["MERGED_AGAIN", "RequestState", "merged_now", "read_states", "state_of"]

MERGED_AGAIN = "merged again"
_MERGED_AGAIN = (
    "it was answered, and its tasks are in the model that is here now: an older one was put back, or they were added "
    "again. Take them in under another id to have them forgotten"
)


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """A request and its state.

    Args:
        request (`ReceivedRequest`): the request.
        word (`str`): `"received"`, `"waiting"`, `"retraining"`, `"verifying"`, `"publishing"`, `"published"`,
            `"erased"`, `"failed"`, or `"merged again"` if the model has tasks of an answered one.
        text (`str`): what more is to be said.
    """

    request: ReceivedRequest
    word: str
    text: str = ""


def read_states(book: RequestBook, merged: Collection[str] = ()) -> list[RequestState]:
    """Return all requests with their states, in the order of `RequestBook.read`.

    Args:
        book (`RequestBook`): the requests.
        merged (*collection* of `str`): ids of the tasks that are merged, see `merged_now`.
    """
    work = work_now(book.folder)
    return [state_of(request, work, merged) for request in book.read()]


def merged_now(model: str) -> Collection[str]:
    """Return the ids of the tasks that are merged in a folder; empty if it is none or damaged, which others say.

    Args:
        model (`str`): folder, or Hub id: that is not asked.
    """
    path = Path(model).resolve() / LEDGER_NAME
    try:
        status = path.stat()
        return _merged_in(path.parent, (status.st_ino, status.st_mtime_ns, status.st_size))
    except (ClamuError, OSError):
        return ()


@lru_cache(maxsize=16)
def _merged_in(folder: Path, version: tuple[int, int, int]) -> Collection[str]:
    """Return what a ledger names; `version` tells it from the one that replaces it."""
    tasks = read_ledger(folder).get("tasks")
    return frozenset(tasks) if isinstance(tasks, dict) else ()


def state_of(request: ReceivedRequest, work: Work | None, merged: Collection[str] = ()) -> RequestState:
    """Return the state of a request.

    Args:
        request (`ReceivedRequest`): the request.
        work (`Work`, *optional*): what a living worker does.
        merged (*collection* of `str`): ids of the tasks that are merged.
    """
    outcome = request.outcome
    if outcome is not None and outcome.status == "failed":
        return RequestState(request=request, word="failed", text=outcome.reason)
    if outcome is not None and not set(request.tasks).isdisjoint(merged):
        return RequestState(request=request, word=MERGED_AGAIN, text=_MERGED_AGAIN)
    if outcome is not None:
        word = "erased" if outcome.is_erased else "published"
        # Those of earlier releases do not say by what.
        before = "its tasks were forgotten before" if outcome.status == "done already" else ""
        return RequestState(request=request, word=word, text=outcome.reason or before)
    if request.is_waiting and work is not None and request.name in work.requests and work.stage != "done":
        return RequestState(request=request, word=work.stage, text=_how_far(work))
    return RequestState(request=request, word="waiting" if request.is_waiting else "received")


def _how_far(work: Work) -> str:
    if not work.num_items:
        return work.text
    left = work.seconds_left
    more = "" if left is None else f", about {left:.0f} s left"
    return f"{work.text}: {work.num_done} of {work.num_items}{more}"
