"""What the demo measured as a table, for terminals and for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.demo.ways import WAYS

__all__ = ["COLUMNS", "footnote", "markdown_table", "table_rows"]

COLUMNS = (
    "way to serve",
    "owner known",
    "held-out accuracy",
    "stored",
    "a request",
    "100 requests*",
    "others' rows",
    "others moved / changed",
    "worst drop",
    "to serve another owner",
)


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of each way in the order of `COLUMNS`, after those of the base model.

    Args:
        result (*mapping*): what `run_demo` returns, or its JSON.
    """
    base = ("base model, not trained", "no", _percent(result["accuracy"]["base"]), *("" for _ in COLUMNS[3:]))
    names = [way.name for way in WAYS if way.name in result["approaches"]]  # JSON may have them in another order
    return [base, *(_cells(result["approaches"][name], result["accuracy"][name]) for name in names)]


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
        f"{_count(way['others_moved'])} / {_count(way['others_changed'])} of {left}",
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
        "or a single one where all owners are trained or masked again. Others moved: owners who share a mask with "
        "others than before; changed: owners with another answer to any held-out example; both the mean of the "
        "requests. Worst drop: the most accuracy that one request took from another owner. \\* One by one, "
        "extrapolated from one request; requests that arrive together cost a training again only once."
    )


def _percent(score: float) -> str:
    return f"{100 * score:.1f} %"


def _count(owners: float) -> str:
    return f"{owners:.1f}".removesuffix(".0")


def _seconds(seconds: float) -> str:
    if seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
