"""What evidence does not show: some of it never, some because it was not checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_rebuilt", "not_shown"]

_NEVER = (
    "That copies elsewhere are gone: downloads, duplicates and forks, backups, caches, and freed blocks of disks.",
    "What the base model knew before, and what the same person wrote in the data of tasks that stay.",
    "That the person behind an id is who they say, and that all of their data stood under this id.",
    "That the program and the machine that made receipts, findings and this page were honest. Run the commands below "
    "on a machine that you trust.",
)


def not_shown(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that is not shown.

    Args:
        values (*mapping*): of the document, see `collect_evidence`.
    """
    return [*_of_checks(values), *_of_places(values), *_of_signature(values), *_NEVER]


def is_rebuilt(values: Mapping[str, Any]) -> bool | None:
    """Whether a build from the data of those who stay gave the same bytes; `None` if nobody compared them."""
    found = [one["result"]["identical"] for one in values["findings"] if one["kind"] == "verification"]
    return all(found) if found else None


def _of_checks(values: Mapping[str, Any]) -> Iterator[str]:
    audits = [one for one in values["findings"] if one["kind"] == "audit"]
    if is_rebuilt(values) is None:
        yield (
            "That every byte is what a build without these data gives: no result of a rebuild is at hand (clamu "
            "verify, which needs the data of all tasks that stay)."
        )
        if not any(one["result"]["of"] == "change" for one in audits):
            yield "That exactly the vectors of these tasks left: the model before was not at hand (clamu audit)."
        yield (
            "That vectors of tasks came of honest training on their owners' rows: each owner can check their own "
            "(clamu prove --data)."
        )
    states = {values["receipt"]["content"]["digests"]["after"]: "after the request"}
    states[values["model"]["state_digest"]] = "as it is now"
    for state, when in states.items():
        if is_rebuilt({"findings": [one for one in values["findings"] if one["state"] == state]}):
            continue
        missing = {
            f"{check['name']} ({check['text']})"
            for one in audits
            if one["state"] == state
            for check in one["result"]["checks"]
            if check["verdict"] == "not shown"
        }
        for text in sorted(missing):
            yield f"By the audit of the model {when}: {text}."
    if values["num_merged_now"] is None:
        yield (
            "Whether these tasks were merged again since: the receipt is without its private part. Their owners see "
            "it (clamu prove)."
        )
    if values["model"]["has_keyed_ids"]:
        yield "Which owners the keyed ids are: only who has the key can tell."
    if any(one["kind"] == "attack" for one in values["findings"]):
        yield "That data are forgotten because attacks are at chance: an attack may be too weak, or the rows too few."
        if values["num_merged_now"] is None or values["model"]["has_keyed_ids"]:
            yield "That the rows that were attacked are those of these tasks: who attacked says so."
    else:
        yield "What attacks find in the model: none was measured (clamu attack)."


def _of_places(values: Mapping[str, Any]) -> Iterator[str]:
    receipt = values["receipt"]["content"]
    for place, what in (
        ("archive", "vectors of these tasks in the archive"),
        ("snapshot", "kept rows of these tasks"),
    ):
        if receipt.get(place) in ("to be destroyed", "kept"):
            yield f"That the {what} are destroyed: the receipt says {receipt[place]!r}."
    if values["model"]["commit"] is not None and "erasure" not in receipt:
        yield (
            "That older commits on the Hub are gone: with this request nothing was erased there (clamu erase), and "
            "they hold the model as it was before."
        )
    erasure = receipt.get("erasure", {})
    for one in erasure.get("not_checked", ()):
        yield f"By the erasure on the Hub: {one}."


def _of_signature(values: Mapping[str, Any]) -> Iterator[str]:
    if values["signature"]["key_id"] is not None:
        yield "That nobody but its owner has the key, and that nothing was left out before the first signature."
    elif values["signature"]["signed_by"]:
        yield "Who signed model and receipt: there are signatures, and no public key was given to check them (--key)."
    else:
        yield "Who wrote the receipt: it is not signed, and whoever can write its folder can write receipts."
