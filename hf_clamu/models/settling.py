"""Changes that are made and not saved yet: their receipts are written when the model has come to its place.

Before the model is replaced, its changes are announced in the journal beside it, receipts and all. A process that dies
in between leaves the announcement behind; the next one compares the model at its place with the digests in there, and
knows what happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.errors import HubError
from hf_clamu.models.hub_archive import archive_at, is_on_hub
from hf_clamu.models.receipts import write_receipt
from hf_clamu.training import Journal

__all__ = ["PENDING", "Change", "announce", "announced", "carry_out", "settle"]

# What a receipt says of archived vectors that are not destroyed yet.
PENDING = "to be destroyed"
_FOLDERS = ("receipt_dir", "archive_dir")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a merged model, and what is to be done once it is saved.

    Args:
        before (`str`): state digest of the model that it starts from.
        after (`str`): state digest of the result.
        receipts (*list* of *dict*): one for each request.
        receipt_dir (`str`, *optional*): where they go.
        archive_dir (`str`, *optional*): folder of an archive, or where it is on the Hub.
        written (*list* of `str`): files that the archive has since this change.
        spent (*list* of `str`): files in the archive of vectors that are no longer merged; they are to be destroyed.
    """

    before: str
    after: str
    receipts: list[dict[str, Any]]
    receipt_dir: str | None
    archive_dir: str | None = None
    written: list[str] = field(default_factory=list)
    spent: list[str] = field(default_factory=list)


def announce(journal: Journal, changes: Sequence[Change]) -> None:
    """Keep changes in the journal, before the model that they lead to is saved."""
    noted = []
    for change in changes:
        # From the journal on, so that a model may be moved together with what is beside it.
        folders = {name: _relative(getattr(change, name), journal.folder) for name in _FOLDERS}
        noted.append({**asdict(change), **folders})
    journal.note({"changes": noted})


def announced(journal: Journal) -> list[Change]:
    """Return the changes that a journal announces; none if it is damaged or of something else."""
    noted = journal.noted()
    try:
        return [
            Change(**{**values, **{name: _absolute(values[name], journal.folder) for name in _FOLDERS}})
            for values in noted["changes"]
        ]
    except (KeyError, TypeError):
        return []


def _relative(folder: str | None, start: Path) -> str | None:
    try:
        return folder if folder is None or is_on_hub(folder) else os.path.relpath(folder, start)
    except ValueError:  # on another drive
        return folder


def _absolute(folder: str | None, start: Path) -> str | None:
    return folder if folder is None or is_on_hub(folder) else os.path.normpath(start.absolute() / folder)


def carry_out(changes: Sequence[Change]) -> list[Path]:
    """Do what is left to do for changes that are saved; doing it again changes nothing.

    Returns:
        *list* of `Path`: the receipts that were written.

    Raises:
        OSError, HubError: if a vector in an archive cannot be destroyed; then no receipt is written, for it would say
            so.
    """
    doomed: dict[str, dict[str, None]] = {}
    for change in changes:
        if change.archive_dir is not None:
            names = doomed.setdefault(change.archive_dir, {})
            names |= dict.fromkeys(change.spent)
            for name in change.written:  # what was forgotten may have come back
                names.pop(name, None)
    for place, names in doomed.items():
        try:
            if names:
                archive_at(place).destroy_all(list(names))
        except (OSError, HubError) as error:
            raise (HubError if isinstance(error, HubError) else OSError)(
                f"The model is saved, but an archived vector of a task that left it could not be destroyed in {place} "
                f"({error}). Repeat the command once that is possible; its receipt waits for it."
            ) from error
    for change in changes:
        for receipt in change.receipts:
            if receipt.get("archive") == PENDING:
                receipt["archive"] = "destroyed"
    return [
        write_receipt(Path(change.receipt_dir), receipt)
        for change in changes
        if change.receipt_dir is not None
        for receipt in change.receipts
    ]


def settle(journal: Journal, state: str | None, say: Callable[[str], None] = lambda text: None) -> bool:
    """Finish what a process that died has announced.

    Args:
        journal (`Journal`): beside the model; nobody else may work on it meanwhile.
        state (`str`, *optional*): state digest of the model at its place; `None` if there is none.
        say (*callable*, *optional*): receives a line about what happened.

    Returns:
        `bool`: whether the announced changes had been saved. Then their receipts are written now and the journal is
        gone. If they had not been, the announcement is gone and the rest of the journal is left to go on from.
    """
    changes = announced(journal)
    if not changes:
        return False
    saved = [number for number, change in enumerate(changes) if change.after == state]
    if saved:
        done = changes[: saved[-1] + 1]
        paths = carry_out(done)
        journal.clear()
        say(f"An earlier run was stopped after its change was saved; its receipts are written now ({len(paths)}).")
        return True
    if state not in (None, changes[0].before):
        # Somebody else changed the model since: whether by way of these changes, nobody can tell.
        for change in changes:
            for receipt in change.receipts:
                path = write_receipt(Path(change.receipt_dir or journal.folder.parent), receipt, ending=".unsettled")
                say(f"Whether the request of {receipt['time']} was carried out cannot be told; see {path}.")
        journal.clear()
    else:
        journal.forget_note()
    return False
