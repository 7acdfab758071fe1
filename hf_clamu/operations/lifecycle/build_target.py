"""The folder that a build saves to: locked while it lasts, and recognised by a repeated command as finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import digest_json
from hf_clamu.hub.archive import archive_at
from hf_clamu.merging import remark_on
from hf_clamu.operations.lifecycle.pending import finish_pending
from hf_clamu.operations.lifecycle.request_files import RequestFiles
from hf_clamu.operations.lifecycle.target import Say, locked_journal, receipts_beside, recover_target
from hf_clamu.storage import Journal
from hf_clamu.training import Workers

__all__ = ["BuildTarget", "build_summary", "open_build"]


@dataclass(frozen=True, kw_only=True)
class BuildTarget:
    """Where a build goes.

    Args:
        output (`Path`): folder of the model.
        journal (`Journal`): keeps what is finished.
        command (`str`): digest of the command that asked for the build.
    """

    output: Path
    journal: Journal
    command: str

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a model that a run of this very command saved before it died; its journal is cleared.

        Returns:
            *dict*, *optional*: see `build_summary`.
        """
        workers = Workers.current()
        summary = None
        if workers.is_main and (self.output / LEDGER_NAME).is_file():
            announced = self.journal.lock.read_message()
            if isinstance(announced, Mapping) and announced.get("command") == self.command:
                checkpoint = read_checkpoint(self.output)
                if checkpoint.state_digest == announced.get("state"):
                    finish_pending(self.journal)
                    summary = build_summary(checkpoint.config)
        shared: dict[str, Any] | None = workers.gather(summary)[0]
        return shared

    def announce(self, state_digest: str) -> None:
        """Note which state this command is about to save, for a run that repeats it."""
        if Workers.current().is_main:
            self.journal.lock.write_message({"command": self.command, "state": state_digest})

    def close(self) -> None:
        """Clear the journal: the main process has saved the model."""
        workers = Workers.current()
        # Each machine has a journal, and none is cleared before the model is saved.
        workers.meet()
        if workers.is_main:
            finish_pending(self.journal)
        else:
            self.journal.clear(keep_note=True)


def build_summary(config: ClamuConfig) -> dict[str, Any]:
    """Return what a command prints about a model.

    Returns:
        *dict*: `num_tasks`, `num_clusters`, `alpha`, and where validation examples were measured `scores` (means over
        the tasks of `base`, `global` and, with masks, `own`) and `remark`, a sentence if they are disappointing; both
        are `None` otherwise.
    """
    scores = None if config.scores is None else dict(config.scores["mean"])
    return {
        "num_tasks": config.num_tasks,
        "num_clusters": config.num_clusters,
        "alpha": config.alpha,
        "scores": scores,
        "remark": None if scores is None else remark_on(scores),
    }


@contextmanager
def open_build(output: Path, *, command: Any, archive: str | Path | None, say: Say) -> Iterator[BuildTarget]:
    """Lock a folder until a model is built and saved there, and recover what a run that died has left.

    Args:
        output (`Path`): folder of the model.
        command (*JSON-able*): everything that the command asked for.
        archive (`str` or `Path`, *optional*): folder or place on the Hub of the task vectors.
        say (*callable*): receives lines about what was recovered.

    Raises:
        RunInProgressError: if another process works on the folder.
    """
    workers = Workers.current()
    with workers.watched(), locked_journal(output) as journal:
        if workers.is_main:
            files = RequestFiles(journal=journal, receipts=receipts_beside(output), archive=archive_at(archive))
            recover_target(files, output, say)
        yield BuildTarget(output=output, journal=journal, command=digest_json(command))
