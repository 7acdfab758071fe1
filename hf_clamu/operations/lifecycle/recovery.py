"""What is left to do for changes that are saved: receipts are written, and archived vectors destroyed.

A process that saves does it itself. If it dies in between, the next one that changes the model compares the model at
its place with the digests that are announced beside it, and knows what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.errors import ClamuError, HubError
from hf_clamu.hub.archive import archive_at, is_on_hub
from hf_clamu.operations.lifecycle.amending import amend_receipt
from hf_clamu.operations.lifecycle.pending import (
    Change,
    finish_pending,
    journal_beside,
    pending_target,
    read_pending,
    replace_pending,
)
from hf_clamu.operations.lifecycle.receipts import PENDING, write_receipt
from hf_clamu.operations.snapshots import destroy_left_rows
from hf_clamu.storage import Archive, Journal, Snapshot, snapshot_beside

__all__ = ["Recovery", "finalize_changes", "recover_pending", "saved_state_digest"]


@dataclass(kw_only=True)
class Recovery:
    """What came of announced changes.

    Args:
        changes (*list* of `Change`): those that turned out to be saved.
        done (*list* of `str`): lines about what was done now.
        to_do (*list* of `str`): lines about what is left, and what to do.
    """

    changes: list[Change] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    to_do: list[str] = field(default_factory=list)


def finalize_changes(changes: Sequence[Change]) -> None:
    """Do what is left to do for changes of this process that are saved; doing it again changes nothing.

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
        if names:
            _destroy(archive_at(place), list(names))
    for change in changes:
        for receipt in change.receipts:
            receipt.update({name: "destroyed" for name in ("archive", "snapshot") if receipt.get(name) == PENDING})
            if change.receipt_dir is not None:
                write_receipt(Path(change.receipt_dir), receipt)


def _destroy(archive: Archive, names: Sequence[str]) -> None:
    try:
        archive.destroy_all(names)
    except (OSError, HubError) as error:
        raise (HubError if isinstance(error, HubError) else OSError)(
            f"The model is saved, but an archived vector of a task that left it could not be destroyed in "
            f"{archive.uri} ({error}). Repeat the command once that is possible; its receipt waits for it."
        ) from error


def saved_state_digest(folder: Path | None) -> str | None:
    """Return the state digest of the saved model in a folder; None if there is none that can be read."""
    if folder is None or not folder.is_dir():
        return None
    try:
        return read_checkpoint(folder).state_digest
    except (ClamuError, OSError):
        return None


def recover_pending(
    journal: Journal,
    states: Collection[str],
    *,
    merged: Collection[str],
    receipt_dir: Path | None,
    archive: Archive | None,
    ours: Sequence[Change] = (),
) -> Recovery:
    """Finish what a process that died has announced.

    What turns out to be saved gets its receipts, in the folder that the caller names, and its archived vectors are
    destroyed, in the archive that the caller names. What is left, because another archive or no folder is named, stays
    announced. What was not saved is dropped, and the rest of the journal is there to go on from.

    Args:
        journal (`Journal`): beside the model; no other process may work on it meanwhile.
        states (*collection* of `str`): state digests of the model wherever it was to be saved.
        merged (*collection* of `str`): names of archive files of the tasks that it has, which are never destroyed.
        receipt_dir (`Path`, *optional*): where receipts are written.
        archive (`Archive`, *optional*): that may be cleaned.
        ours (*sequence* of `Change`): changes of this process that are still to be saved, which stay announced.

    Raises:
        OSError, HubError: if an archived vector cannot be destroyed; everything stays announced then.
    """
    result = Recovery()
    own = {change.key for change in ours}
    changes = [change for change in read_pending(journal, result.to_do.append) if change.key not in own]
    states = {*states, *filter(None, [saved_state_digest(pending_target(journal))])}
    open_changes = [change for change in changes if not change.is_saved]
    result.changes, unknown = _saved_and_unknown(open_changes, states)
    if _left_rows_destroyed(pending_target(journal)):
        result.changes = list(map(_with_rows_destroyed, result.changes))
    # Something else changed the model since: whether by way of these changes, nobody can tell.
    for receipt in (receipt for change in unknown for receipt in change.receipts):
        path = write_receipt(receipt_dir or journal.folder.resolve().parent, receipt, ending=".unsettled")
        result.to_do.append(f"Whether the request of {receipt['time']} was carried out cannot be told; see {path}.")
    left, written = [], 0
    for change in [*(change for change in changes if change.is_saved), *result.changes]:
        rest, count = _finish(change, merged, receipt_dir, archive, result)
        left += rest
        written += 0 if change.is_saved else count
    if result.changes:
        result.done.append(
            f"An earlier run was stopped after its change was saved; its receipts are written now ({written})."
        )
    if not changes:
        return result
    if left or ours:
        replace_pending(journal, [*left, *ours])
    if result.changes or unknown:
        done = {change.key for change in changes} - {change.key for change in left}
        finish_pending(journal, [change for change in changes if change.key in done])
    elif not (left or ours):
        journal.delete_note()
    return result


def _left_rows_destroyed(place: Path | None) -> bool:
    """Destroy what a snapshot has more than the model beside it; return whether there is such a snapshot.

    Raises:
        RunInProgressError: if another run works on the model.
        OSError: if the rows cannot be destroyed.
    """
    if place is None or not (place / LEDGER_NAME).is_file():
        return False
    snapshot = Snapshot(snapshot_beside(place))
    if not snapshot.is_there:
        return False
    with Journal(journal_beside(place)).locked():
        destroy_left_rows(snapshot, read_checkpoint(place))
    return True


def _with_rows_destroyed(change: Change) -> Change:
    settled = {"snapshot": "destroyed"}
    return replace(
        change,
        receipts=[
            {**receipt, **settled} if receipt.get("snapshot") == PENDING else receipt for receipt in change.receipts
        ],
    )


def _saved_and_unknown(changes: Iterable[Change], states: Collection[str]) -> tuple[list[Change], list[Change]]:
    """Return the changes that led to one of these states, and those of which that cannot be told."""
    saved, unknown = [], []
    for chain in _chains(changes):
        reached = [number for number, change in enumerate(chain) if change.after in states]
        if reached:
            saved += chain[: reached[-1] + 1]
        elif not set(states) <= {chain[0].before}:
            unknown += chain
    return saved, unknown


def _chains(changes: Iterable[Change]) -> list[list[Change]]:
    """Cut changes where one does not start from what the one before it led to."""
    found: list[list[Change]] = []
    for change in changes:
        if found and found[-1][-1].after == change.before:
            found[-1].append(change)
        else:
            found.append([change])
    return found


def _finish(
    change: Change, merged: Collection[str], receipt_dir: Path | None, archive: Archive | None, result: Recovery
) -> tuple[list[Change], int]:
    """Finish a change that is saved, as far as it can be; return it if something is left, and how many receipts."""
    doomed = [name for name in change.spent if name not in merged]
    is_here = archive is not None and change.archive_dir is not None and _is_at(archive, change.archive_dir)
    if doomed and is_here and archive is not None:
        _destroy(archive, doomed)
        result.done.append(
            f"Vectors of tasks that were forgotten before are destroyed in {archive.uri} now ({len(doomed)})."
        )
    is_open = bool(doomed) and not is_here
    if is_open:
        result.to_do.append(
            f"{change.archive_dir!r} still has vectors ({len(doomed)}) of tasks that were forgotten: name it as the "
            "archive in the next request (--archive, archive=), which destroys them."
        )
    if change.receipt_dir is None:
        return [replace(change, is_saved=True)] if is_open else [], 0
    if receipt_dir is None:
        result.to_do.append(
            "An earlier request was saved and its receipt is not written yet: give the next request with this "
            "journal_dir= a receipt_dir=."
        )
        return [replace(change, is_saved=True)], 0
    for receipt in change.receipts:
        if receipt.get("archive") == PENDING and not is_open:
            amend_receipt(receipt_dir, receipt, archive="destroyed")
        else:
            write_receipt(receipt_dir, receipt)
    return [replace(change, is_saved=True)] if is_open else [], len(change.receipts)


def _is_at(archive: Archive, place: str) -> bool:
    if is_on_hub(place) or is_on_hub(archive.uri):
        return archive.uri == place
    return Path(archive.uri).resolve() == Path(place).resolve()
