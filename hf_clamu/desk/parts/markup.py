"""Pieces of HTML. Whatever comes from outside is escaped here, and nowhere else is HTML written."""

from __future__ import annotations

import html
from collections.abc import Sequence

from hf_clamu.errors import sentence_of
from hf_clamu.escaping import escape
from hf_clamu.operations.intake.states import MERGED_AGAIN, RequestState
from hf_clamu.operations.intake.working import Work

__all__ = ["STYLE", "cut", "failure", "message", "paragraph", "progress", "request_table", "rows_table", "signed_in"]

_MOST_CHARACTERS = 80  # of an id that a cell shows; the title has it all
_MOST_TASKS = 5
_MOST_ROWS = 300
_LOGOUT = ' <a href="/logout">Log out</a>'
_COLUMNS = ("request", "due", "state", "tasks", "more")

STYLE = """
.desk-table { border-collapse: collapse; width: 100%; font-size: 0.95rem; }
.desk-table, .desk-table thead, .desk-table tr { border: 0 !important; }
.desk-table th, .desk-table td { text-align: left; padding: 0.45rem 0.6rem; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.desk-table th { font-weight: 600; white-space: nowrap; }
.desk-table .word { font-weight: 600; white-space: nowrap; }
#requests .overdue { color: #b3261e; font-weight: 700; }
.dark #requests .overdue { color: #ff8a80; }
.desk-table .failed .word, .desk-table .merged .word { color: #b3261e; }
.dark .desk-table .failed .word, .dark .desk-table .merged .word { color: #ff8a80; }
.desk-table .published .word, .desk-table .erased .word { color: #146c43; }
.dark .desk-table .published .word, .dark .desk-table .erased .word { color: #7ddba8; }
.desk-message { padding: 0.6rem 0.8rem; border-radius: 6px; overflow-wrap: anywhere; }
.desk-message.good { background: #e6f4ea; color: #0b3d20; } .desk-message.bad { background: #fdecea; color: #5f1410; }
.desk-progress progress { width: 100%; height: 0.9rem; }
.desk-evidence { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: #fff; }
@media (max-width: 640px) {
  .desk-table thead { display: none; }
  .desk-table tr { display: block; padding: 0.4rem 0; }
  .desk-table tr { border-bottom: 2px solid var(--border-color-primary) !important; }
  .desk-table td { display: block; border: 0 !important; padding: 0.15rem 0.2rem; }
  .desk-table td::before { content: attr(data-label) ": "; font-weight: 600; }
  .desk-table td:empty { display: none; }
}
"""


def _text(text: str) -> str:
    """Return a text as it can be read: no markup, and no signs that turn the order of what stands beside it."""
    return html.escape(escape(text))


def cut(text: str) -> str:
    """Return a text as a cell shows it: escaped, and not longer than a line."""
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    return f'<bdi title="{_text(text)}">{_text(shown)}</bdi>' if shown != text else _text(text)


def message(text: str, *, is_good: bool) -> str:
    """Return a sentence in a box."""
    return f'<div class="desk-message {"good" if is_good else "bad"}" role="status">{_text(text)}</div>'


def failure(error: Exception) -> str:
    """Return what an error says in a box."""
    return message(sentence_of(error), is_good=False)


def paragraph(text: str) -> str:
    """Return a sentence as a paragraph."""
    return f"<p>{_text(text)}</p>"


def signed_in(user: str | None, *, has_logout: bool) -> str:
    """Return who uses the page, and how they leave it; empty if nobody is asked who they are."""
    if not user:
        return ""
    return f"<p>Signed in as <b>{cut(user)}</b>.{_LOGOUT if has_logout else ''}</p>"


def progress(work: Work | None, *, is_ending: bool = False) -> str:
    """Return how far the worker is; empty if there is none."""
    if work is None or work.stage == "done":
        return ""
    if is_ending:
        return '<div class="desk-progress"><b>ending</b>: the worker was stopped<progress></progress></div>'
    count = f"{len(work.requests)} request{'s' * (len(work.requests) != 1)}"
    left = "" if work.seconds_left is None else f", about {work.seconds_left:.0f} s of this step left"
    far = f": {_text(work.text)}, {work.num_done} of {work.num_items}{left}" if work.num_items else ""
    value = f' max="{work.num_items}" value="{work.num_done}"' if work.num_items else ""
    return f'<div class="desk-progress"><b>{_text(work.stage)}</b> {count}{far}<progress{value}></progress></div>'


def request_table(states: Sequence[RequestState]) -> str:
    """Return the requests as a table: on a phone, a block for each."""
    num_open, num_overdue = (sum(getattr(one.request, key) for one in states) for key in ("is_open", "is_overdue"))
    num_back = sum(one.word == MERGED_AGAIN for one in states)
    back = f' <b class="overdue">{num_back} merged again.</b>' if num_back else ""
    head = f"<p><b>{num_open} open</b>, {num_overdue} overdue, {len(states) - num_open} answered.{back}</p>"
    if not states:
        return f"{head}<p>No request was taken in yet.</p>"
    more = len(states) - _MOST_ROWS
    tail = f"<p>… and {more:,} more; <code>clamu queue list</code> shows all.</p>" if more > 0 else ""
    return head + _table(_COLUMNS, [(one.word, _cells(one)) for one in states[:_MOST_ROWS]]) + tail


def _cells(state: RequestState) -> list[str]:
    request = state.request
    due = f'<span class="overdue">{request.due} overdue</span>' if request.is_overdue else request.due
    more = state.text or ("" if request.outcome is None else request.outcome.receipt or "")
    tasks = ", ".join(map(cut, request.tasks[:_MOST_TASKS]))
    tasks += f" and {len(request.tasks) - _MOST_TASKS} more" if len(request.tasks) > _MOST_TASKS else ""
    return [cut(request.name), due, f'<span class="word">{state.word}</span>', tasks, _text(more[:2000])]


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as a table."""
    return _table([_text(one) for one in columns], [("", list(map(cut, row))) for row in rows])


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = []
    for kind, cells in rows:
        shown = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(columns, cells, strict=True))
        body.append(f'<tr class="{kind}">{shown}</tr>')
    return f'<table class="desk-table"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
