"""Which request is meant, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
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
        files (*mapping* of `str` to `str`): SHA-256 of the model's files by their names, as they are now; empty if
            they are in an older format, whose files a verification writes anew.
    """

    file: Path
    receipt: Mapping[str, Any]
    later: tuple[Path, ...]
    now: str
    has_keyed_ids: bool
    files: Mapping[str, str] = field(default_factory=dict)

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
        if finding.state == self.now and any(
            finding.result.get("files", {}).get(name, digest) != digest for name, digest in self.files.items()
        ):
            return "is about files that the model no longer has, though the state is the same"
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
    _require_erasure(wanted[0], receipt.get("erasure", {}))
    same = [path for path in leading if statements.receipts[path]["digests"] == receipt["digests"]]
    case = Case(
        file=wanted[0],
        receipt=receipt,
        later=tuple(leading[max(map(leading.index, same)) + 1 :]),
        now=now.state_digest,
        has_keyed_ids=now.has_keyed_ids,
        files=_files_of(now),
    )
    if case.after == case.now and receipt["num_tasks"]["after"] != len(now.state.records):
        raise CheckpointFormatError(
            f"{case.file} says that {receipt['num_tasks']['after']} tasks are merged, and the ledger of {model} has "
            f"{len(now.state.records)}: it was edited. Ask who made it for the receipt as it was written."
        )
    return case


def _files_of(now: Checkpoint) -> dict[str, str]:
    if now.files is None or now.files.format_version != FORMAT_VERSION:
        return {}
    return {name: entry.sha256 for name, entry in now.files.entries.items()}


def _require_erasure(file: Path, erasure: Mapping[str, Any]) -> None:
    """Refuse what is not as `clamu erase` writes it; one of another release may have fewer entries."""
    wrong = [key for key, check in _ERASURE.items() if key in erasure and not check(erasure[key])]
    if wrong:
        raise CheckpointFormatError(
            f"{file} has an erasure that is not as clamu erase writes it ({', '.join(wrong)}): it was edited. Ask who "
            "made it for the receipt as it was written."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and all(map(_is_text, row.values())) for row in value)


_ERASURE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("repo_id", "kept_revision", "kept_commit"), _is_text),
    **dict.fromkeys(("num_gone", "num_unchanged"), _is_count),
    **dict.fromkeys(("steps_done", "old_commits", "gone", "not_checked"), _are_texts),
    **dict.fromkeys(("steps_failed", "still_reachable", "descendants"), _are_rows),
    "deleted": lambda value: isinstance(value, dict) and all(map(_are_texts, value.values())),
}
