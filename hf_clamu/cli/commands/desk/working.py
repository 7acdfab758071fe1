"""What `clamu queue run` does: the requests that wait, in one localization, verified before the result is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.cli.changes import OpenChange
from hf_clamu.cli.commands.unmerge import share_open, subtract, triage_requests
from hf_clamu.cli.faults import refusal
from hf_clamu.cli.interruption import error_message
from hf_clamu.cli.output import is_main_process
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.errors import DigestMismatchError, SaveConflictError
from hf_clamu.known_names import Verification
from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.received import Outcome, ReceivedRequest, now_text
from hf_clamu.operations.intake.working import WorkLog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_clamu.operations.lifecycle.queue import ForgetRequest, TriagedRequest

__all__ = ["Worker"]

_History = Mapping[Path, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Carries out requests that were received.

    Args:
        model (`str`): folder or Hub id.
        book (`RequestBook`): its requests.
        requests (*sequence* of `ReceivedRequest`): those that it takes; of several processes the main one has them.
        log (`WorkLog`): tells what it does.
        verification (`str`): what is done before the result is saved, see `Verification`.
    """

    model: str
    book: RequestBook
    requests: Sequence[ReceivedRequest]
    log: WorkLog
    verification: Verification

    def carry_out(self, change: OpenChange, options: Mapping[str, Any]) -> list[Outcome]:
        """Forget what the requests name, verify the result, save it, and note what became of each request.

        Args:
            change (`OpenChange`): of the model.
            options (*mapping*): `data`, `checkpoints` and `on_mismatch` of the request.

        Raises:
            DigestMismatchError: if the result is not what it should be; nothing is saved then.
        """
        statuses = triage_requests(change, self._asked())
        wanted = share_open(statuses)
        if wanted:
            before = change.model.merged.checkpoint
            subtract(change, wanted, {**options, "progress": self._progress})
            self._verify(change, before, {key: options[key] for key in ("data", "checkpoints")})
        self.log.enter("publishing")
        if wanted:
            change.save()
        if not is_main_process():
            return []
        self._erase_what_is_left(change, statuses)
        history = change.target.history(change.model)  # once: it reads every receipt
        return [self._settle(change.model, history, status) for status in statuses]

    def fail(self, error: BaseException) -> None:
        """Note why the requests that are not settled could not be carried out."""
        _, _, message = refusal(error, show_traceback=False)
        if isinstance(error, SaveConflictError):  # says it for who writes Python
            message = (
                f"Another model came to {self.model} while this ran; nothing was overwritten. Carry it out again if "
                "the model that is there now is the right one."
            )
        reason = error_message(message)
        waiting = {one.name for one in self.book.read() if one.is_waiting}
        for request in self.requests:
            if request.name in waiting:
                self.book.settle(request.name, Outcome(status="failed", time=now_text(), reason=reason))

    def _asked(self) -> list[ForgetRequest]:
        from hf_clamu.operations.lifecycle.queue import ForgetRequest

        return [ForgetRequest(name=one.name, tasks=one.tasks) for one in self.requests]

    def _progress(self, items: Sequence[Any], description: str) -> Iterable[Any]:
        """Tell how far it is, on a terminal and to those who watch."""

        told: Iterable[Any] = progress_bars(items, description)
        return self.log.following(told, len(items), description)

    def _verify(self, change: OpenChange, before: Any, options: Mapping[str, Any]) -> None:
        """Check the result before it is saved, and keep what was found."""
        if self.verification == "none":
            return
        self.log.enter("verifying")
        state = change.model.state_digest()
        facts: dict[str, Any] = {"model": self.model, "state_digest": state}
        if self.verification == "rebuild":
            report = change.model.verify(**options, progress=self._progress)
            self._record(state, "verification", {**facts, "environment": change.model.ledger["environment"]}, report)
            if not report:
                raise DigestMismatchError(
                    f"The result is not what a build gives ({', '.join(report.differences)} differ), so it was not "
                    "saved. Please report this as a fault."
                )
        elif is_main_process():
            from hf_clamu.proofs.audit import audit_change

            facts |= {"digests": {"before": before.state_digest, "after": state}}
            audit = audit_change(before, change.model.merged.checkpoint, archive=change.target.files.archive)
            self._record(state, "audit", facts, audit)
            if audit.verdict == "refuted":
                raise DigestMismatchError(
                    "The result is not the model before without the tasks that leave, so it was not saved. Please "
                    "report this as a fault."
                )

    def _record(self, state: str, kind: str, facts: Mapping[str, Any], report: Any) -> None:
        from hf_clamu.operations.intake.findings import record_finding

        if is_main_process():
            record_finding(self.model, state, kind, {**facts, **report.to_dict()})

    def _erase_what_is_left(self, change: OpenChange, statuses: Sequence[TriagedRequest]) -> None:
        """Erase the history of a Hub id if a run before this one was stopped between its push and that."""
        if not (change.erase_history and change.target.is_on_hub):
            return
        from hf_clamu.hub.erase import erase_history
        from hf_clamu.operations.lifecycle.amending import amend_receipt

        history = change.target.history(change.model)
        names = {one.request.name for one in statuses if one.status == "done"}
        left = [one for one in history.values() if one.get("id") in names and "erasure" not in one]
        if left:
            report = erase_history(change.target.source).to_dict()
            for receipt in left:
                amend_receipt(change.target.receipts, dict(receipt), erasure=report)

    def _settle(self, model: Any, history: _History, status: TriagedRequest) -> Outcome:
        outcome = self._outcome(model, history, status)
        self.book.settle(status.request.name or "", outcome)
        return outcome

    def _outcome(self, model: Any, history: _History, status: TriagedRequest) -> Outcome:
        name = status.request.name
        if status.status == "failed":
            merged = set(model.tasks)
            absent = [one for one in status.request.tasks if one not in merged]
            # Without the hints of the message, which name other owners.
            reason = f"not merged: {', '.join(map(repr, absent))}" if absent else status.problem
            return Outcome(status="failed", time=now_text(), reason=reason)
        own = [(path, receipt) for path, receipt in history.items() if receipt.get("id") == name]
        path, receipt = own[0] if own else (status.receipts[0], history.get(status.receipts[0], {}))
        erasure = receipt.get("erasure")
        told, is_erased = ([], False) if erasure is None else _erased(erasure)
        return Outcome(
            status="forgotten" if own else "done already",
            time=str(receipt.get("time", now_text())),
            receipt=Path(path).name,
            reason="; ".join(told if own else [_done_by(history, status.receipts), *told]),
            is_erased=is_erased,
        )


def _done_by(history: _History, receipts: Sequence[Path]) -> str:
    """Return which requests had done already what another one asks for."""
    told = []
    for path in receipts:
        receipt = history.get(path, {})
        name = f"request {receipt['id']!r}" if "id" in receipt else "a request without an id"
        told.append(f"{name} on {str(receipt.get('time', '?'))[:10]} ({path.name})")
    return f"its tasks were forgotten before by {', and by '.join(told)}"


def _erased(erasure: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return what is left of old commits, and whether all is done that anybody but the Hub can do."""
    from hf_clamu.hub.erase import UNCOLLECTED

    told = [f"{one['step']}: {one['reason']}" for one in erasure["steps_failed"]]
    others = [one for one in erasure["still_reachable"] if one["why"] != UNCOLLECTED]
    told += [f"{len(others)} old addresses still answer"] if others else []
    is_erased = not told
    num_small = len(erasure["still_reachable"]) - len(others)
    if num_small:
        told.append(f"{num_small} small files of old commits answer until the Hub collects its garbage")
    return told, is_erased
