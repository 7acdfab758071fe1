"""Changes that are announced beside a model before it is replaced, so that a process that dies loses no receipt.

The announcement is a file that anybody may have put beside a model. It is taken as a whole or not at all, and it names
nothing that is destroyed or written: archives and folders of receipts are those that the present command names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_clamu.exact import digest_json
from hf_clamu.hub.archive import is_on_hub
from hf_clamu.merging import MergedState
from hf_clamu.operations.lifecycle.receipts import is_receipt
from hf_clamu.storage import Archive, Journal, is_archive_name
from hf_clamu.storage.staging import hidden_name

__all__ = [
    "Change",
    "archived_names",
    "finish_pending",
    "journal_beside",
    "pending_target",
    "read_pending",
    "record_pending",
    "remove_pending",
    "replace_pending",
]

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
        is_saved (`bool`): it is known to be saved, and something of it is left to do.
    """

    before: str
    after: str
    receipts: list[dict[str, Any]]
    receipt_dir: str | None
    archive_dir: str | None = None
    written: list[str] = field(default_factory=list)
    spent: list[str] = field(default_factory=list)
    is_saved: bool = False

    @cached_property
    def key(self) -> str:
        """What tells it from every other change: its receipts commit to their tasks with salts."""
        return digest_json([self.before, self.after, *(receipt["tasks"] for receipt in self.receipts)])


def archived_names(state: MergedState) -> set[str]:
    """Return the names of the files that an archive has of the merged tasks."""
    return {Archive.file_name(task_id, record.vector_digest) for task_id, record in state.records.items()}


def journal_beside(folder: Path) -> Path:
    """Return the folder that keeps what a run on a model has finished; a link and its target have the same."""
    model = folder.resolve()
    # The lock of the journal stands beside it, and its name is longer.
    return model.parent / hidden_name(model.name, ".journal.lock").removesuffix(".lock")


def record_pending(journal: Journal, changes: Sequence[Change], place: Path | None = None) -> None:
    """Keep changes in the journal, before the model that they lead to is saved; others that are announced there stay.

    Args:
        journal (`Journal`): of the model.
        changes (*sequence* of `Change`): in their order.
        place (`Path`, *optional*): the folder that the model is about to be saved to.
    """
    replace_pending(journal, [*_others(read_pending(journal), changes), *changes], place)


def replace_pending(journal: Journal, changes: Iterable[Change], place: Path | None = None) -> None:
    """Replace what a journal announces."""
    noted = []
    for change in changes:
        # From the journal on, so that a model may be moved together with what is beside it.
        folders = {name: _relative(getattr(change, name), journal.folder) for name in _FOLDERS}
        noted.append({**asdict(change), **folders})
    at = None if place is None else _relative(str(place.resolve()), journal.folder)
    journal.write_note({"changes": noted, "place": at})


def remove_pending(journal: Journal, changes: Sequence[Change]) -> None:
    """Take changes out of the announcement, because another journal has them."""
    left = _others(read_pending(journal), changes)
    if left:
        replace_pending(journal, left)
    else:
        journal.delete_note()


def finish_pending(journal: Journal, changes: Sequence[Change] = ()) -> None:
    """Clear a journal after these changes are done; other changes that it announces stay announced."""
    left = _others(read_pending(journal), changes)
    if left:
        replace_pending(journal, left)
    journal.clear(keep_note=bool(left))


def read_pending(journal: Journal, say: Callable[[str], object] = lambda text: None) -> list[Change]:
    """Return the changes that a journal announces; none if it is damaged or of something else.

    Args:
        journal (`Journal`): of the model.
        say (*callable*, *optional*): receives a line if there is something that cannot be used.
    """
    if not journal.has_note:
        return []
    noted = journal.read_note()
    try:
        if not isinstance(noted, dict) or not isinstance(noted["changes"], list):
            raise ValueError
        return [_change(values, journal.folder) for values in noted["changes"]]
    except (KeyError, TypeError, ValueError):
        say(f"The journal {journal.folder} holds a note that this release does not write. It is not used.")
        return []


def pending_target(journal: Journal) -> Path | None:
    """Return the folder that the announced changes were about to be saved to, where that is known."""
    noted = journal.read_note()
    place = noted.get("place") if isinstance(noted, dict) else None
    if not isinstance(place, str) or "\0" in place:
        return None
    return Path(_absolute(place, journal.folder) or "")


def _others(changes: Iterable[Change], known: Iterable[Change]) -> list[Change]:
    keys = {change.key for change in known}
    return [change for change in changes if change.key not in keys]


def _change(values: Mapping[str, Any], journal: Path) -> Change:
    """Return a change from a note, if every field is valid.

    Raises:
        KeyError, TypeError, ValueError: if one is not.
    """
    if sorted(values) != sorted(one.name for one in fields(Change)):
        raise ValueError("other fields than a change has")
    digests = {"before": values["before"], "after": values["after"]}
    is_sound = (
        all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in digests.values())
        and all(_is_place(values[name]) for name in _FOLDERS)
        and all(_are_names(values[name]) for name in ("written", "spent"))
        and isinstance(values["is_saved"], bool)
        and isinstance(values["receipts"], list)
        and all(is_receipt(receipt) and receipt["digests"] == digests for receipt in values["receipts"])
    )
    if not is_sound:
        raise ValueError("a field of another kind")
    return Change(**{**values, **{name: _absolute(values[name], journal) for name in _FOLDERS}})


def _is_place(value: Any) -> bool:
    return value is None or (isinstance(value, str) and "\0" not in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and is_archive_name(name) for name in value)


def _relative(folder: str | None, start: Path) -> str | None:
    try:
        # Resolved: what is above a link is not where the link is.
        return folder if folder is None or is_on_hub(folder) else os.path.relpath(folder, start.resolve())
    except ValueError:  # on another drive
        return folder


def _absolute(folder: str | None, start: Path) -> str | None:
    return folder if folder is None or is_on_hub(folder) else os.path.normpath(start.resolve() / folder)
