"""The files that a request keeps outside the model: its journal, its receipts and an archive of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.hub.archive import archive_at
from hf_clamu.operations.lifecycle.pending import Change, archived_names
from hf_clamu.operations.lifecycle.recovery import Recovery, recover_pending
from hf_clamu.storage import Archive, Journal

__all__ = ["RequestFiles"]


@dataclass(frozen=True, kw_only=True)
class RequestFiles:
    """Where a request keeps what outlives its process.

    A command locks the journal and recovers what an earlier run has left there, before it loads the model
    (`open_target`). A request on a live model does so for itself, unless its journal is locked already.

    Args:
        journal (`Journal`, *optional*): keeps what is finished, and announces a change until it is saved.
        receipts (`Path`, *optional*): folder of the receipts.
        archive (`Archive`, *optional*): of the task vectors.
    """

    journal: Journal | None = None
    receipts: Path | None = None
    archive: Archive | None = None

    @classmethod
    def of(
        cls,
        journal_dir: str | Path | Journal | None,
        receipt_dir: str | Path | None,
        archive: str | Path | Archive | None,
    ) -> RequestFiles:
        """Take over what a caller of `ClamuModel` gave; a journal that is open stays open."""
        return cls(
            journal=Journal.at(journal_dir),
            receipts=None if receipt_dir is None else Path(receipt_dir),
            archive=archive_at(archive),
        )

    @property
    def is_open(self) -> bool:
        """Whether the caller locked the journal, recovered what an earlier run had left, and then loaded the model."""
        return self.journal is not None and self.journal.is_locked

    def recover(self, saved: Checkpoint | None, ours: Sequence[Change] = ()) -> Recovery:
        """Finish the changes that an earlier run announced in the journal before it died.

        Args:
            saved (`Checkpoint`, *optional*): what the model holds; None if there is none.
            ours (*sequence* of `Change`): changes of this process that are still to be saved.
        """
        if self.journal is None:
            return Recovery()
        cleans = self.archive is not None and not self.archive.retains_forgotten
        return recover_pending(
            self.journal,
            set() if saved is None else {saved.state_digest},
            merged=set() if saved is None else archived_names(saved.state),
            receipt_dir=self.receipts,
            archive=self.archive if cleans else None,
            ours=ours,
        )
