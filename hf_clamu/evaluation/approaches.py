"""Ways to serve many owners and to forget any of them, measured alike: accuracy, storage, and what a request costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hf_clamu.tasks import Example
from hf_clamu.training import LiveModel, Progress, logits_and_labels, silent_progress

__all__ = ["Approach", "Measured", "label_probabilities", "labels_of_examples", "measure_approach"]

# How many owners are served in turn to time what it takes to serve another one.
_SERVED = 8


class Approach(Protocol):
    """A way to serve many owners and to forget any of them; a request leaves what a build without its owner gives."""

    @property
    def needs_owner(self) -> bool:
        """Whether an input is answered only if its owner is known."""
        ...

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The owners that it serves at the moment."""
        ...

    @property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """The owners that share a mask, or nothing where there are no masks."""
        ...

    @property
    def stored_bytes(self) -> int:
        """The size of all files that serving needs."""
        ...

    def serve(self, task_id: str) -> None:
        """Bring what answers an owner's inputs into the live model."""
        ...

    def answers(self, task_id: str) -> list[int]:
        """Return the label of each held-out example of an owner."""
        ...

    def forget(self, task_id: str) -> int:
        """Carry out a request, up to its files; return how many rows of other owners it read."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What an approach gives and costs; a request forgets one owner.

    Args:
        needs_owner (`bool`): whether an input is answered only if its owner is known.
        before (*dict* of `str` to `float`): held-out accuracy of each owner, in [0, 1].
        after (*dict* of `str` to `float`): the same of the owners that are left after all requests.
        stored_bytes (`int`): the size of all files that serving needs, before any request.
        request_seconds (`float`): the median of the requests.
        rows_of_others (`int`): the rows of other owners that a request read, at most.
        others_moved (`float`): owners who share a mask with others than before, the mean of the requests; the
            forgotten owner itself does not count.
        others_changed (`float`): owners with another answer to any held-out example, the mean of the requests.
        worst_drop (`float`): the most accuracy that a single request took from another owner, in [0, 1].
        cold_start_seconds (`float`): from serving one owner to serving another, the median.
        num_requests (`int`): requests that were carried out, one after the other.
    """

    needs_owner: bool
    before: dict[str, float]
    after: dict[str, float]
    stored_bytes: int
    request_seconds: float
    rows_of_others: int
    others_moved: float
    others_changed: float
    worst_drop: float
    cold_start_seconds: float
    num_requests: int

    @property
    def accuracy(self) -> float:
        """The mean over the owners, each counting the same."""
        return statistics.fmean(self.before.values())


def measure_approach(
    approach: Approach,
    labels: Mapping[str, Sequence[int]],
    requests: Sequence[str],
    *,
    progress: Progress = silent_progress,
) -> Measured:
    """Measure an approach, and forget some owners one after the other.

    Args:
        approach (`Approach`): built; it has forgotten the owners afterwards.
        labels (*mapping* of `str` to *sequence* of `int`): the right label of each held-out example, by owner.
        requests (*sequence* of `str`): owners to forget, at least one.
        progress (`Progress`, *optional*): shows how far it is.
    """
    stored_bytes, cold_start = approach.stored_bytes, _cold_start(approach)
    answers, before = _served(approach, labels)
    latest, seconds, rows, moved, changed, drops = before, [], [], [], [], [0.0]
    for task_id in progress(requests, "requests"):
        clusters = approach.clusters
        started = time.perf_counter()
        rows.append(approach.forget(task_id))
        seconds.append(time.perf_counter() - started)
        moved.append(_moved(clusters, approach.clusters, task_id))
        new_answers, scores = _served(approach, labels)
        changed.append(sum(given != answers[owner] for owner, given in new_answers.items()))
        drops += [latest[owner] - score for owner, score in scores.items()]
        answers, latest = new_answers, scores
    return Measured(
        needs_owner=approach.needs_owner,
        before=before,
        after=latest,
        stored_bytes=stored_bytes,
        request_seconds=statistics.median(seconds),
        rows_of_others=max(rows),
        others_moved=statistics.fmean(moved),
        others_changed=statistics.fmean(changed),
        worst_drop=max(drops),
        cold_start_seconds=cold_start,
        num_requests=len(requests),
    )


def _served(approach: Approach, labels: Mapping[str, Sequence[int]]) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Return the answers of all owners, and how many of each one's are right."""
    answers = {task_id: approach.answers(task_id) for task_id in approach.task_ids}
    hits = {one: [a == b for a, b in zip(given, labels[one], strict=True)] for one, given in answers.items()}
    return answers, {one: statistics.fmean(hit) for one, hit in hits.items()}


def _moved(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]], forgotten: str) -> int:
    """Return how many owners share a mask with others than before."""
    mates = {one: {*members} - {forgotten} for members in before for one in members}
    return sum(mates[one] != {*members} for members in after for one in members)


def _cold_start(approach: Approach) -> float:
    seconds = []
    for task_id in approach.task_ids[: _SERVED + 1]:
        started = time.perf_counter()
        approach.serve(task_id)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)  # the first one comes from nobody


@torch.no_grad()
def label_probabilities(live: LiveModel, examples: Sequence[Example], kind: str) -> torch.Tensor:
    """Return how probable a classifier finds each label.

    Args:
        live (`LiveModel`): holding the weights.
        examples (*sequence* of `Example`): at least one.
        kind (`str`): of the tasks, with a label per example.

    Returns:
        `torch.Tensor` of shape `(examples, labels)`, float32, on the CPU.
    """
    return torch.cat([logits.softmax(-1).cpu() for logits, _ in logits_and_labels(live, examples, kind)])


def labels_of_examples(examples: Sequence[Example]) -> list[int]:
    """Return the right label of each example of a classifier."""
    return [int(example["labels"]) for example in examples]
