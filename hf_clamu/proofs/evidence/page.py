"""The evidence as one printable HTML file that loads nothing and runs nothing."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from hf_clamu.proofs.evidence.summary import day_of, headline, summary

__all__ = ["evidence_html"]

_MOST_CHARACTERS = 300  # of a text from outside
_WORDS = {"shown": "Shown", "open": "Not shown", "failed": "Failed"}
_KINDS = {"unmerge": "forget the tasks", "add": "add tasks", "update": "replace data of tasks"}
_HOW = {
    "subtracted": "their vectors were computed again and subtracted",
    "added": "their vectors were added",
    "updated": "the old vectors were subtracted and the new ones added",
    "rebuilt": "the model was built again without their data",
}
_ATTACKED = {
    "base": "base model",
    "before": "before",
    "model": "this model",
    "rebuilt": "build without them",
    "pair": "both copies together",
}
_COMMITMENT = (
    'python3 -c "import hashlib, sys; print(hashlib.sha256(bytes.fromhex(sys.argv[1]) + sys.argv[2].encode())'
    '.hexdigest())" SALT ID'
)


def evidence_html(values: Mapping[str, Any]) -> str:
    """Return the evidence as an HTML page; the same values give the same page.

    Args:
        values (*mapping*): of the document, see `collect_evidence`.
    """
    css = _css()
    receipt = values["receipt"]["content"]
    # The present state comes last: after the last request both are the same.
    when = {receipt["digests"]["after"]: "after this request", values["model"]["state_digest"]: "as it is now"}
    return _template().render(
        values=values,
        css=css,
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        headline=headline(values),
        summary=summary(values),
        words=_WORDS,
        kinds=_KINDS,
        how=_HOW,
        when=when,
        attacked=_ATTACKED,
        environment=list(_flat(receipt["environment"] or {})),
        erasure_tables=list(_erasure_tables(receipt.get("erasure", {}))),
        commands=list(_commands(values)),
    )


def _commands(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a command shows, and the command, ready to be pasted."""
    model = values["model"]["name"]
    folder = [] if values["receipts"] is None else ["--receipts", values["receipts"]]
    yield "Build the model again from the data of the tasks that stay, and compare every byte:", _line("verify", model)
    yield "Audit the model, without anybody's data:", _line("audit", model)
    if values["before"] is not None:
        yield "Audit the change, without anybody's data:", _line("audit", values["before"], model)
    yield "List the requests that led to the model:", _line("receipts", model, *folder)
    again = ["--request", values["receipt"]["file"], "--output", "evidence.html"]
    yield "Make this page again:", _line("report", model, *folder, *again)
    yield "As the owner of a task: compute the commitment from the salt and the id that you were given.", _COMMITMENT


def _line(command: str, *words: str) -> str:
    return shlex.join(["clamu", command, *words])


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield name, ", ".join(f"{key} {one}" for key, one in value.items())
        else:
            yield name.replace("_", " "), str(value)


def _erasure_tables(erasure: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield the lists of an erasure; a receipt may come from another release, so that each may be missing."""
    columns = {
        "Old addresses that still answer": ("still_reachable", ("url", "why")),
        "Steps that failed": ("steps_failed", ("step", "reason")),
        "Models on the Hub that name this one as their base": ("descendants", ("repo_id", "relation")),
    }
    for caption, (key, names) in columns.items():
        yield caption, [tuple(str(one.get(name, "")) for name in names) for one in erasure.get(key, ())]
    yield "Old addresses that no longer answer", [(str(one),) for one in erasure.get("gone", ())]


@functools.cache
def _css() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined)
    filters: dict[str, Callable[..., str]] = {
        "shown": _shown,
        "time": _time,
        "percent": _percent,
        "bytes": _bytes,
        "estimate": _estimate,
    }
    environment.filters |= filters
    return environment.get_template("page.html")


def _shown(value: Any, most: int = _MOST_CHARACTERS) -> str:
    """Return a text as it can be shown: not endless, and with signs that steer, as those of direction, escaped."""
    text = str(value)
    cut = f"{text[:most]}… ({len(text):,} characters)" if len(text) > most else text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in cut)


def _time(value: str) -> str:
    time = datetime.datetime.fromisoformat(value)
    return f"{day_of(value)}, {time:%H:%M:%S} UTC"


def _percent(value: Any) -> str:
    return "unknown" if type(value) not in (int, float) else f"{100 * value:.1f} %"


def _bytes(value: int) -> str:
    size, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def _estimate(numbers: list[float | None]) -> str:
    value, low, high = numbers
    return "–" if value is None or low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
