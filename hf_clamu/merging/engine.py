"""Merge, unmerge, add and update as functions from state to state.

Everything that depends on data is derived anew from the tasks that are there (`_derive`), by the same code for a build
and for an unmerge. That is why an unmerged state equals a state built without the forgotten tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_clamu.errors import DigestMismatchError, TaskAlreadyMergedError, TaskDataError
from hf_clamu.exact import DeltaAccumulator, TaskVector, VectorSum
from hf_clamu.merging.arguments import ClamuArguments
from hf_clamu.merging.clustering import cluster_tasks, sketch
from hf_clamu.merging.localization import ClusterVector, Localizer
from hf_clamu.merging.scoring import score_clusters
from hf_clamu.merging.sift import TaskMasks
from hf_clamu.merging.sources import deriving_reads_data, require_finetuning, require_local_models
from hf_clamu.merging.stages import map_shared, sum_vectors
from hf_clamu.merging.state import MergedState, TaskRecord, missing_tasks
from hf_clamu.merging.vectors import REBUILD, merged_vector
from hf_clamu.tasks import EncodedTask, TaskDataset
from hf_clamu.training import TaskTrainer

__all__ = [
    "add_tasks",
    "check_data",
    "merge_tasks",
    "unmerge_tasks",
    "update_tasks",
    "with_rows",
]


def merge_tasks(trainer: TaskTrainer, arguments: ClamuArguments) -> MergedState:
    """Build a merged state from all tasks of the trainer's data.

    Args:
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): the settings.

    Returns:
        `MergedState`: a function of the set of tasks, whatever their order.

    Source: ClAMU, Algorithm 1.
    """
    return _with(_Merged(total=None, records={}, rows={}, masks={}), trainer.tasks.task_ids, trainer, arguments)


def add_tasks(
    state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> MergedState:
    """Merge more tasks; the result equals a build with all of them.

    Raises:
        TaskAlreadyMergedError: if one is merged already.
        DigestMismatchError: if the data of a merged task has changed.
    """
    for task_id in task_ids:
        if task_id in state.records:
            raise TaskAlreadyMergedError(
                f"Task {task_id!r} is merged already. To replace its data, update it (update_task, clamu update)."
            )
    validated = any(map(trainer.tasks.has_validation, task_ids))
    if deriving_reads_data(state, arguments, validated):
        check_data(state, state.task_ids, trainer.tasks, trainer.encoded)
    keys = {task_id: record.cluster_key for task_id, record in state.records.items()}
    keys |= {task_id: trainer.tasks.cluster_key(task_id) for task_id in task_ids}
    count = _num_clusters(list(keys), keys.__getitem__, arguments)
    require_local_models(trainer, arguments, state.records, (), state.task_ids, count)
    return _with(_Merged.of(state), sorted(set(task_ids)), trainer, arguments)


def unmerge_tasks(
    state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> MergedState:
    """Take tasks out; the result equals a build without them.

    The vector of each is had again (see `merged_vector`), its digest is compared with the recorded one, and its
    integers are subtracted. Clusters, alpha and masks are derived from the retained tasks.

    Args:
        state (`MergedState`): the state before; it is not changed.
        task_ids (*sequence* of `str`): tasks to forget.
        trainer (`TaskTrainer`): live model and the data of the forgotten and the retained tasks.
        arguments (`ClamuArguments`): the settings of the build.

    Raises:
        TaskNotFoundError: if one is not merged.
        DigestMismatchError: if data changed or the retrained bits differ.

    Source: ClAMU, section 3.4 (unlearning: retrain the task, subtract, re-cluster, re-localize).
    """
    _check_retained(state, task_ids, trainer, arguments)
    return _derive(_without(state, task_ids, trainer), trainer, arguments, None)


def update_tasks(state: MergedState, new: TaskDataset, trainer: TaskTrainer, arguments: ClamuArguments) -> MergedState:
    """Give merged tasks other data; the result equals a build with the new data.

    Args:
        state (`MergedState`): the state before; it is not changed.
        new (`TaskDataset`): the new data of the tasks to update.
        trainer (`TaskTrainer`): live model and the data that was merged: of these tasks and of the retained ones.
        arguments (`ClamuArguments`): the settings of the build.

    Raises:
        TaskNotFoundError: if one is not merged.
        DigestMismatchError: if the old data changed or the retrained bits differ.
    """
    retained = _check_retained(state, new.task_ids, trainer, arguments)
    others = trainer.tasks.select([task_id for task_id in retained if task_id in trainer.tasks])
    after = trainer.on(others.merged_with(new))
    return _with(_without(state, new.task_ids, trainer), new.task_ids, after, arguments)


@dataclass
class _Merged:
    """What is added up and kept of some tasks, before anything is derived from it."""

    total: DeltaAccumulator | VectorSum | None
    records: dict[str, TaskRecord]
    rows: dict[str, torch.Tensor]
    masks: dict[str, dict[str, torch.Tensor]]

    @classmethod
    def of(cls, state: MergedState) -> _Merged:
        rows = {} if state.vectors is None else dict(zip(state.task_ids, state.vectors, strict=True))
        total = VectorSum.of(state.delta, (record.bounds for record in state.records.values()))
        masks = dict(zip(state.task_ids, state.task_masks, strict=True)) if state.task_masks else {}
        return cls(total=total if state.records else None, records=dict(state.records), rows=rows, masks=masks)


def _without(state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer) -> _Merged:
    """Subtract the vectors of merged tasks."""
    leaving = sorted(set(task_ids))
    # A local model that is at hand, or an archive, spares the retraining; its digest is checked.
    if trainer.archive is None:
        retrained = [task_id for task_id in leaving if not trainer.is_local(task_id)]
        check_data(state, retrained, trainer.tasks, trainer.encoded)

    def again(task_id: str) -> tuple[TaskVector, dict[str, Any]]:
        return merged_vector(trainer, task_id, state.records[task_id]), state.records[task_id].to_dict()

    def is_sound(task_id: str, entry: Mapping[str, Any]) -> bool:
        return bool(entry["vector_digest"] == state.records[task_id].vector_digest)

    merged = _Merged.of(state)
    summed = sum_vectors(trainer, [tuple(leaving)], again, is_sound=is_sound, description="retrain")
    with trainer.timed("finetune"), summed as sums:
        folder = None if trainer.journal is None else trainer.journal.folder
        total = DeltaAccumulator.restore(state.delta, [r.bounds for r in state.records.values()], folder)
        total.subtract(sums.total)
        sums.total.release()
    merged.total = total
    for task_id in leaving:
        del merged.records[task_id]
        merged.rows.pop(task_id, None)
        merged.masks.pop(task_id, None)
    return merged


def _check_retained(
    state: MergedState, leaving: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> list[str]:
    """Check the data and local models of the tasks that stay, if they are needed; return their ids."""
    missing_tasks(leaving, state.records)
    retained = [task_id for task_id in state.task_ids if task_id not in set(leaving)]
    keys = {task_id: record.cluster_key for task_id, record in state.records.items()}
    count = _num_clusters(retained, keys.__getitem__, arguments)
    require_local_models(trainer, arguments, state.records, leaving, retained, count)
    if deriving_reads_data(state, arguments):
        check_data(state, retained, trainer.tasks, trainer.encoded)
    return retained


def _with(merged: _Merged, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments) -> MergedState:
    """Finetune tasks, add their vectors, and derive the rest."""
    task_ids = tuple(sorted(task_ids))
    keys = {task_id: record.cluster_key for task_id, record in merged.records.items()}
    _require_keys(keys | {task_id: trainer.tasks.cluster_key(task_id) for task_id in task_ids}, arguments)
    require_finetuning(arguments, [task_id for task_id in task_ids if trainer.is_local(task_id)])
    trainer.check_texts(task_ids)
    rows = dict(merged.rows)
    task_masks = TaskMasks(trainer) if arguments.localization == "sift" else None
    if arguments.clustering == "features":
        with trainer.timed("features"):
            rows |= _features(trainer, task_ids)

    def finish(task_id: str) -> tuple[TaskVector, dict[str, Any]]:
        vector = trainer.vector(task_id)
        if trainer.archive is not None:
            trainer.archive.write(task_id, vector)
        if task_masks is not None:
            task_masks.keep(task_id, vector)
        data = trainer.encoded(task_id)
        record = TaskRecord(
            vector_digest=vector.digest,
            data_digest=data.digest,
            num_train=len(data.train),
            num_validation=len(data.validation),
            bounds=vector.bounds,
            cluster_key=data.cluster_key,
            from_checkpoint=trainer.is_local(task_id),
        )
        entry = record.to_dict()
        if trainer.journal is not None and trainer.local_vectors is not None and trainer.is_local(task_id):
            entry["checkpoint"] = trainer.local_vectors.fingerprint(task_id)
        if arguments.clustering == "task_vectors":
            entry["sketch"] = sketch(vector, arguments.seed).tolist()
        return vector, entry

    def is_sound(task_id: str, entry: Mapping[str, Any]) -> bool:
        if trainer.archive is not None and not trainer.archive.holds(task_id, entry["vector_digest"]):
            return False
        if task_masks is not None and not task_masks.holds(task_id, entry["vector_digest"]):
            return False
        data, checkpoint = trainer.encoded(task_id), None
        if trainer.local_vectors is not None and trainer.is_local(task_id):
            checkpoint = trainer.local_vectors.fingerprint(task_id)
        found = (entry["data_digest"], entry["cluster_key"], entry.get("checkpoint"))
        return bool(found == (data.digest, data.cluster_key, checkpoint))

    early = None if merged.records else _early_clusters(task_ids, rows, trainer, arguments)
    with trainer.timed("finetune"):
        summed = sum_vectors(
            trainer,
            early or [task_ids],
            finish,
            is_sound=is_sound,
            description="finetune",
            # Without data nothing is measured, neither for alpha nor for scores.
            is_last=arguments.localization == "global" and not trainer.tasks.has_rows and trainer.archive is None,
        )
        with summed as sums:
            parameters = sorted(trainer.workspace.shapes)
            found = {task_id: TaskRecord.from_dict(sums.entries[task_id], parameters) for task_id in task_ids}
            if arguments.clustering == "task_vectors":
                rows |= {task_id: torch.tensor(sums.entries[task_id]["sketch"]) for task_id in task_ids}
            if merged.total is not None:
                sums.total.add(merged.total)
            masks = dict(merged.masks)
            if task_masks is not None:
                masks |= task_masks.gathered({task_id: found[task_id].vector_digest for task_id in task_ids})
            records = dict(sorted((merged.records | found).items()))
            whole = _Merged(total=sums.total, records=records, rows=rows, masks=masks)
            return _derive(whole, trainer, arguments, sums.of if early else None)


def _features(trainer: TaskTrainer, task_ids: Sequence[str]) -> dict[str, torch.Tensor]:
    def work(task_id: str) -> dict[str, Any]:
        return {"data_digest": trainer.encoded(task_id).digest, "row": trainer.feature(task_id).tolist()}

    def is_sound(task_id: str, value: Any) -> bool:
        return bool(value["data_digest"] == trainer.encoded(task_id).digest)

    found = map_shared(trainer, "features", task_ids, work, is_sound=is_sound, description="features")
    # A float32 is the same after a trip through JSON, which writes float64 in full.
    return {task_id: torch.tensor(value["row"], dtype=torch.float32) for task_id, value in found.items()}


def _derive(
    merged: _Merged, trainer: TaskTrainer, arguments: ClamuArguments, cluster_sum: ClusterVector | None
) -> MergedState:
    """Derive clusters, alpha and masks from the tasks that are there; the sum is released."""
    assert isinstance(merged.total, DeltaAccumulator), "something was added or subtracted"
    # With a journal it is mapped from a file, but for what became narrower: while masks are trained, memory is for
    # what every step touches.
    delta, records = merged.total.narrowed(copy=False), merged.records
    merged.total.release()
    vectors = torch.stack([merged.rows[task_id] for task_id in records]) if merged.rows else None
    if not records:
        return MergedState(delta=delta, records={}, vectors=None, clusters=(), alpha=0.0, masks=())
    keys = {task_id: record.cluster_key for task_id, record in records.items()}
    clusters = _clusters(keys, vectors, arguments)

    def cluster_vector(members: Sequence[str]) -> dict[str, torch.Tensor]:
        if len(clusters) == 1:
            return delta  # the sum over all tasks
        if cluster_sum is not None:
            return cluster_sum(members)
        own = DeltaAccumulator(trainer.workspace.shapes)
        for task_id in members:
            own.add(merged_vector(trainer, task_id, records[task_id]))
        return own.narrowed(copy=False)

    vector_source: ClusterVector = cluster_vector
    digests = {task_id: record.vector_digest for task_id, record in records.items()}
    localizer = Localizer(trainer, delta, clusters, arguments, arguments.seed, vector_source, digests, merged.masks)
    with trainer.timed("localize"):
        alpha, masks = localizer.run()
    scores = None
    if arguments.score_validation and any(record.num_validation for record in records.values()):
        with trainer.timed("score"):
            scores = score_clusters(trainer, delta, alpha, clusters, masks)
    return MergedState(
        delta=delta,
        records=records,
        vectors=vectors,
        clusters=clusters,
        alpha=alpha,
        masks=masks,
        scores=scores,
        task_masks=tuple(merged.masks[task_id] for task_id in records) if merged.masks else (),
    )


def _clusters(
    keys: Mapping[str, str | None], vectors: torch.Tensor | None, arguments: ClamuArguments
) -> tuple[tuple[str, ...], ...]:
    """Group tasks (the keys of `keys`, in order) by their vectors or by the data's own clusters."""
    _require_keys(keys, arguments)
    given = {task_id: key for task_id, key in keys.items() if key is not None}
    return cluster_tasks(arguments, tuple(keys), arguments.seed, vectors=vectors, keys=given)


def _require_keys(keys: Mapping[str, str | None], arguments: ClamuArguments) -> None:
    if arguments.clustering == "column" and None in keys.values():
        raise TaskDataError(
            "clustering='column' needs the data's own clusters: name a cluster_column, or choose another clustering."
        )


def _num_clusters(task_ids: Sequence[str], key_of: Callable[[str], str | None], arguments: ClamuArguments) -> int:
    """Return how many clusters some tasks will have."""
    if arguments.clustering == "column":
        return len({key_of(task_id) for task_id in task_ids})
    return len(task_ids) if arguments.clustering == "none" else min(arguments.num_clusters, len(task_ids))


def _early_clusters(
    task_ids: Sequence[str], rows: dict[str, torch.Tensor], trainer: TaskTrainer, arguments: ClamuArguments
) -> tuple[tuple[str, ...], ...] | None:
    """Return the clusters, if a local method needs their sums and they are known before finetuning.

    Sums per cluster spare a build the second pass over all tasks that TALL and EMR otherwise cost.
    """
    if arguments.localization not in ("tall", "emr") or arguments.clustering == "task_vectors" or not task_ids:
        return None
    vectors = torch.stack([rows[task_id] for task_id in task_ids]) if rows else None
    return _clusters({task_id: trainer.tasks.cluster_key(task_id) for task_id in task_ids}, vectors, arguments)


def check_data(
    state: MergedState, task_ids: Sequence[str], tasks: TaskDataset, encoded: Callable[[str], EncodedTask]
) -> None:
    """Check that the data of merged tasks are those that were merged.

    Args:
        state (`MergedState`): with the recorded digests.
        task_ids (*sequence* of `str`): the tasks to check.
        tasks (`TaskDataset`): the data.
        encoded (*callable*): gives a task's tokenised data.

    Raises:
        TaskDataError: if the data of a task are missing.
        DigestMismatchError: naming the first task whose data changed.
    """
    _require_rows(
        tasks,
        task_ids,
        "Give the rows of all merged tasks as they were merged, those that were added later included (data=, --data "
        "FILE for each file). Where the rows of a task that a request forgets or updates are deleted already, there "
        "is on_mismatch='rebuild' (clamu unmerge and update --on-mismatch rebuild): build from what is left.",
    )
    for task_id in task_ids:
        found, recorded = encoded(task_id).digest, state.records[task_id].data_digest
        if found != recorded:
            raise DigestMismatchError(
                f"The data of task {task_id!r} is not what was merged: its tokenised examples have SHA-256 "
                f"{str(found)[:16]}…, the ledger says {str(recorded)[:16]}…. Nothing was changed. Give the data as it "
                f"was at the merge, or {REBUILD}"
            )


def with_rows(tasks: TaskDataset, task_ids: Sequence[str]) -> TaskDataset:
    """Return the data of merged tasks to build from.

    Raises:
        TaskDataError: if the data of one are missing.
    """
    _require_rows(
        tasks,
        task_ids,
        "A build from the retained tasks needs the data of all of them: give it, or forget these tasks as well.",
    )
    return tasks.select(task_ids)


def _require_rows(tasks: TaskDataset, task_ids: Sequence[str], way_out: str) -> None:
    absent = [task_id for task_id in task_ids if task_id not in tasks]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise TaskDataError(f"In {tasks.origin} there are no rows of the merged task {absent[0]!r}{more}. {way_out}")
