"""What state a request is in, in one word and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.received import ReceivedRequest
from hf_clamu.operations.intake.working import Work, is_worked_on, read_work

__all__ = ["RequestState", "read_states", "state_of"]


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """A request and its state.

    Args:
        request (`ReceivedRequest`): the request.
        word (`str`): `"received"`, `"waiting"`, `"retraining"`, `"verifying"`, `"publishing"`, `"published"`,
            `"erased"` or `"failed"`.
        text (`str`): what more is to be said.
    """

    request: ReceivedRequest
    word: str
    text: str = ""


def read_states(book: RequestBook) -> list[RequestState]:
    """Return all requests with their states, in the order of `RequestBook.read`."""
    work = read_work(book.folder) if is_worked_on(book.folder) else None
    return [state_of(request, work) for request in book.read()]


def state_of(request: ReceivedRequest, work: Work | None) -> RequestState:
    """Return the state of a request.

    Args:
        request (`ReceivedRequest`): the request.
        work (`Work`, *optional*): what a living worker does.
    """
    outcome = request.outcome
    if outcome is not None and outcome.status == "failed":
        return RequestState(request=request, word="failed", text=outcome.reason)
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
