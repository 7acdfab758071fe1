"""What the demo measured as a table, for terminals and for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["COLUMNS", "footnote", "markdown_table", "table_rows"]

COLUMNS = (
    "way to serve",
    "owner known",
    "held-out accuracy",
    "stored",
    "a request",
    "100 requests*",
    "others' rows",
    "others changed",
    "worst drop",
    "to serve another owner",
)


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of each way in the order of `COLUMNS`, after those of the base model.

    Args:
        result (*mapping*): what `run_demo` returns, or its JSON.
    """
    base = ("base model, not trained", "no", _percent(result["accuracy"]["base"]), *("" for _ in COLUMNS[3:]))
    return [base, *(_cells(way, result["accuracy"][name]) for name, way in result["approaches"].items())]


def _cells(way: Mapping[str, Any], accuracy: float) -> tuple[str, ...]:
    left = len(way["before"]) - 1
    return (
        way["label"],
        "yes" if way["needs_owner"] else "no",
        _percent(accuracy),
        f"{way['stored_bytes'] / 1e6:.2f} MB",
        _seconds(way["request_seconds"]),
        _seconds(100 * way["request_seconds"]),
        str(way["rows_of_others"]),
        f"{way['others_changed']:.0f} of {left}",
        f"{100 * way['worst_drop']:.0f} points",
        f"{1000 * way['cold_start_seconds']:.1f} ms" if way["needs_owner"] else "nothing to do",
    )


def markdown_table(result: Mapping[str, Any], columns: Sequence[str] = COLUMNS) -> str:
    """Return the table for a page, with what its numbers mean below it.

    Args:
        result (*mapping*): what `run_demo` returns, or its JSON.
        columns (*sequence* of `str`, *optional*): some of `COLUMNS`.
    """
    chosen = [COLUMNS.index(column) for column in columns]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table_rows(result)]
    rows = ["| " + " | ".join(line[column] for column in chosen) + " |" for line in lines]
    return "\n".join([*rows, "", footnote(result)])


def footnote(result: Mapping[str, Any]) -> str:
    """Return what the numbers of the table mean, in a few sentences."""
    owners, count = result["num_tasks"], len(result["unmerged_tasks"])
    return (
        f"{owners} owners. A request forgets one owner, up to the saved files; median of {count} one after the other, "
        "or a single one where all owners are trained or masked again. Others changed: owners with another answer to "
        "any held-out example after a request, the mean. \\* One by one, extrapolated from one request; requests that "
        "arrive together cost a training again only once."
    )


def _percent(score: float) -> str:
    return f"{100 * score:.1f} %"


def _seconds(seconds: float) -> str:
    if seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
