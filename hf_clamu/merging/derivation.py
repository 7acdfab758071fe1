"""Clusters, alpha, masks and scores, derived from the tasks that are merged now.

A build and an unmerge derive by the same code from the same values. That is why an unmerged state equals a state that
was built without the forgotten tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_clamu.exact import DeltaAccumulator
from hf_clamu.merging.clustering.grouping import cluster_tasks, name_clusters
from hf_clamu.merging.localization.localizer import ClusterVector, Localizer, MaskProblem
from hf_clamu.merging.recovery import merged_vector
from hf_clamu.merging.requirements import require_keys
from hf_clamu.merging.scoring import at_least_base, score_clusters
from hf_clamu.merging.settings.arguments import ClamuArguments
from hf_clamu.merging.state import MergedState, PartialState, TaskRecord
from hf_clamu.training import TaskTrainer

__all__ = ["clusters_of", "derive", "names_of"]


def derive(
    merged: PartialState, trainer: TaskTrainer, arguments: ClamuArguments, cluster_sum: ClusterVector | None = None
) -> MergedState:
    """Derive clusters, alpha and masks from the tasks that are there; the sum is released.

    Args:
        merged (`PartialState`): with a total that something was added to or subtracted from.
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): the settings.
        cluster_sum (`ClusterVector`, *optional*): gives the sums of clusters, if they are known.
    """
    assert isinstance(merged.total, DeltaAccumulator), "something was added or subtracted"
    delta, records = _narrowed(merged.total, trainer), merged.records
    if not records:
        return MergedState(
            delta=delta, records={}, task_features=None, clusters=(), alpha=0.0, global_alpha=0.0, masks=()
        )
    features = _stacked(merged.features, records)
    keys = {task_id: record.cluster_key for task_id, record in records.items()}
    with trainer.timed("cluster"):
        clusters = clusters_of(keys, features, arguments)
        cluster_names = names_of(clusters, keys, features, arguments)
    problem = MaskProblem(
        delta=delta,
        clusters=clusters,
        arguments=arguments,
        run_seed=arguments.seed,
        cluster_vector=_ClusterVectors(trainer, records, delta if len(clusters) == 1 else None, cluster_sum),
        vector_digests={task_id: record.vector_digest for task_id, record in records.items()},
        task_masks=merged.masks,
    )
    with trainer.timed("localize"):
        localizer = Localizer(trainer, problem)
        alpha, masks = localizer.run()
        global_alpha = localizer.global_alpha(alpha)
    with trainer.timed("add"):
        delta_digest = problem.delta_digest
    scores = None
    if arguments.score_validation and any(record.num_validation for record in records.values()):
        with trainer.timed("score"):
            scores = score_clusters(trainer, delta, (alpha, global_alpha), clusters, masks)
        if arguments.global_scaling == "average":
            global_alpha, scores = at_least_base(global_alpha, scores)
    return MergedState(
        delta=delta,
        records=records,
        task_features=features,
        clusters=clusters,
        alpha=alpha,
        global_alpha=global_alpha,
        # Not copies: a cluster of one task has the task's own mask.
        masks=tuple(mask.bits for mask in masks if isinstance(mask.bits, dict)),
        factors=tuple(dict(mask.factors) for mask in masks if mask.factors is not None),
        scores=scores,
        task_masks=tuple(merged.masks[task_id] for task_id in records) if merged.masks else (),
        delta_digest=delta_digest,
        cluster_names=cluster_names,
        base_features=_stacked(merged.base_features, records),
        linear_digests=_stacked(merged.linear_digests, records),
    )


def _narrowed(total: DeltaAccumulator, trainer: TaskTrainer) -> dict[str, torch.Tensor]:
    """Return a sum in the narrowest integers, and release it.

    With a journal it is mapped from a file, but for what became narrower: while masks are trained, memory is for what
    every step touches.
    """
    with trainer.timed("add"):
        delta = total.narrowed(copy=False)
        total.release()
    return delta


def _stacked(features: Mapping[str, torch.Tensor], task_ids: Iterable[str]) -> torch.Tensor | None:
    return torch.stack([features[task_id] for task_id in task_ids]) if features else None


@dataclass(frozen=True)
class _ClusterVectors:
    """Gives the sum of the task vectors of a cluster's members, from where it costs least."""

    trainer: TaskTrainer
    records: Mapping[str, TaskRecord]
    total: dict[str, torch.Tensor] | None
    known: ClusterVector | None

    def __call__(self, members: Sequence[str]) -> dict[str, torch.Tensor]:
        if self.total is not None:  # there is one cluster, of all tasks
            return self.total
        if self.known is not None:
            return self.known(members)
        own = DeltaAccumulator(self.trainer.workspace.shapes, least_bits=self.trainer.codec.least_bits)
        for task_id in members:
            own.add(merged_vector(self.trainer, task_id, self.records[task_id]))
        return own.narrowed(copy=False)


def clusters_of(
    keys: Mapping[str, str | None], features: torch.Tensor | None, arguments: ClamuArguments
) -> tuple[tuple[str, ...], ...]:
    """Group tasks by their features or by the data's own clusters.

    Args:
        keys (*mapping* of `str` to `str` or `None`): the tasks, in order, with the data's own cluster of each.
        features (`torch.Tensor` of shape `(tasks, size)`, *optional*): what each task is clustered by.
        arguments (`ClamuArguments`): the settings.

    Raises:
        TaskDataError: if the clustering needs the data's own clusters, and there are none.
    """
    require_keys(keys, arguments)
    return cluster_tasks(arguments, tuple(keys), arguments.seed, task_features=features, keys=_given(keys))


def names_of(
    clusters: Sequence[Sequence[str]],
    keys: Mapping[str, str | None],
    features: torch.Tensor | None,
    arguments: ClamuArguments,
) -> tuple[str, ...]:
    """Return the name of each cluster.

    Args:
        clusters (*sequence* of *sequence* of `str`): their members.
        keys, features, arguments: as in `clusters_of`.
    """
    return name_clusters(arguments, clusters, arguments.seed, task_features=features, keys=_given(keys))


def _given(keys: Mapping[str, str | None]) -> dict[str, str]:
    return {task_id: key for task_id, key in keys.items() if key is not None}
