"""The models of a desk, without any page: taking requests in, ordering them, what state they are in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.known_names import OnMismatch, Verification
from hf_clamu.operations.intake.book import Asked, RequestBook
from hf_clamu.operations.intake.checking import Ledger
from hf_clamu.operations.intake.reading import read_asked
from hf_clamu.operations.intake.received import ReceivedRequest
from hf_clamu.operations.intake.states import RequestState, merged_now, read_states
from hf_clamu.operations.lifecycle.target import receipts_of

__all__ = ["DeskModel", "Office", "WorkerOptions"]

# Each is a file of its own, written to the disk in 1 to 4 ms: giving so many to the worker takes less than the minute
# for which others wait to change something.
_MOST_OPEN = 5000


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What the worker is told about every model; see `clamu queue run`.

    Args:
        data (*sequence* of `Path`): files of the tasks' rows.
        archive (`str`, *optional*): place of task vectors.
        receipts (`Path`, *optional*): folder of receipts.
        key (`Path`, *optional*): file of the key that signs.
        erase_history (`bool`): of a Hub id.
        verify (`str`): see `Verification`.
        on_mismatch (`str`): see `OnMismatch`.
        max_drop (`float`, *optional*): the most that a task which stays may lose.
    """

    data: Sequence[Path] = ()
    archive: str | None = None
    receipts: Path | None = None
    key: Path | None = None
    erase_history: bool = False
    verify: Verification = "rebuild"
    on_mismatch: OnMismatch = "error"
    max_drop: float | None = None

    def words(self) -> list[str]:
        """Return them as words of a command line."""
        named: dict[str, object] = {"--archive": self.archive, "--receipts": self.receipts, "--key": self.key}
        named |= {"--verify": self.verify, "--on-mismatch": self.on_mismatch, "--max-drop": self.max_drop}
        words = [word for path in self.data for word in ("--data", str(path.absolute()))]
        for option, value in named.items():
            if value is not None:
                words += [option, str(value.absolute() if isinstance(value, Path) else value)]
        return [*words, "--erase-history" if self.erase_history else "--keep-history"]


@dataclass(frozen=True, kw_only=True)
class DeskModel:
    """A model whose requests are answered at the desk.

    Args:
        source (`str`): folder or Hub id.
        options (`WorkerOptions`): for the worker.
        task_id_key (`str`, *optional*): the key of the ledger's ids, if they are keyed.
    """

    source: str
    options: WorkerOptions = field(default_factory=WorkerOptions)
    task_id_key: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What it is called on the page."""
        path = Path(self.source)
        return path.resolve().name if path.is_dir() else self.source

    @cached_property
    def book(self) -> RequestBook:
        """Its requests."""
        return RequestBook.of(self.source)

    @property
    def receipts(self) -> Path:
        """Folder of its receipts."""
        return self.options.receipts or receipts_of(self.source)

    def ledger(self) -> Ledger:
        """Return what is merged at the moment."""
        for _ in range(2):
            # A model that is replaced while it is read looks damaged, once.
            with contextlib.suppress(CheckpointFormatError, OSError):
                return self._read()
        return self._read()

    def _read(self) -> Ledger:
        return Ledger.of(self.source, receipts=self.options.receipts, task_id_key=self.task_id_key)

    def take_in(self, asked: Sequence[Asked]) -> list[ReceivedRequest]:
        """Take requests in, all or none, after checking that their tasks are merged.

        Raises:
            TaskNotFoundError, TaskDataError: naming what is wrong, and no other owner.
        """
        ledger = self.ledger()
        return self.book.add(ledger.checked(asked), answered=ledger.answered, most_open=_MOST_OPEN)

    def take_in_file(self, name: str, data: bytes) -> list[ReceivedRequest]:
        """Take in the requests of a CSV or of JSON lines."""
        return self.take_in(read_asked(name, data))

    def states(self) -> list[RequestState]:
        """Return all requests with their states, what is due first."""
        return read_states(self.book, merged_now(self.source))


class Office:
    """The models of a desk by name.

    Args:
        models (*sequence* of `DeskModel`): at least one.

    Raises:
        RecipeError: if two have the same name.
    """

    def __init__(self, models: Sequence[DeskModel]) -> None:
        self.models = {one.name: one for one in models}
        if len(self.models) < len(models):
            raise RecipeError("Two models have the same name, and a page could not tell them apart: rename a folder.")

    def __getitem__(self, name: object) -> DeskModel:
        """Return a model by its name on the page; anything else is refused, whatever it is.

        Raises:
            RecipeError: if there is no such model.
        """
        found = self.models.get(name) if isinstance(name, str) else None
        if found is None:
            raise RecipeError("There is no such model at this desk.")
        return found
