"""Comparing the state before a request with its result: weights, memberships, and scores where data are at hand."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from hf_clamu.errors import SnapshotError, TaskDataError
from hf_clamu.exact import pack_mask
from hf_clamu.exact.bit_flips import same_bits
from hf_clamu.merging import MergedState, recorded_scores, score_tasks
from hf_clamu.operations.effects.values import ChangeEffect, ClusterEffect, TaskEffect, mean_of
from hf_clamu.operations.request import ChangeResult, Request, RequestKind
from hf_clamu.resources import with_stages
from hf_clamu.tasks import traits_of
from hf_clamu.training import TaskTrainer

__all__ = ["measure_effect"]


def measure_effect(
    request: Request, result: ChangeResult | None, kind: RequestKind, named: Sequence[str], *, measures: bool
) -> ChangeEffect:
    """Compare the state before a request with its result.

    Memberships and storage cost nothing. Scores that the states have are taken from there, tasks that are served by
    the same weights need none, and the others are measured where their data are at hand.

    Args:
        request (`Request`): on the state before.
        result (`ChangeResult`, *optional*): with the state after; `None` if nothing changes.
        kind (`str`): of the request.
        named (*sequence* of `str`): its tasks, under the ledger's ids.
        measures (`bool`): measure what is not recorded.
    """
    started = time.perf_counter()
    before = request.checkpoint.state
    after = before if result is None else result.checkpoint.state
    gone = set(named)
    retained = [task_id for task_id in before.task_ids if task_id in after.records and task_id not in gone]
    places = {task_id: (old, new) for task_id, old, new in _places(before, after, retained)}
    weights = _Weights(before, after) if retained and after is not before else None
    changed = {task_id: weights is not None and weights.differ(*places[task_id]) for task_id in retained}
    scores = _scores(request, result, changed, measures=measures)
    kept, effects = set(retained), {}

    @functools.cache  # tasks of the same two clusters move alike, or not
    def have_moved(old: int, new: int) -> bool:
        return kept.intersection(before.clusters[old]) != kept.intersection(after.clusters[new])

    for task_id, (old, new) in places.items():
        effects[task_id] = TaskEffect(
            cluster_before=before.cluster_names[old],
            cluster_after=after.cluster_names[new],
            moved=have_moved(old, new),
            changed=changed[task_id],
            num_validation=after.records[task_id].num_validation,
            score_before=scores[task_id][0] if task_id in scores else None,
            score_after=scores[task_id][1] if task_id in scores else None,
        )
    return ChangeEffect(
        request=kind,
        num_tasks_before=len(before.records),
        num_tasks_after=len(after.records),
        tasks=effects,
        clusters=_clusters(before, after, effects),
        num_bytes_before=before.num_bytes,
        num_bytes_after=after.num_bytes,
        global_score_before=_global_score(before),
        global_score_after=_global_score(after),
        metric=traits_of(request.checkpoint.task_spec.kind).metric,
        seconds=with_stages({} if result is None else result.seconds, compare=time.perf_counter() - started),
    )


def _places(before: MergedState, after: MergedState, task_ids: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the numbers of the clusters of each task, before and after."""
    old, new = before.cluster_numbers(), after.cluster_numbers()
    return [(task_id, old[task_id], new[task_id]) for task_id in task_ids]


class _Weights:
    """Tells whether two clusters, of the state before and of the one after, serve by other weights.

    Args:
        before, after (`MergedState`): with the same parameters.
    """

    def __init__(self, before: MergedState, after: MergedState) -> None:
        self._states = before, after
        self._known: dict[tuple[int, int], bool] = {}
        # Packed, as masks are, eight weights to a byte: what differs under the same scale, and under another one.
        self._differing = {name: pack_mask(before.delta[name] != steps) for name, steps in after.delta.items()}
        self._moved = {
            name: pack_mask((before.delta[name] != 0) | (steps != 0)) for name, steps in after.delta.items()
        }

    def differ(self, old: int, new: int) -> bool:
        """Whether cluster `old` before serves by other weights than cluster `new` after."""
        if (old, new) not in self._known:
            self._known[old, new] = any(self._differ_in(name, old, new) for name in self._differing)
        return self._known[old, new]

    def _differ_in(self, name: str, old: int, new: int) -> bool:
        before, after = self._states
        first, second = before.mask(old), after.mask(new)
        bits = first.of(name)
        if not same_bits(bits, second.of(name)):
            return True
        same_scale = before.served_alpha * first.factor(name) == after.served_alpha * second.factor(name)
        return bool(torch.any((self._differing if same_scale else self._moved)[name] & bits))


def _scores(
    request: Request, result: ChangeResult | None, changed: Mapping[str, bool], *, measures: bool
) -> dict[str, tuple[float, float]]:
    """Return the scores of tasks before and after, where they are recorded or can be measured."""
    before = request.checkpoint.state
    after = before if result is None else result.checkpoint.state
    old, new = recorded_scores(before), recorded_scores(after)
    for task_id in (one for one, is_other in changed.items() if not is_other):  # the same weights give the same score
        score = old.get(task_id, new.get(task_id))
        if score is not None:
            old[task_id] = new[task_id] = score
    tasks = None if result is None else result.tasks
    if measures and tasks is not None:
        unknown = [one for one, is_other in changed.items() if is_other and not (one in old and one in new)]
        unknown = [one for one in unknown if one in tasks and tasks.has_validation(one)]
        if unknown:

            def measured(trainer: TaskTrainer) -> list[dict[str, float]]:
                readable = [one for one in unknown if _is_readable(one, trainer, after)]
                return [score_tasks(trainer, state, readable) for state in (before, after)]

            context = replace(request.context(tasks), journal=None, archive=None, local_models=None)
            (first, second), _ = context.run(measured, adds=False)
            old |= first
            new |= second
    return {task_id: (old[task_id], new[task_id]) for task_id in changed if task_id in old and task_id in new}


def _global_score(state: MergedState) -> float | None:
    return None if state.scores is None else float(state.scores["mean"]["global"])


def _is_readable(task_id: str, trainer: TaskTrainer, state: MergedState) -> bool:
    """Whether the data of a task are at hand as they were merged; a request that needs them has refused others."""
    try:
        return trainer.encoded(task_id).digest == state.records[task_id].data_digest
    except (SnapshotError, TaskDataError):
        return False


def _clusters(before: MergedState, after: MergedState, tasks: Mapping[str, TaskEffect]) -> dict[str, ClusterEffect]:
    old, new = (dict(zip(state.cluster_names, state.clusters, strict=True)) for state in (before, after))
    return {
        name: ClusterEffect(
            num_tasks_before=len(old.get(name, ())),
            num_tasks_after=len(new.get(name, ())),
            score_before=mean_of(tasks[one].score_before for one in old.get(name, ()) if one in tasks),
            score_after=mean_of(tasks[one].score_after for one in new.get(name, ()) if one in tasks),
        )
        for name in dict.fromkeys((*old, *new))
    }
