"""What commands do before and after they change a saved model, so that no moment is a bad one to be killed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.cli.fate import bringing
from hf_clamu.cli.output import is_main_process, journal_beside, note
from hf_clamu.cli.prompts import wants_erasure

if TYPE_CHECKING:
    from hf_clamu.storage import Archive, Journal

__all__ = ["Place", "building", "say_pending", "working_on"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the model is that a command changes.

    Args:
        source (`str`): folder or Hub id that is read.
        output (`Path`, *optional*): written instead of the source.
        receipts (`Path`): folder of the receipts.
        journal (`Journal`): keeps what is finished.
        archive (`Archive`, *optional*): that the command names.
        is_settled (`bool`): the result of an earlier run of this kind is at its place, and its receipts are written.
    """

    source: str
    output: Path | None
    receipts: Path
    journal: Journal
    archive: Archive | None
    is_settled: bool

    @property
    def name(self) -> str:
        """Where the result goes."""
        return str(self.output or self.source)

    def options(self) -> dict[str, Any]:
        """Return what every request on this model is given."""
        return {"journal_dir": self.journal.folder, "receipt_dir": self.receipts, "archive": self.archive}

    def save(self, model: Any, erase_history: bool | None) -> None:
        """Bring a changed model to its place: a folder as a whole, a Hub id as one commit."""
        from hf_clamu.training import Workers

        if is_main_process():
            # Before the model is replaced: where no receipt can be written, nothing should change.
            self.receipts.mkdir(parents=True, exist_ok=True)
            if self.output is not None or Path(self.source).is_dir():
                bringing(Path(self.name).resolve())
                # A new folder was empty when the request began; a model that came there meanwhile is not replaced.
                is_new = self.output is not None and not self.is_settled
                model.save_pretrained(self.name, overwrite=False if is_new else None)
            else:
                wanted = wants_erasure(erase_history, self.source)
                bringing(self.source)
                model.push_to_hub(erase_history=wanted)
        # Each machine has a journal, and none is dropped before the model is there.
        Workers.current().meet()
        if not is_main_process():
            self.journal.clear(keep_note=True)

    def history(self, model: Any) -> Mapping[Path, Mapping[str, Any]]:
        """Return the receipts that led to a model, the last ones first."""
        from hf_clamu.operations.lifecycle.receipts import lineage, read_receipts

        found = read_receipts(self.receipts)
        return lineage(found, model.state_digest()) if found else {}


@contextmanager
def working_on(source: str, output: Path | None, receipts: Path | None, archive: str | None) -> Iterator[Place]:
    """Keep other commands away from a model while it is changed, and settle what one that died has left.

    Raises:
        RunInProgressError: if another process is at it.
    """
    from hf_clamu.hub.archive import archive_at
    from hf_clamu.operations.lifecycle.receipts import require_no_link
    from hf_clamu.training import Workers

    local = Path(source).is_dir()
    target = output or (Path(source) if local else Path(source.replace("/", "--")))
    if receipts is None:
        receipts = _receipts_beside(Path(source)) if local else Path.cwd() / "receipts"
        require_no_link(receipts)
    # The source still has the tasks where the result goes elsewhere.
    kept = archive_at(archive, retains_forgotten=output is not None)
    with Workers.current().watched(), _locked(target) as journal:
        is_settled = False
        if is_main_process():
            place = target if output is not None or local else source
            is_settled = _settle(journal, place, receipts, None if output is not None else kept)
            is_settled = is_settled or (output is not None and _came_from(source, output, receipts))
        yield Place(
            source=source, output=output, receipts=receipts, journal=journal, archive=kept, is_settled=is_settled
        )


@contextmanager
def building(output: Path, archive: str | Path | None) -> Iterator[Journal]:
    """Keep other commands away from a folder until a model is built and saved there; settle what one has left.

    Raises:
        RunInProgressError: if another process is at it.
    """
    from hf_clamu.hub.archive import archive_at
    from hf_clamu.training import Workers

    with Workers.current().watched(), _locked(output) as journal:
        if is_main_process():
            _settle(journal, output, _receipts_beside(output), archive_at(archive))
        yield journal


@contextmanager
def _locked(target: Path) -> Iterator[Journal]:
    from hf_clamu.storage import Journal
    from hf_clamu.storage.replace import require_replaceable

    # First: the journal and its lock go beside it.
    require_replaceable(target)
    journal = Journal(journal_beside(target))
    if not is_main_process():
        yield journal
        return
    with journal.locked():
        yield journal


def _receipts_beside(folder: Path) -> Path:
    return folder.absolute().parent / "receipts"


def say_pending(folder: Path) -> None:
    """Say on stderr that a run that died, or is not through, has left something beside a model."""
    from hf_clamu.operations.lifecycle.pending import read_pending
    from hf_clamu.storage import Journal

    if is_main_process() and folder.is_dir() and read_pending(Journal(journal_beside(folder)), note):
        note(
            f"A change of {folder} was announced and is not settled: its run was stopped, or still runs. Commands "
            "that only read leave that alone; the next clamu unmerge, add or update of it settles it."
        )


def _settle(journal: Journal, place: Path | str, receipts: Path, archive: Archive | None) -> bool:
    """Settle what is announced of a folder or a repo; return whether its changes turned out to be saved."""
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.hub.hub import resolve_folder
    from hf_clamu.operations.lifecycle.pending import archived_names, read_pending
    from hf_clamu.operations.lifecycle.receipts import require_no_link
    from hf_clamu.operations.lifecycle.recovery import recover_pending
    from hf_clamu.storage.replace import remove_abandoned

    if isinstance(place, Path):
        remove_abandoned(place)  # the old model, too, if the writer died just after the exchange
    if not read_pending(journal, note):
        return False
    require_no_link(receipts)
    folder = resolve_folder(place) if isinstance(place, str) else place
    checkpoint = read_checkpoint(folder) if (folder / "ledger.json").is_file() else None
    settled = recover_pending(
        journal,
        set() if checkpoint is None else {checkpoint.state_digest},
        merged=set() if checkpoint is None else archived_names(checkpoint.state),
        receipt_dir=receipts,
        archive=archive,
    )
    for line in (*settled.done, *settled.to_do):
        note(line)
    return bool(settled.changes)


def _came_from(source: str, output: Path, receipts: Path) -> bool:
    """Whether receipts say that a folder has the result of requests on the model that the command starts from.

    A run may have been stopped when there was nothing left to do but to end.
    """
    from hf_clamu.hub.hub import resolve_folder
    from hf_clamu.operations.lifecycle.receipts import lineage, read_receipts
    from hf_clamu.operations.lifecycle.recovery import saved_state_digest

    if not (output / "ledger.json").is_file():
        return False
    after, before = saved_state_digest(output), saved_state_digest(resolve_folder(source))
    found = {} if after is None else lineage(read_receipts(receipts), after)
    return any(receipt["digests"]["before"] == before for receipt in found.values())
