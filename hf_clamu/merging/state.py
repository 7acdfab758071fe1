"""What a merged model is made of: values that builds and requests turn into one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_clamu.errors import ClusterNotFoundError, TaskNotFoundError
from hf_clamu.exact import ALL_WEIGHTS, DeltaAccumulator, PackedMask, VectorSum
from hf_clamu.tasks.near_names import hint_at_like

__all__ = ["MergedState", "PartialState", "TaskRecord", "require_merged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """What the ledger keeps of one merged task; none of it depends on other tasks.

    Args:
        vector_digest (`str`): SHA-256 of the integer task vector.
        data_digest (`str`, *optional*): SHA-256 of the task's tokenised data; None if it came without data.
        num_train (`int`): training examples.
        num_validation (`int`): held-out examples.
        bounds (*mapping* of `str` to `int`): `max |n_t|` per parameter, in grid steps.
        cluster_key (`str`, *optional*): the data's own cluster of the task.
        from_checkpoint (`bool`): whether the task was finetuned elsewhere, so that no recipe gives its vector.
        is_computed (`bool`): whether it came as an adapter of which libraries and device may show in the vector.
    """

    vector_digest: str
    data_digest: str | None
    num_train: int
    num_validation: int
    bounds: Mapping[str, int]
    cluster_key: str | None = None
    from_checkpoint: bool = False
    is_computed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; `bounds` as a list, in the order of the sorted parameter names."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["bounds"] = [self.bounds[name] for name in sorted(self.bounds)]
        for name in ("from_checkpoint", "is_computed"):
            if not values[name]:  # so that ledgers without such tasks keep their bytes
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], parameters: Sequence[str]) -> TaskRecord:
        """Read what `to_dict` wrote; other keys are ignored.

        Args:
            values (*mapping*): the values.
            parameters (*sequence* of `str`): the sorted parameter names.

        Raises:
            KeyError, TypeError, ValueError: if a value is missing or of the wrong kind.
        """
        return cls(
            vector_digest=values["vector_digest"],
            data_digest=values["data_digest"],
            num_train=int(values["num_train"]),
            num_validation=int(values["num_validation"]),
            bounds=dict(zip(parameters, map(int, values["bounds"]), strict=True)),
            cluster_key=values["cluster_key"],
            from_checkpoint=bool(values.get("from_checkpoint", False)),
            is_computed=bool(values.get("is_computed", False)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedState:
    """A merged model without its base: a value that is never changed, only replaced.

    Args:
        delta (*dict* of `str` to `torch.Tensor`, int8 to int64): the sum of the integer task vectors.
        records (*dict* of `str` to `TaskRecord`): the merged tasks, by sorted id.
        task_features (`torch.Tensor` of shape `(tasks, size)`, *optional*): a row per task, to cluster by.
        clusters (*tuple* of *tuple* of `str`): member ids of each cluster.
        cluster_names (*tuple* of `str`): a name for each, no two alike, see `name_clusters`.
        alpha (`float`): the scaling coefficient of the delta under the masks; 0 if no task is merged.
        global_alpha (`float`): that of the delta without a mask, which is the global model; 0 if no task is merged.
        masks (*tuple* of *dict* of `str` to `torch.Tensor`, uint8): packed mask of each cluster; empty if the
            localization makes none.
        factors (*tuple* of *dict* of `str` to `float`): what alpha is multiplied by under the mask of each cluster, a
            float32 value per parameter; empty if nothing is learned beside the masks.
        scores (*dict*, *optional*): held-out scores, see `score_clusters`.
        task_masks (*tuple* of *dict* of `str` to `torch.Tensor`, uint8): packed mask of each task, by sorted id, of
            which cluster masks are made; empty unless the localization keeps them.
        delta_digest (`str`, *optional*): SHA-256 of the delta, if it is known already.
        base_features (`torch.Tensor` of shape `(tasks, hidden_size)`, *optional*): the base model's feature of each
            task, if it is kept beside `task_features`; see `routing_features`.
        linear_digests (`torch.Tensor` of shape `(tasks, 2, 1024)`, int32, *optional*): of each task's vector.
    """

    delta: dict[str, torch.Tensor]
    records: dict[str, TaskRecord]
    task_features: torch.Tensor | None
    clusters: tuple[tuple[str, ...], ...]
    alpha: float
    global_alpha: float
    masks: tuple[dict[str, torch.Tensor], ...]
    factors: tuple[dict[str, float], ...] = ()
    scores: dict[str, Any] | None = None
    task_masks: tuple[dict[str, torch.Tensor], ...] = ()
    delta_digest: str | None = None
    cluster_names: tuple[str, ...] = ()
    base_features: torch.Tensor | None = None
    linear_digests: torch.Tensor | None = None

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Ids of the merged tasks, sorted."""
        return tuple(self.records)

    @property
    def has_mask_per_task(self) -> bool:
        """Whether each task is a cluster of its own, so that cluster masks are task masks."""
        return len(self.clusters) == len(self.records)

    @property
    def num_bytes(self) -> int:
        """What delta, masks, factors and rows of tasks take; a cluster of one task has the task's own mask."""
        masks = self.masks if self.has_mask_per_task else (*self.masks, *self.task_masks)
        rows = (self.task_features, self.base_features, self.linear_digests)
        kept = sum(tensor.nbytes for tensor in rows if tensor is not None) + 4 * sum(map(len, self.factors))
        return kept + sum(tensor.nbytes for part in (self.delta, *masks) for tensor in part.values())

    @property
    def served_alpha(self) -> float:
        """The scaling coefficient that tasks are served with: without masks, by the global model."""
        return self.alpha if self.masks else self.global_alpha

    def cluster_numbers(self) -> dict[str, int]:
        """Return the number of the cluster that serves each task, for those who ask for many."""
        return {task_id: number for number, members in enumerate(self.clusters) for task_id in members}

    def cluster_of(self, task_id: str) -> int:
        """Return the number of the cluster that serves a task.

        Raises:
            TaskNotFoundError: if no such task is merged.
        """
        if task_id not in self.records:
            require_merged([task_id], self.records)
        return next(number for number, members in enumerate(self.clusters) if task_id in members)

    def find_cluster(self, cluster: int | str) -> int:
        """Return the number of a cluster that is named by number or name.

        Raises:
            ClusterNotFoundError: if there is no such cluster.
            TypeError: if it is neither.
        """
        if isinstance(cluster, bool) or not isinstance(cluster, int | str):
            raise TypeError(f"cluster must be a name, a whole number or None, got {cluster!r}; for a task use task=.")
        if isinstance(cluster, str) and cluster in self.cluster_names:
            return self.cluster_names.index(cluster)
        count = len(self.clusters)
        if isinstance(cluster, int) and 0 <= cluster < count:
            return cluster
        if not count:
            raise ClusterNotFoundError(f"There is no cluster {cluster!r}; this model has none.")
        some = ", ".join(map(repr, self.cluster_names[:5])) + (", …" if count > 5 else "")
        raise ClusterNotFoundError(
            f"There is no cluster {cluster!r}; this model has {count}, numbered from 0 to {count - 1} and called "
            f"{some}. Requests may change both; a task's own cluster is always found by task= (--task)."
        )

    def mask(self, cluster: int) -> PackedMask:
        """Return the mask of a cluster; of ones if the localization makes none."""
        if not self.masks:
            return ALL_WEIGHTS
        return PackedMask(bits=self.masks[cluster], factors=self.factors[cluster] if self.factors else None)


@dataclass(frozen=True, kw_only=True)
class PartialState:
    """What is added up and kept of some tasks, before anything is derived from it.

    Args:
        total (`DeltaAccumulator` or `VectorSum`, *optional*): the sum of the task vectors; `None` of no task.
        records (*dict* of `str` to `TaskRecord`): the tasks, by sorted id.
        features (*dict* of `str` to `torch.Tensor`): what each task is clustered by; empty if by none.
        masks (*dict* of `str` to *dict*): packed mask of each task; empty unless the localization keeps them.
        base_features (*dict* of `str` to `torch.Tensor`): the feature of each task by the base model; perhaps empty.
        linear_digests (*dict* of `str` to `torch.Tensor`): of each task's vector; empty if none are kept.
    """

    total: DeltaAccumulator | VectorSum | None
    records: dict[str, TaskRecord]
    features: dict[str, torch.Tensor]
    masks: dict[str, dict[str, torch.Tensor]]
    base_features: dict[str, torch.Tensor] = field(default_factory=dict)
    linear_digests: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, state: MergedState) -> PartialState:
        """Return the part of a merged state that nothing was derived for."""
        features, base_features, linear_digests = (
            {} if rows is None else dict(zip(state.task_ids, rows, strict=True))
            for rows in (state.task_features, state.base_features, state.linear_digests)
        )
        total = VectorSum.of(state.delta, (record.bounds for record in state.records.values()))
        masks = dict(zip(state.task_ids, state.task_masks, strict=True)) if state.task_masks else {}
        return cls(
            total=total if state.records else None,
            records=dict(state.records),
            features=features,
            masks=masks,
            base_features=base_features,
            linear_digests=linear_digests,
        )

    @classmethod
    def empty(cls) -> PartialState:
        """Return the state of no tasks."""
        return cls(total=None, records={}, features={}, masks={})

    def without(self, task_ids: Iterable[str], total: DeltaAccumulator) -> PartialState:
        """Return what is kept of the other tasks.

        Args:
            task_ids (*iterable* of `str`): tasks that leave.
            total (`DeltaAccumulator`): the sum without them.
        """
        stay = self.records.keys() - set(task_ids)
        kept: dict[str, Any] = {
            name: {task_id: value for task_id, value in getattr(self, name).items() if task_id in stay}
            for name in ("records", "features", "masks", "base_features", "linear_digests")
        }
        return PartialState(total=total, **kept)


def require_merged(wanted: Iterable[str], present: Iterable[str]) -> None:
    """Check that all wanted ids are present.

    Only ids that look alike are suggested. Those that are a letter away belong to other owners: the asker need not
    know of them, and a wrong guess would forget their data.

    Raises:
        TaskNotFoundError: naming those that are absent.
    """
    known = dict.fromkeys(present)  # in their order, unlike a set
    absent = [task_id for task_id in dict.fromkeys(wanted) if task_id not in known]
    if not absent:
        return
    raise TaskNotFoundError(
        f"No merged task is called {', '.join(map(repr, absent[:5]))}{' …' if len(absent) > 5 else ''}; "
        f"{len(known)} are merged.{hint_at_like(absent, known)} It was never merged, or is forgotten already. "
        "List the merged ones with model.tasks or `clamu info`."
    )
