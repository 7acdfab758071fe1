"""Audits of saved models: no data, no training, seconds.

The difference of two merged deltas is the integer vector of what left or joined. So the ledger's digest of that task
tells whether exactly its vector went. With linear digests the same holds for any number of tasks, and for a single
state: its delta is the sum of the vectors whose digests are kept, so nothing hidden is merged and nobody twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.layout import BASE_FOLDER
from hf_clamu.exact import TaskVector
from hf_clamu.exact.linear_digest import DIGEST_SHAPE, add_digests, linear_digest, security_bits, subtract_digests
from hf_clamu.merging import TaskRecord
from hf_clamu.proofs.derived import derived_checks, equal_tensors, rows_of
from hf_clamu.proofs.receipts import receipt_check
from hf_clamu.proofs.report import AuditReport, Check
from hf_clamu.storage import Archive

__all__ = ["audit_change", "audit_model"]

_WITHOUT_DIGESTS = (
    "the model keeps no linear digests (linear_digest: true keeps them), so only a rebuild shows it: clamu verify"
)
# Below the first digests may be forged, and show nothing; above the second the estimate itself means nothing.
_LEAST_BITS, _MOST_BITS = 100, 256


def audit_model(checkpoint: Checkpoint) -> AuditReport:
    """Check whether a merged delta is the sum of the vectors of the tasks in its ledger, and what follows from it.

    Args:
        checkpoint (`Checkpoint`): read with `strict`, so that its files are those that its ledger lists.
    """
    started = time.perf_counter()
    checks = [_files(checkpoint), _sum(checkpoint), *derived_checks(checkpoint)]
    return AuditReport(checks=tuple(checks), seconds=time.perf_counter() - started)


def audit_change(
    before: Checkpoint,
    after: Checkpoint,
    *,
    receipt: Mapping[str, Any] | None = None,
    archive: Archive | None = None,
) -> AuditReport:
    """Check whether one state is another one without the tasks that left it, and with those that joined it.

    Args:
        before, after (`Checkpoint`): read with `strict`.
        receipt (*mapping*, *optional*): of the request that lies between them.
        archive (`Archive`, *optional*): that still has the vectors of the tasks that left or joined; needed for
            several of them at once where no linear digests are kept.
    """
    started = time.perf_counter()
    checks = [_same_base(before, after), _same_recipe(before, after)]
    checks += [_retained(before, after), _difference(before, after, archive)]
    checks += [_sum(after, is_needed=False), *derived_checks(after, before)]
    if receipt is not None:
        checks.append(receipt_check(receipt, before, after))
    return AuditReport(checks=tuple(checks), seconds=time.perf_counter() - started)


def _files(checkpoint: Checkpoint) -> Check:
    count = 0 if checkpoint.files is None else len(checkpoint.files.entries)
    return Check(name="files", passed=True, text=f"{count} files have the SHA-256 that the ledger lists")


def _sum(checkpoint: Checkpoint, *, is_needed: bool = True) -> Check:
    """Check the sum of the linear digests of the ledger's tasks against that of the delta."""
    state, name = checkpoint.state, "sum"
    if not state.records:
        empty = all(not bool(steps.any()) for steps in state.delta.values())
        return Check(name=name, passed=empty, text="no task is merged, and the delta is zero" if empty else _HIDDEN)
    if state.linear_digests is None:
        return Check(name=name, passed=None, text=_WITHOUT_DIGESTS, is_needed=is_needed)
    expected = add_digests(state.linear_digests)
    if not torch.equal(linear_digest(state.delta), expected):
        return Check(name=name, passed=False, text=f"{_HIDDEN} ({len(state.records)} tasks)")
    return _by_digests(
        name,
        f"the delta is the sum of {len(state.records)} vectors, by their linear digests",
        _largest_bound(state.records.values()),
        is_needed=is_needed,
    )


def _by_digests(name: str, text: str, bound: int, *, is_needed: bool = True) -> Check:
    """Return a check that equal linear digests show; with bounds so wide that they can be forged they show nothing."""
    bits = security_bits(bound)
    if bits < _LEAST_BITS:
        why = f"equal linear digests show nothing where bounds add up to {bound:,} grid steps"
        return Check(name=name, passed=None, text=f"{why} (about 2^{bits:.0f} steps to forge)", is_needed=is_needed)
    effort = f"more than 2^{_MOST_BITS}" if bits > _MOST_BITS else f"about 2^{bits:.0f}"
    return Check(name=name, passed=True, text=f"{text} ({effort} steps to forge)")


_HIDDEN = "the merged delta is not the sum of the vectors of the ledger's tasks: something else is merged, or not all"


def _largest_bound(records: Iterable[TaskRecord]) -> int:
    """Return the largest sum of bounds that a parameter has, in grid steps."""
    total: dict[str, int] = {}
    for record in records:
        for name, bound in record.bounds.items():
            total[name] = total.get(name, 0) + bound
    return max(total.values(), default=0)


def _same_base(before: Checkpoint, after: Checkpoint) -> Check:
    ours, theirs = before.base.digest, after.base.digest
    same = ours == theirs and before.config.architecture == after.config.architecture
    same = same and before.state.delta.keys() == after.state.delta.keys() and equal_tensors(before.fresh, after.fresh)
    text = f"SHA-256 {str(ours)[:16]}… before, {str(theirs)[:16]}… after"
    if not same:
        return Check(name="base model", passed=False, text=f"{text}, or other weights take part")
    files_before, files_after = _base_files(before), _base_files(after)
    if files_before and files_after and files_before != files_after:  # what the configurations say is not enough
        text = f"{text} is what is said, but the files in {BASE_FOLDER}/ differ"
        return Check(name="base model", passed=None, text=f"{text}: save both with the same max_shard_size")
    return Check(name="base model", passed=True, text=text)


def _base_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each file that holds weights of an embedded base model."""
    entries = {} if checkpoint.files is None else checkpoint.files.entries
    weights = (name for name in entries if name.startswith(f"{BASE_FOLDER}/") and name.endswith(".safetensors"))
    return {name: entries[name].sha256 for name in weights}


def _same_recipe(before: Checkpoint, after: Checkpoint) -> Check:
    keys = ("arguments", "task_spec", "peft_config", "peft_merging", "task_ids", "public_rows")
    changed = [key for key in keys if getattr(before.config, key) != getattr(after.config, key)]
    text = f"changed: {', '.join(changed)}" if changed else "settings and task specification are the same"
    return Check(name="recipe", passed=not changed, text=text)


def _retained(before: Checkpoint, after: Checkpoint) -> Check:
    """Check that the entries of the tasks that are in both ledgers are the same, but for those that were updated."""
    ours, theirs = before.state.records, after.state.records
    both = [task_id for task_id in ours if task_id in theirs]
    updated = _updated(before, after)
    moved = [one for one in both if one not in updated and ours[one] != theirs[one]]
    if moved:
        text = f"{len(moved)} of {len(both)} retained tasks have another entry though their data did not change"
        return Check(name="retained tasks", passed=False, text=f"{text}: they were trained again, or exchanged")
    left, joined = len(ours) - len(both), len(theirs) - len(both)
    counts = [(left, "left"), (joined, "joined"), (len(updated), "got other data")]
    once = len({record.vector_digest for record in theirs.values()})
    counts.append((len(theirs) - once, "have the vector of another"))
    said = ", ".join(f"{count} {what}" for count, what in counts if count) or "none left or joined"
    return Check(name="retained tasks", passed=True, text=f"{len(both) - len(updated)} as they were; {said}")


def _updated(before: Checkpoint, after: Checkpoint) -> list[str]:
    ours, theirs = before.state.records, after.state.records
    return [one for one in ours if one in theirs and ours[one].data_digest != theirs[one].data_digest]


def _difference(before: Checkpoint, after: Checkpoint, archive: Archive | None) -> Check:
    """Check that the deltas differ by the vectors of the tasks that left and joined, and by nothing else."""
    name, ours, theirs = "difference", before.state.records, after.state.records
    updated = _updated(before, after)
    left = [(one, ours[one]) for one in ours if one not in theirs or one in updated]
    joined = [(one, theirs[one]) for one in theirs if one not in ours or one in updated]
    if not _fits(before, after):
        return Check(name=name, passed=False, text="the deltas are of other weights or shapes")
    if not left and not joined:
        same = all(not bool(steps.any()) for _, steps in _steps(before, after, 1))
        return Check(name=name, passed=same, text="none" if same else "the delta changed, and no task left or joined")
    if len(left) + len(joined) == 1:
        sign, (_, record) = (1, joined[0]) if joined else (-1, left[0])
        vector = TaskVector.of(_steps(before, after, sign), after.arguments.integer_bits)
        same = vector.digest == record.vector_digest and vector.bounds == dict(record.bounds)
        what = f"the vector of {'the task that joined' if joined else 'the task that left'}"
        digests = f"SHA-256 {vector.digest[:16]}…, the ledger says {record.vector_digest[:16]}…"
        return Check(name=name, passed=same, text=f"{what if same else f'not {what}'}: {digests}")
    return _several(before, after, left, joined, archive)


def _several(
    before: Checkpoint,
    after: Checkpoint,
    left: Sequence[tuple[str, TaskRecord]],
    joined: Sequence[tuple[str, TaskRecord]],
    archive: Archive | None,
) -> Check:
    name, count = "difference", len(left) + len(joined)
    if _keeps_digests(before) and _keeps_digests(after):
        gone, come = _digests_of(before, left), _digests_of(after, joined)
        expected = subtract_digests(add_digests(come), add_digests(gone))
        same = torch.equal(linear_digest(dict(_steps(before, after, 1))), expected)
        what = f"the vectors of the {count} tasks that left or joined, by their linear digests"
        # A difference lies within the bounds of both states, and the sum of vectors within those of the tasks.
        bound = _largest_bound([*before.state.records.values(), *after.state.records.values()])
        return _by_digests(name, what, bound) if same else Check(name=name, passed=False, text=f"not {what}")
    if archive is None:
        text = (
            f"{count} tasks left or joined at once, of which the ledgers have a SHA-256 each and no linear digest: "
            "audit each step between, give the archive of their vectors (--archive), or clamu verify"
        )
        return Check(name=name, passed=None, text=text)
    shapes = {parameter: steps.shape for parameter, steps in after.state.delta.items()}
    rest = dict(_steps(before, after, 1))
    for sign, tasks in ((1, left), (-1, joined)):
        for task_id, record in tasks:
            bits = after.arguments.integer_bits
            vector = archive.read(task_id, record.vector_digest, record.bounds, shapes, least_bits=bits)
            for parameter, n in vector.steps.items():
                rest[parameter] += sign * n.to(torch.int64)
    same = all(not bool(steps.any()) for steps in rest.values())
    what = f"the archived vectors of the {count} tasks that left or joined"
    return Check(name=name, passed=same, text=what if same else f"not {what}")


def _fits(before: Checkpoint, after: Checkpoint) -> bool:
    ours, theirs = before.state.delta, after.state.delta
    return ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)


def _steps(before: Checkpoint, after: Checkpoint, sign: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a delta became minus what it was, or with the other sign, int64 by parameter."""
    for name, ours in before.state.delta.items():
        yield name, sign * (after.state.delta[name].to(torch.int64) - ours.to(torch.int64))


def _keeps_digests(checkpoint: Checkpoint) -> bool:
    return checkpoint.state.linear_digests is not None or not checkpoint.state.records


def _digests_of(checkpoint: Checkpoint, tasks: Sequence[tuple[str, TaskRecord]]) -> torch.Tensor:
    digests = checkpoint.state.linear_digests
    if digests is None:
        return torch.zeros((0, *DIGEST_SHAPE), dtype=torch.int32)
    return rows_of(checkpoint, digests, [task_id for task_id, _ in tasks])
