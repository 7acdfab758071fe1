"""Which request is meant, and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.operations.lifecycle.receipts import salted_ids
from hf_clamu.operations.signed.chain import Statements, in_order
from hf_clamu.proofs.evidence.findings import Finding

__all__ = ["Case", "find_case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request and its place among those that led to the model.

    Args:
        file (`Path`): of its receipt.
        receipt (*mapping*): its receipt.
        later (*tuple* of `Path`): receipts of the requests since then, the first ones first.
        now (`str`): digest of the present state.
        has_keyed_ids (`bool`): the ids in the receipt are keyed.
    """

    file: Path
    receipt: Mapping[str, Any]
    later: tuple[Path, ...]
    now: str
    has_keyed_ids: bool

    @property
    def after(self) -> str:
        """Digest of the state that it led to."""
        return str(self.receipt["digests"]["after"])

    @property
    def before(self) -> str:
        """Digest of the state that it started from."""
        return str(self.receipt["digests"]["before"])

    def misfit(self, finding: Finding) -> str | None:
        """Return why a finding says nothing of this request; `None` if it does."""
        if finding.state not in (self.after, self.now):
            return (
                f"is about the state {finding.state[:16]}…; the request led to {self.after[:16]}…, and the model is "
                f"{self.now[:16]}… now"
            )
        if finding.before is not None and (finding.before, finding.state) != (self.before, self.after):
            return f"is about another change: it starts from the state {finding.before[:16]}…, not {self.before[:16]}…"
        salts = salted_ids(self.receipt)
        if salts is not None and not self.has_keyed_ids and not set(finding.tasks) <= salts.keys():
            return "is about other tasks than this request"
        return None


def find_case(model: str, place: Path, statements: Statements, now: Checkpoint, request: str | None) -> Case:
    """Return the request that is meant, among those that led to the present state.

    Args:
        model (`str`): what the model is called in a message.
        place (`Path`): folder of the receipts.
        statements (`Statements`): what it holds.
        now (`Checkpoint`): the model as it is.
        request (`str`, *optional*): its name, or that of its receipt's file; by default the last one.

    Raises:
        RecipeError: if no receipt leads to the model, or none or several are called so.
        CheckpointFormatError: if the receipt says what the ledger does not.
    """
    leading = in_order(statements.receipts, now.state_digest, ())
    if not leading:
        raise RecipeError(
            f"No receipt in {place} leads to {model} as it is (state {now.state_digest[:16]}…). Name the folder that "
            "has its receipts (--receipts), or check the model: it may be another one, or an older copy."
        )
    wanted = leading[-1:] if request is None else []
    wanted = wanted or [path for path in leading if request in (path.name, path.stem)]
    wanted = wanted or [path for path in leading if statements.receipts[path].get("id") == request]
    if len(wanted) != 1:
        names = ", ".join(path.name for path in (wanted or leading[-3:]))
        said = f"{len(wanted)} receipts of a request {request!r}" if wanted else f"no receipt of a request {request!r}"
        raise RecipeError(f"{place} has {said} that leads to this model: name the file of one, such as {names}.")
    receipt = statements.receipts[wanted[0]]
    same = [path for path in leading if statements.receipts[path]["digests"] == receipt["digests"]]
    case = Case(
        file=wanted[0],
        receipt=receipt,
        later=tuple(leading[max(map(leading.index, same)) + 1 :]),
        now=now.state_digest,
        has_keyed_ids=now.has_keyed_ids,
    )
    if case.after == case.now and receipt["num_tasks"]["after"] != len(now.state.records):
        raise CheckpointFormatError(
            f"{case.file} says that {receipt['num_tasks']['after']} tasks are merged, and the ledger of {model} has "
            f"{len(now.state.records)}: it was edited. Ask who made it for the receipt as it was written."
        )
    return case
