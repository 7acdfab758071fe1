"""Whether a receipt is that of a change from one state to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.exact import digest_json
from hf_clamu.models.requesting import recipe_of
from hf_clamu.operations.lifecycle.receipts import is_receipt, salted_ids
from hf_clamu.proofs.report import Check

__all__ = ["receipt_check"]


def receipt_check(receipt: Mapping[str, Any], before: Checkpoint, after: Checkpoint) -> Check:
    """Check a receipt against both states: digests, numbers of tasks, recipe, and the tasks if it names them.

    Args:
        receipt (*mapping*): its content; without its part `private` it names no task.
        before, after (`Checkpoint`): the states.
    """
    name = "receipt"
    if not is_receipt(receipt):
        return Check(name=name, passed=False, text="it lacks a field of a receipt, or was edited")
    odd = []
    states = {"before": before, "after": after}
    for when, checkpoint in states.items():
        if receipt["digests"][when] != checkpoint.state_digest:
            odd.append(f"the state {when} (SHA-256 {receipt['digests'][when][:16]}…)")
        if receipt["num_tasks"][when] != len(checkpoint.state.records):
            odd.append(f"the number of tasks {when} ({receipt['num_tasks'][when]})")
    if receipt["recipe_digest"] != digest_json(recipe_of(before.config)):
        odd.append("the recipe")
    named, changed = salted_ids(receipt), _changed(before, after)
    if receipt["num_requests"] == 1 and len(receipt["tasks"]) != len(changed):
        odd.append(f"the number of tasks that it names ({len(receipt['tasks'])}, and {len(changed)} changed)")
    elif receipt["num_requests"] == 1 and named is not None and set(named) != changed:
        odd.append("the tasks that it names")
    if odd:
        return Check(name=name, passed=False, text=f"it is of another change: {', '.join(odd)} do not fit")
    shown = "names the tasks" if named is not None else "has commitments to the tasks, and no salts to check them by"
    return Check(name=name, passed=True, text=f"of this change; it {shown}")


def _changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    ours, theirs = before.state.records, after.state.records
    return {one for one in (*ours, *theirs) if ours.get(one) != theirs.get(one)}
