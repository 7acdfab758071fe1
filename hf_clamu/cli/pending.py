"""What commands do before and after they change a saved model, so that no moment is a bad one to be killed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.cli.output import is_main_process, journal_beside, note
from hf_clamu.errors import HubError, RunInProgressError

if TYPE_CHECKING:
    from hf_clamu.training import Journal

__all__ = ["Place", "settle_beside", "working_on"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the model is that a command changes.

    Args:
        source (`str`): folder or Hub id that is read.
        output (`Path`, *optional*): written instead of the source.
        receipts (`Path`): folder of the receipts.
        journal (`Journal`): keeps what is finished.
        is_settled (`bool`): whether a run that died had put the model at its place; its receipts are written now.
    """

    source: str
    output: Path | None
    receipts: Path
    journal: Journal
    is_settled: bool

    @property
    def name(self) -> str:
        """Where the result goes."""
        return str(self.output or self.source)

    def options(self, archive: str | None) -> dict[str, Any]:
        """Return what every request on this model is given."""
        from hf_clamu.models.hub_archive import archive_at

        # The source still has the tasks where the result goes elsewhere.
        kept = None if archive is None else archive_at(archive, is_kept=self.output is not None)
        return {"journal_dir": self.journal.folder, "receipt_dir": self.receipts, "archive": kept}

    def save(self, model: Any, erase_history: bool | None) -> None:
        """Bring a changed model to its place: a folder as a whole, a Hub id as one commit."""
        from hf_clamu.cli.hub import wants_erasure
        from hf_clamu.training import Workers

        if is_main_process():
            # Before the model is replaced: where no receipt can be written, nothing should change.
            self.receipts.mkdir(parents=True, exist_ok=True)
            if self.output is not None or Path(self.source).is_dir():
                model.save_pretrained(self.output or self.source)
            else:
                model.push_to_hub(erase_history=wants_erasure(erase_history, self.source))
        # Each machine has a journal, and none is dropped before the model is there.
        Workers.current().meet()
        self.journal.clear()

    def history(self, model: Any) -> Mapping[Path, Mapping[str, Any]]:
        """Return the receipts that led to a model, the last ones first."""
        from hf_clamu.models.receipts import lineage, read_receipts

        found = read_receipts(self.receipts)
        return lineage(found, model.state_digest()) if found else {}


@contextmanager
def working_on(source: str, output: Path | None, receipts: Path | None) -> Iterator[Place]:
    """Keep other commands away from a model while it is changed, and settle what one that died has left.

    Raises:
        RunInProgressError: if another process is at it.
    """
    from hf_clamu.models.replace import remove_abandoned
    from hf_clamu.training import Journal, Workers

    local = Path(source).is_dir()
    target = output or (Path(source) if local else Path(source.replace("/", "--")))
    journal = Journal(journal_beside(target))
    receipts = receipts or (Path(source).absolute().parent if local else Path.cwd()) / "receipts"
    with Workers.current().watched():
        if not is_main_process():
            yield Place(source=source, output=output, receipts=receipts, journal=journal, is_settled=False)
            return
        with journal.locked():
            if output is not None or local:
                remove_abandoned(target)
            is_settled = _settle(journal, str(target) if output is not None or local else source, finish=True)
            yield Place(source=source, output=output, receipts=receipts, journal=journal, is_settled=is_settled)


def settle_beside(folder: Path) -> None:
    """Finish what a run that died after its change was saved has left beside a model, if nobody is at it."""
    if not is_main_process() or not (journal_beside(folder) / "note.json").is_file():
        return
    from hf_clamu.training import Journal

    journal = Journal(journal_beside(folder))
    try:
        with journal.locked():
            _settle(journal, str(folder), finish=False)
    except (OSError, HubError, RunInProgressError):
        return  # a command that only reads is not stopped by this


def _settle(journal: Journal, source: str, *, finish: bool) -> bool:
    from hf_clamu.cli.hub import saved_folder
    from hf_clamu.models.checkpoint import read_checkpoint
    from hf_clamu.models.replace import remove_abandoned
    from hf_clamu.models.settling import announced, settle

    changes = announced(journal)
    if not changes:
        return False
    folder = saved_folder(source)
    state = read_checkpoint(folder).state_digest if folder.is_dir() else None
    if state in [change.after for change in changes]:
        remove_abandoned(Path(source))  # the old model, if the writer died just after the exchange
    elif not finish:
        return False  # it may still be on its way
    return settle(journal, state, note)
