"""The saved model that a change is made to: locked while it lasts, recovered first, replaced as a whole at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.hub.archive import archive_at
from hf_clamu.hub.pull import resolve_folder
from hf_clamu.operations.lifecycle.amending import finish_amendments
from hf_clamu.operations.lifecycle.pending import journal_beside, read_pending
from hf_clamu.operations.lifecycle.receipts import lineage, read_receipts, require_no_link
from hf_clamu.operations.lifecycle.recovery import saved_state_digest
from hf_clamu.operations.lifecycle.request_files import RequestFiles
from hf_clamu.storage import Journal
from hf_clamu.storage.replace import remove_abandoned, require_replaceable
from hf_clamu.training import Workers

__all__ = [
    "ModelTarget",
    "Say",
    "locked_journal",
    "open_target",
    "receipts_beside",
    "receipts_of",
    "recover_target",
    "target_to_read",
]

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class ModelTarget:
    """Where the model is that a change starts from, and where the result goes.

    Args:
        source (`str`): folder or Hub id that is read.
        output (`Path`, *optional*): written instead of the source.
        receipts (`Path`): folder of the receipts.
        files (`RequestFiles`): open: locked and recovered.
        has_result (`bool`): an earlier run with this target left its result and its receipts.
    """

    source: str
    output: Path | None
    receipts: Path
    files: RequestFiles
    has_result: bool

    @property
    def name(self) -> str:
        """Folder or Hub id of the result."""
        return str(self.output or self.source)

    @property
    def is_on_hub(self) -> bool:
        """Whether the result goes to the Hub."""
        return self.output is None and not Path(self.source).is_dir()

    def options(self) -> dict[str, Any]:
        """Return the arguments that every request on this model takes."""
        files = self.files
        return {"journal_dir": files.journal, "receipt_dir": files.receipts, "archive": files.archive}

    def save(self, model: Any, *, erase_history: bool = False, signing_key: Path | None = None) -> None:
        """Save a changed model: a folder is replaced as a whole, a Hub id gets one commit.

        Args:
            model (`ClamuModel`): with at least one change.
            erase_history (`bool`): remove the old commits of a Hub id afterwards.
            signing_key (`Path`, *optional*): file of the key that signs what goes to the Hub.
        """
        workers = Workers.current()
        if workers.is_main:
            # Before the model is replaced: where no receipt can be written, nothing should change.
            self.receipts.mkdir(parents=True, exist_ok=True)
            if self.is_on_hub:
                model.push_to_hub(erase_history=erase_history, signing_key=signing_key, receipt_dir=self.receipts)
            else:
                # A new folder was empty when the request began; a model that came there since is not replaced.
                is_new = self.output is not None and not self.has_result
                model.save_pretrained(self.name, overwrite=False if is_new else None)
        # Each machine has a journal, and none is cleared before the model is saved.
        workers.meet()
        if not workers.is_main and self.files.journal is not None:
            self.files.journal.clear(keep_note=True)

    def history(self, model: Any) -> Mapping[Path, Mapping[str, Any]]:
        """Return the receipts that led to a model, the last ones first."""
        receipts = read_receipts(self.receipts)
        return lineage(receipts, model.state_digest()) if receipts else {}


@contextmanager
def open_target(
    source: str, *, output: Path | None, receipts: Path | None, archive: str | None, say: Say
) -> Iterator[ModelTarget]:
    """Lock a saved model for a change, and recover what a run that died has left.

    Args:
        source (`str`): folder or Hub id of the model.
        output (`Path`, *optional*): written instead of the source.
        receipts (`Path`, *optional*): folder of the receipts; by default `receipts` beside the model, or in the
            working directory for a Hub id.
        archive (`str`, *optional*): folder or place on the Hub of the task vectors.
        say (*callable*): receives lines about what was recovered.

    Raises:
        RunInProgressError: if another process changes this model.
    """
    is_folder = Path(source).is_dir()
    folder = output or (Path(source) if is_folder else Path(source.replace("/", "--")))
    if receipts is None:
        receipts = receipts_of(source)
        require_no_link(receipts)
    # With an output the source keeps its tasks, so their vectors stay in the archive.
    opened_archive = archive_at(archive, retains_forgotten=output is not None)
    workers = Workers.current()
    with workers.watched(), locked_journal(folder) as journal:
        files, has_result = RequestFiles(journal=journal, receipts=receipts, archive=opened_archive), False
        if workers.is_main:
            finish_amendments(receipts)
            has_result = recover_target(files, folder if output is not None or is_folder else source, say)
            has_result = has_result or (output is not None and _came_from(source, output, receipts))
        yield ModelTarget(source=source, output=output, receipts=receipts, files=files, has_result=has_result)


def target_to_read(source: str, *, output: Path | None, receipts: Path | None, archive: str | None) -> ModelTarget:
    """Return a model as a target that nothing is written to: neither locked nor recovered, for a dry run.

    Args:
        source, output, receipts, archive: as in `open_target`.
    """
    files = RequestFiles(archive=archive_at(archive, retains_forgotten=True))
    receipts = receipts or receipts_of(source)
    return ModelTarget(source=source, output=output, receipts=receipts, files=files, has_result=False)


def receipts_of(source: str) -> Path:
    """Return the folder of a model's receipts, unless another one is named; for a Hub id in the working directory."""
    return receipts_beside(Path(source)) if Path(source).is_dir() else Path.cwd() / "receipts"


@contextmanager
def locked_journal(folder: Path) -> Iterator[Journal]:
    """Lock the journal of a folder; of several processes the main one does.

    Raises:
        RunInProgressError: if another process holds it.
    """
    # First: the journal and its lock go beside the folder.
    require_replaceable(folder)
    journal = Journal(journal_beside(folder))
    with journal.locked(is_main=Workers.current().is_main):
        yield journal


def receipts_beside(folder: Path) -> Path:
    """Return the folder of the receipts of a saved model, unless another one is named."""
    return folder.absolute().parent / "receipts"


def recover_target(files: RequestFiles, location: Path | str, say: Say) -> bool:
    """Finish the changes that a run announced before it died; return whether they turned out to be saved.

    Args:
        files (`RequestFiles`): of the model; its journal is locked.
        location (`Path` or `str`): folder or Hub id of the model.
        say (*callable*): receives lines about what was done and what is left to do.
    """
    if isinstance(location, Path):
        remove_abandoned(location)  # the old model, too, if the writer died just after the exchange
    if files.journal is None or not read_pending(files.journal, say):
        return False
    if files.receipts is not None:
        require_no_link(files.receipts)
    folder = resolve_folder(location) if isinstance(location, str) else location
    recovery = files.recover(read_checkpoint(folder) if (folder / LEDGER_NAME).is_file() else None)
    for line in (*recovery.done, *recovery.to_do):
        say(line)
    return bool(recovery.changes)


def _came_from(source: str, output: Path, receipts: Path) -> bool:
    """Whether receipts say that a folder has the result of requests on the model that a change starts from.

    A run may have been stopped when everything was saved.
    """
    if not (output / LEDGER_NAME).is_file() or not (written := read_receipts(receipts)):
        return False
    after = saved_state_digest(output)
    history = {} if after is None else lineage(written, after)
    # Reading a model checks all of its files, so the source is read only where it may matter.
    return bool(history) and saved_state_digest(resolve_folder(source)) in {
        receipt["digests"]["before"] for receipt in history.values()
    }
