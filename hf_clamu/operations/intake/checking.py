"""Whether what is asked for can be carried out, said without naming other owners."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.errors import TaskNotFoundError
from hf_clamu.hub.pull import resolve_folder
from hf_clamu.operations.data import ledger_id
from hf_clamu.operations.intake.book import Asked
from hf_clamu.operations.lifecycle.receipts import forgotten_in, lineage, read_receipts
from hf_clamu.operations.lifecycle.target import receipts_of

__all__ = ["Ledger"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What is merged in a model, for the question whether a request can be carried out.

    Args:
        merged (*collection* of `str`): ids of the merged tasks.
        ledger_id (*callable*): gives the id that the ledger has for a task.
        receipts (*mapping* of `Path` to *mapping*): those that led to the model, by their files.
    """

    merged: Collection[str]
    ledger_id: Callable[[str], str] = str
    receipts: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, *, receipts: Path | None = None, task_id_key: str | None = None) -> Ledger:
        """Read what is merged in a saved model.

        Args:
            model (`str`): folder or Hub id.
            receipts (`Path`, *optional*): folder of its receipts, if not the usual one.
            task_id_key (`str`, *optional*): the key of the ledger's ids, if they are keyed.
        """
        checkpoint = read_checkpoint(resolve_folder(model))
        return cls(
            merged=frozenset(checkpoint.state.records),
            ledger_id=lambda task_id: ledger_id(checkpoint, task_id, task_id_key),
            # Other models may have theirs in the same folder.
            receipts=lineage(read_receipts(receipts or receipts_of(model)), checkpoint.state_digest),
        )

    @property
    def answered(self) -> frozenset[str]:
        """Names of the requests that were carried out, by their receipts."""
        return frozenset(receipt["id"] for receipt in self.receipts.values() if "id" in receipt)

    def checked(self, asked: Sequence[Asked]) -> list[Asked]:
        """Return what is asked for under the ids of the ledger.

        Raises:
            TaskNotFoundError: if a task is not merged; naming those and nobody else.
        """
        found, unknown = [], []
        for one in asked:
            ids = [self.ledger_id(task_id) for task_id in one.tasks]
            unknown += [pair for pair in zip(one.tasks, ids, strict=True) if pair[1] not in self.merged]
            found.append(replace(one, tasks=tuple(ids)))
        if unknown:
            said = "; ".join(f"{name!r} {self._why(task_id)}" for name, task_id in unknown[:_SHOWN])
            more = f"; and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise TaskNotFoundError(f"Nothing was taken in: {said}{more}. Check how the owner's id is written.")
        return found

    def _why(self, task_id: str) -> str:
        receipt = forgotten_in(self.receipts, task_id)
        if receipt is None:
            return "is no task of this model"
        return f"was forgotten on {self.receipts[receipt]['time'][:10]} (receipt {receipt.name})"
