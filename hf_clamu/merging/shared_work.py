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

# Before the key under which entries have tensors, it names the tensor of all of them in a part. No parameter's name
# starts with a dot.
_ROWS = "."


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

    It is JSON-able, or a *dict* of such values and tensors of numbers.

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
        entries (*mapping*): values by task or cluster; a *dict* may have tensors, under each key all of one shape.
    """
    plain = dict(entries)
    rows: dict[str, list[torch.Tensor]] = {}
    for item in sorted(entries):
        entry = entries[item]
        for key in [] if not isinstance(entry, dict) else [k for k, value in entry.items() if torch.is_tensor(value)]:
            of_key = rows.setdefault(f"{_ROWS}{key}", [])
            plain[item] = {**plain[item], key: len(of_key)}
            of_key.append(entry[key])
    return plain, {name: torch.stack(of_key) for name, of_key in rows.items()}


def entries_of(part: Part) -> dict[str, Any]:
    """Return the entries of a part with their rows, which are copies: a part may be overwritten when it is deleted."""
    rows = {name.removeprefix(_ROWS): of_key for name, of_key in part.tensors().items() if name.startswith(_ROWS)}
    found = dict(part.entries)
    for item, entry in part.entries.items() if rows else ():
        if isinstance(entry, dict):
            kept = {key: of_key[entry[key]].clone() for key, of_key in rows.items() if entry.get(key) is not None}
            found[item] = {**entry, **kept}
    return found
