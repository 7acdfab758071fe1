"""Small values of many tasks or clusters, computed by all processes and kept in the journal.

Order, number of processes and interruptions do not show: values are keyed by task or cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_clamu.storage import Journal, Part
from hf_clamu.training import TaskTrainer

__all__ = ["drop_covered_parts", "entries_of", "map_shared", "without_rows"]

# What an entry has a tensor under, and the tensor of all of them in a part. No parameter's name starts with a dot.
_ROW, _ROWS = "row", ".rows"


def map_shared(
    trainer: TaskTrainer,
    stage: str,
    items: Sequence[str],
    work: Callable[[str], Any],
    *,
    is_sound: Callable[[str, Any], bool] | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """Compute a small value for each item; every process gets all of them.

    It is JSON-able, or a *dict* of such values that may have a tensor of numbers under `"row"`.

    Args:
        trainer (`TaskTrainer`): knows the processes and the journal.
        stage (`str`): names the work in the journal.
        items (*sequence* of `str`): the same in all processes.
        work (*callable*): item to value.
        is_sound (*callable*, *optional*): whether a value from the journal can be taken; without it none is kept.
        description (`str`, *optional*): for the progress bar; by default there is none.
    """
    journal = trainer.journal if is_sound is not None else None
    values: dict[str, Any] = {}
    parts: list[Part] = []
    if journal is not None and is_sound is not None:
        parts, wanted = journal.parts(stage), set(items)
        for part in parts:
            values |= {item: v for item, v in entries_of(part).items() if item in wanted and is_sound(item, v)}
        for others in trainer.workers.gather(values):
            values |= others
    # Of this process; what the journal had is written again by the main one.
    own = dict(values) if trainer.workers.is_main else {}
    missing = trainer.share([item for item in items if item not in values])
    try:
        for item in missing if description is None else trainer.progress(missing, description):
            own[item] = work(item)
            if journal is not None and journal.is_due:
                parts = drop_covered_parts(journal, parts, journal.write(stage, *without_rows(own)))
    finally:
        # Interrupted or not: what is finished is kept.
        if journal is not None and own:
            drop_covered_parts(journal, parts, journal.write(stage, *without_rows(own)))
    for others in trainer.workers.gather(own):
        values |= others
    return {item: values[item] for item in items}


def drop_covered_parts(journal: Journal, old: Sequence[Part], new: Part) -> list[Part]:
    """Delete parts whose entries are all in a newer one; return the newer one and the parts that stay."""
    covered = [part for part in old if part.path != new.path and part.entries.keys() <= new.entries.keys()]
    journal.remove(covered)
    return [*(part for part in old if part not in covered and part.path != new.path), new]


def without_rows(entries: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what a part of the journal keeps of entries: values with the number of their row, and all rows.

    As text, rows of ten thousand tasks would take many times their memory, and more than a header can hold.

    Args:
        entries (*mapping*): values by task or cluster; a *dict* may have a tensor under `"row"`, all of one shape.
    """
    rows = {item: entries[item][_ROW] for item in sorted(entries) if _has_row(entries[item])}
    numbers = {item: number for number, item in enumerate(rows)}
    plain = {item: {**entry, _ROW: numbers[item]} if item in rows else entry for item, entry in entries.items()}
    return plain, {_ROWS: torch.stack(list(rows.values()))} if rows else {}


def entries_of(part: Part) -> dict[str, Any]:
    """Return the entries of a part with their rows, which are copies: a part may be overwritten when it is deleted."""
    rows = part.tensors().get(_ROWS)
    if rows is None:
        return part.entries
    found = dict(part.entries)
    for item, entry in part.entries.items():
        if isinstance(entry, dict) and entry.get(_ROW) is not None:
            found[item] = {**entry, _ROW: rows[entry[_ROW]].clone()}
    return found


def _has_row(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(_ROW), torch.Tensor)
