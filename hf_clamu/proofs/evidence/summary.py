"""The evidence in a few plain sentences, for somebody who answers a letter."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_clamu.hub.erase import UNCOLLECTED

__all__ = ["Sentence", "day_of", "headline", "summary"]

_DONE = {"unmerge": "removed from", "add": "added to", "update": "replaced in"}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of the summary.

    Args:
        verdict (`str`): `"shown"`, `"open"` if nothing shows it, `"failed"` if the contrary was found.
        text (`str`): the sentence.
    """

    verdict: Literal["shown", "open", "failed"]
    text: str


def headline(values: Mapping[str, Any]) -> str:
    """Return what was done, and when.

    Args:
        values (*mapping*): of the document, see `collect_evidence`.
    """
    receipt = values["receipt"]["content"]
    count = len(receipt["tasks"])
    tasks = f"{count:,} task{'s' * (count != 1)}"
    return f"The data of {tasks} were {_DONE[receipt['request']]} the model on {day_of(receipt['time'])}."


def day_of(time: str) -> str:
    """Return the day of a time in ISO 8601, such as 27 November 2026."""
    day = datetime.datetime.fromisoformat(time)
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def summary(values: Mapping[str, Any]) -> list[Sentence]:
    """Return what is shown and what is not, the most important first.

    Args:
        values (*mapping*): of the document, see `collect_evidence`.
    """
    return [*_asked_again(values), *_exactness(values), *_present(values), *_hub(values), *_signed(values)]


def _asked_again(values: Mapping[str, Any]) -> Iterator[Sentence]:
    if "asked" not in values:
        return
    receipt, num_all, num_here = values["receipt"]["content"], *(values["num_asked"][key] for key in ("all", "here"))
    name = f"request {receipt['id']!r}" if "id" in receipt else "an earlier request"
    when = f"on {day_of(receipt['time'])} ({values['receipt']['file']})"
    start = f"Request {values['asked']!r} had nothing left to do"
    if num_here == num_all:
        text = f"{start}: {name} had done it {when}, and this is its evidence."
        yield Sentence(verdict="shown", text=text)
    elif num_here is None:
        text = f"{start}. This is the evidence of {name} {when}, whose receipt does not say any more for which tasks."
        yield Sentence(verdict="open", text=text)
    else:
        text = f"{start}, but this is the evidence for {num_here:,} of its {num_all:,} tasks: {name} had done"
        others = "Of the others it shows nothing; clamu queue list names their receipts."
        yield Sentence(verdict="open", text=f"{text} that {when}. {others}")


def _exactness(values: Mapping[str, Any]) -> Iterator[Sentence]:
    unmerged = values["receipt"]["content"]["request"] == "unmerge"
    aim = "a build without them" if unmerged else "a build with the data as they are now"
    audits = [one["result"] for one in values["findings"] if one["kind"] == "audit"]
    if any(one["verdict"] == "refuted" for one in audits):
        yield Sentence(verdict="failed", text="An audit of its files refutes what is claimed. See below which check.")
    states = {one["state"]: one["result"]["identical"] for one in values["findings"] if one["kind"] == "verification"}
    for state, identical in states.items():
        after = " after this request" if values["later"] and state != values["model"]["state_digest"] else ""
        what = aim if after or not values["later"] else "a build from the tasks in its ledger"
        is_same = f"{'was' if after else 'is'}{'' if identical else ' not'} byte for byte what"
        how = "This was checked by building it again and comparing every file."
        text = f"The model{after} {is_same} {what} gives. {how}"
        yield Sentence(verdict="shown" if identical else "failed", text=text)
    if states:
        return
    changes = [one for one in audits if one["of"] == "change"]
    if changes and all(one["verdict"] == "proven" for one in changes):
        text = "What changed in the model is exactly what these tasks had added to it, and nothing else."
        how = "This was checked by an audit of both states, without a rebuild."
        yield Sentence(verdict="shown", text=f"{text} {how}")
    elif any(one["of"] == "model" and one["verdict"] == "proven" for one in audits):
        text = "The model is the sum of the tasks in its ledger, and nothing hidden is in it."
        how = "This was checked by an audit of the model as it is, without a rebuild."
        yield Sentence(verdict="shown", text=f"{text} {how}")
    text = f"That the model is byte for byte what {aim} gives was not checked by building it again."
    yield Sentence(verdict="open", text=text)


def _present(values: Mapping[str, Any]) -> Iterator[Sentence]:
    later, merged = values["later"], values["num_merged_now"]
    unmerged = values["receipt"]["content"]["request"] == "unmerge"
    if unmerged and merged:
        yield Sentence(verdict="failed", text=f"{merged:,} of these tasks are in the model again.")
    elif unmerged and merged == 0:
        yield Sentence(verdict="shown", text="None of these tasks is in the ledger of the model as it is now.")
    if later:
        count = f"{len(later):,} later request{'s' * (len(later) != 1)}"
        text = f"The model was changed since: receipts of {count} lead from this state to the present one."
        yield Sentence(verdict="shown", text=text)
    else:
        yield Sentence(verdict="shown", text="The model as it is now is the one that this request led to.")


def _hub(values: Mapping[str, Any]) -> Iterator[Sentence]:
    erasure = values["receipt"]["content"].get("erasure")
    if erasure is None:
        if values["model"]["commit"] is not None:
            text = "Older versions of the model on the Hugging Face Hub were not erased with this request."
            yield Sentence(verdict="open", text=text)
        return
    reasons = [one.get("why") for one in erasure.get("still_reachable", ())]
    left, failed = sum(why != UNCOLLECTED for why in reasons), len(erasure.get("steps_failed", ()))
    if not {"still_reachable", "steps_failed"} <= erasure.keys():
        yield Sentence(verdict="open", text="The receipt does not say whether older versions on the Hub are gone.")
    elif left or failed:
        text = f"Older versions on the Hugging Face Hub are not gone as a whole: {left:,} old addresses still answer"
        more = f", and {failed} steps failed" if failed else ""
        yield Sentence(verdict="failed", text=f"{text}{more}.")
    else:
        gone = f"{erasure.get('num_gone', 0):,} old addresses were tried and no longer answer"
        yield Sentence(verdict="shown", text=f"Older versions were erased on the Hugging Face Hub: {gone}.")
        if reasons:
            text = f"{len(reasons):,} small files of old commits, such as ledgers, answer until the Hub collects its"
            yield Sentence(verdict="open", text=f"{text} garbage. Ledgers name tasks.")
    if erasure.get("descendants"):
        text = f"{len(erasure['descendants']):,} other models on the Hub were made from this one."
        yield Sentence(verdict="open", text=f"{text} They may still hold what was removed.")


def _signed(values: Mapping[str, Any]) -> Iterator[Sentence]:
    signature = values["signature"]
    if signature["key_id"] is not None:
        text = "Model and receipts are signed with a trusted key, and no signed receipt is missing."
        yield Sentence(verdict="shown", text=text)
    elif signature["signed_by"]:
        yield Sentence(verdict="open", text="The receipt is signed; the signature was not checked.")
    else:
        yield Sentence(verdict="open", text="The receipt is not signed.")
