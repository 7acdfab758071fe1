"""Merge, unmerge, add and update as functions from state to state.

Everything that depends on data is derived again from the tasks that are merged then (`derive`), by the same code for
all four.
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_clamu.errors import TaskAlreadyMergedError
from hf_clamu.merging.addition import add_and_derive
from hf_clamu.merging.derivation import derive
from hf_clamu.merging.recovery import subtract_tasks
from hf_clamu.merging.requirements import check_data, deriving_reads_data, require_recoverable
from hf_clamu.merging.settings.arguments import ClamuArguments
from hf_clamu.merging.state import MergedState, PartialState, require_merged
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import TaskTrainer

__all__ = ["add_tasks", "merge_tasks", "unmerge_tasks", "update_tasks"]


def merge_tasks(trainer: TaskTrainer, arguments: ClamuArguments) -> MergedState:
    """Build a merged state from all tasks of the trainer's data.

    Args:
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): the settings.

    Returns:
        `MergedState`: a function of the set of tasks, whatever their order.

    Source: ClAMU, Algorithm 1.
    """
    return add_and_derive(PartialState.empty(), trainer.tasks.task_ids, trainer, arguments)


def add_tasks(
    state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> MergedState:
    """Merge more tasks; the result equals a build with all of them.

    Args:
        state (`MergedState`): the state before; it is not changed.
        task_ids (*sequence* of `str`): tasks to add.
        trainer (`TaskTrainer`): live model and the data of the merged and the added tasks.
        arguments (`ClamuArguments`): the settings of the build.

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
    require_recoverable(trainer, arguments, state.records, (), keys)
    return add_and_derive(PartialState.of(state), sorted(set(task_ids)), trainer, arguments)


def unmerge_tasks(
    state: MergedState, task_ids: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> MergedState:
    """Take tasks out; the result equals a build without them.

    The vector of each is recovered (see `merged_vector`), its digest is compared with the recorded one, and its
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
    return derive(subtract_tasks(state, task_ids, trainer), trainer, arguments)


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
    return add_and_derive(subtract_tasks(state, new.task_ids, trainer), new.task_ids, after, arguments)


def _check_retained(
    state: MergedState, leaving: Sequence[str], trainer: TaskTrainer, arguments: ClamuArguments
) -> list[str]:
    """Check the data and local models of the tasks that stay, if they are needed; return their ids."""
    require_merged(leaving, state.records)
    gone = set(leaving)
    retained = [task_id for task_id in state.task_ids if task_id not in gone]
    keys = {task_id: state.records[task_id].cluster_key for task_id in retained}
    require_recoverable(trainer, arguments, state.records, leaving, keys)
    if deriving_reads_data(state, arguments):
        check_data(state, retained, trainer.tasks, trainer.encoded)
    return retained
