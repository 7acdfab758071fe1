"""Adding tasks to what is merged: finetune them, add their vectors, and derive the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.exact import TaskVector
from hf_clamu.exact.linear_digest import linear_digest
from hf_clamu.merging.derivation import clusters_of, derive
from hf_clamu.merging.localization.task_masks import TaskMasks
from hf_clamu.merging.requirements import (
    keeps_base_features,
    require_finetuning,
    require_keys,
    require_public_rows,
)
from hf_clamu.merging.settings.arguments import ClamuArguments
from hf_clamu.merging.shared_work import map_shared
from hf_clamu.merging.state import MergedState, PartialState, TaskRecord
from hf_clamu.merging.summation import TaskSums, sum_vectors
from hf_clamu.training import TaskTrainer

__all__ = ["add_and_derive", "early_clusters"]

# In what the journal keeps of a task.
_LINEAR = "linear_digest"


def add_and_derive(
    before: PartialState, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> MergedState:
    """Finetune tasks, add their vectors, and derive clusters, alpha and masks of all.

    Args:
        before (`PartialState`): what is merged already.
        task_ids (*sequence* of `str`): the tasks to add.
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): the settings.
    """
    task_ids = tuple(sorted(task_ids))
    keys = {task_id: record.cluster_key for task_id, record in before.records.items()}
    require_keys(keys | {task_id: trainer.tasks.cluster_key(task_id) for task_id in task_ids}, arguments)
    require_public_rows(arguments, bool(trainer.anchors))
    require_finetuning(arguments, [task_id for task_id in task_ids if trainer.is_local(task_id)])
    trainer.check_texts(task_ids)
    work = _Addition(trainer, arguments)
    features, base_features = _data_features(task_ids, trainer, arguments)
    with trainer.timed("cluster"):
        early = None if before.records else early_clusters(task_ids, features, trainer, arguments)
    before = replace(before, features=before.features | features, base_features=before.base_features | base_features)
    with contextlib.ExitStack() as stack:
        with trainer.timed("add"):  # what it is made of, and what follows, has its own times
            sums = stack.enter_context(sum_vectors(trainer, early or [task_ids], work))
            whole = work.added(before, task_ids, sums)
        return derive(whole, trainer, arguments, sums.of if early else None)


class _Addition:
    """Finetunes tasks and keeps what the ledger and the methods need of each, as the work of `sum_vectors`."""

    description = "finetune"

    def __init__(self, trainer: TaskTrainer, arguments: ClamuArguments) -> None:
        self._trainer = trainer
        self._arguments = arguments
        localization = arguments.localization_method
        self._clustering = arguments.clustering_method
        self._makes_sketches = self._clustering.feature_source == "task_vector"
        self._task_masks = TaskMasks(trainer, localization) if localization.keeps_task_masks else None
        # Without data nothing is measured, neither for alpha nor for scores.
        self.is_last = not localization.makes_masks and not trainer.tasks.has_rows and trainer.archive is None

    def finish(self, task_id: str) -> tuple[TaskVector, dict[str, Any]]:
        trainer = self._trainer
        vector = trainer.vector(task_id)
        if trainer.archive is not None:
            trainer.archive.write(task_id, vector)
        if self._task_masks is not None:
            with trainer.timed("localize"):
                self._task_masks.keep(task_id, vector)
        data = trainer.encoded(task_id)
        record = TaskRecord(
            vector_digest=vector.digest,
            data_digest=data.digest,
            num_train=len(data.train),
            num_validation=len(data.validation),
            bounds=vector.bounds,
            cluster_key=data.cluster_key,
            from_checkpoint=trainer.is_local(task_id),
            is_computed=trainer.is_computed(task_id),
        )
        entry = record.to_dict()
        if trainer.journal is not None and trainer.is_local(task_id):
            entry["checkpoint"] = self._checkpoint_digest(task_id)
        if self._makes_sketches:
            with trainer.timed("features"):
                feature = self._clustering.vector_feature(vector, self._arguments.seed)
            entry["row"] = _kept(feature, self._clustering.feature_dtype)
        if self._arguments.linear_digest is True:
            with trainer.timed("digest"):
                entry[_LINEAR] = linear_digest(vector.steps)
        return vector, entry

    def is_sound(self, task_id: str, entry: Mapping[str, Any]) -> bool:
        trainer, digest = self._trainer, entry["vector_digest"]
        if trainer.archive is not None and not trainer.archive.holds(task_id, digest):
            return False
        if self._task_masks is not None and not self._task_masks.holds(task_id, digest):
            return False
        if self._makes_sketches != ("row" in entry):  # of a release that wrote it otherwise
            return False
        data = trainer.encoded(task_id)
        expected = (data.digest, data.cluster_key, self._checkpoint_digest(task_id))
        return bool((entry["data_digest"], entry["cluster_key"], entry.get("checkpoint")) == expected)

    def _checkpoint_digest(self, task_id: str) -> str | None:
        """Return a digest of the task's local model; None if it is finetuned here."""
        local = self._trainer.local_vectors
        return local.fingerprint(task_id) if local is not None and task_id in local else None

    def added(self, before: PartialState, task_ids: Sequence[str], sums: TaskSums) -> PartialState:
        """Return what was merged before, with the features of the new tasks, together with what was added up now."""
        parameters = sorted(self._trainer.workspace.shapes)
        records = {task_id: TaskRecord.from_dict(sums.entries[task_id], parameters) for task_id in task_ids}
        features, masks, digests = dict(before.features), dict(before.masks), dict(before.linear_digests)
        if self._makes_sketches:
            features |= {task_id: sums.entries[task_id]["row"] for task_id in task_ids}
        if self._arguments.linear_digest is True:
            digests |= {task_id: sums.entries[task_id][_LINEAR] for task_id in task_ids}
        if before.total is not None:
            sums.total.add(before.total)
        if self._task_masks is not None:
            masks |= self._task_masks.gather({task_id: record.vector_digest for task_id, record in records.items()})
        records = dict(sorted((before.records | records).items()))
        return replace(
            before, total=sums.total, records=records, features=features, masks=masks, linear_digests=digests
        )


def _data_features(
    task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the features that the clustering makes of the tasks' data, and those that are kept for routing."""
    method = arguments.clustering_method

    def base_feature(task_id: str) -> torch.Tensor | None:
        try:
            return trainer.prompt_feature(task_id)
        except RecipeError:  # the architecture shows none
            return None

    features: dict[str, torch.Tensor] = {}
    base_features: dict[str, torch.Tensor] = {}
    if method.feature_source == "data":
        make = partial(method.data_feature, trainer)
        features = _mapped("features", task_ids, trainer, make, method.feature_dtype)
    if trainer.tasks.has_rows and keeps_base_features(arguments, trainer.tasks.spec.kind):
        base_features = _mapped("base features", task_ids, trainer, base_feature)
    return features, base_features


def _mapped(
    stage: str,
    task_ids: Sequence[str],
    trainer: TaskTrainer,
    make: Callable[[str], torch.Tensor | None],
    dtype: torch.dtype | None = torch.float32,
) -> dict[str, torch.Tensor]:
    """Make a feature of each task; tasks without one are left out."""

    def work(task_id: str) -> dict[str, Any]:
        feature = make(task_id)
        row = None if feature is None else _kept(feature, dtype)
        return {"data_digest": trainer.encoded(task_id).digest, "row": row}

    def is_sound(task_id: str, value: Any) -> bool:
        is_row = value["row"] is None or isinstance(value["row"], torch.Tensor)
        return is_row and bool(value["data_digest"] == trainer.encoded(task_id).digest)

    with trainer.timed("features"):
        values = map_shared(trainer, stage, task_ids, work, is_sound=is_sound, description="features")
    return {task_id: value["row"] for task_id, value in values.items() if value["row"] is not None}


def _kept(feature: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a copy of a feature that holds no other memory, as it is saved."""
    return feature.detach().to("cpu", dtype, copy=True)


def early_clusters(
    task_ids: Sequence[str], features: Mapping[str, torch.Tensor], trainer: TaskTrainer, arguments: ClamuArguments
) -> tuple[tuple[str, ...], ...] | None:
    """Return the clusters, if the localization needs their sums and they are known before finetuning.

    Sums per cluster spare a build the second pass over all tasks that cluster vectors otherwise cost.

    Args:
        task_ids (*sequence* of `str`): all tasks of a build.
        features (*mapping* of `str` to `torch.Tensor`): their features, if the clustering makes some of the data.
        trainer (`TaskTrainer`): has the data.
        arguments (`ClamuArguments`): the settings.
    """
    is_late = arguments.clustering_method.feature_source == "task_vector"
    if not arguments.localization_method.needs_cluster_vectors or is_late or not task_ids:
        return None
    stacked = torch.stack([features[task_id] for task_id in task_ids]) if features else None
    return clusters_of({task_id: trainer.tasks.cluster_key(task_id) for task_id in task_ids}, stacked, arguments)
