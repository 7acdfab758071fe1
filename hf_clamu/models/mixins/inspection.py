"""What a live model says of what is merged into it."""

from __future__ import annotations

from typing import Any

import torch

from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.ledger import ledger_entries
from hf_clamu.merging import require_merged
from hf_clamu.models.state import LiveState, MergedWeights
from hf_clamu.operations.data import ledger_id, load_merged_tasks, with_ledger_ids
from hf_clamu.operations.effects.values import ChangeEffect
from hf_clamu.tasks import DataFiles, IdsSetting, TaskDataset

__all__ = ["InspectionMixin"]


class InspectionMixin:
    """Properties of the merged model, and where a live one keeps them."""

    _clamu: Any

    @property
    def _live(self) -> LiveState:
        live = self.__dict__.get("_clamu")
        if not isinstance(live, LiveState):
            raise TypeError("ClamuModel is not made directly: use ClamuModel.from_pretrained or ClamuTrainer.train.")
        return live

    @property
    def merged(self) -> MergedWeights:
        """The checkpoint that is merged into the live weights, and their switch; a request replaces them."""
        return self._live.merged

    # What `merged` was called; programs that look inside a model read it.
    _attached = merged

    @property
    def clamu_config(self) -> ClamuConfig:
        """The configuration that a saved model has in `config.json`."""
        return self.merged.checkpoint.config

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the merged tasks, sorted."""
        return self.merged.checkpoint.state.task_ids

    @property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """Member ids of each cluster."""
        return self.merged.checkpoint.state.clusters

    @property
    def cluster_names(self) -> tuple[str, ...]:
        """Name of each cluster, in the order of `clusters`; `set_cluster` takes it.

        With `clustering="none"` it is the task's id, with `"column"` the column's value (after `cluster:` if it could
        be taken for a number); otherwise two words and a few digits. A request seldom changes it, see
        [concepts](concepts.md#names-of-clusters).
        """
        return self.merged.checkpoint.state.cluster_names

    @property
    def cluster(self) -> int | None:
        """The number of the selected cluster; `None` for the global model."""
        return self.merged.switch.selected.cluster

    @property
    def ledger(self) -> dict[str, Any]:
        """The merged tasks with digests, example counts, bounds and clusters, as in `ledger.json`."""
        checkpoint = self.merged.checkpoint
        return {
            "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
            **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
            "source": checkpoint.source,
            **ledger_entries(checkpoint.state),
        }

    def state_digest(self) -> str:
        """Return the SHA-256 of everything that is merged; receipts name it, and `clamu info` prints it."""
        return self.merged.checkpoint.state_digest

    @property
    def task_features(self) -> torch.Tensor | None:
        """What the tasks are clustered by: features or sketches of shape `(tasks, size)`, by sorted id."""
        return self.merged.checkpoint.state.task_features

    @property
    def receipts(self) -> tuple[dict[str, Any], ...]:
        """Receipts of the requests that this object carried out."""
        return tuple(self._live.log.receipts)

    @property
    def last_effect(self) -> ChangeEffect | None:
        """What the last request that this object carried out changed for the tasks that stayed."""
        return self._live.effect

    @property
    def processor(self) -> Any:
        """A copy of the tokenizer or image processor that is saved with the model; `None` if there is none.

        It is yours to change (its padding side, say): what is saved and trained with stays as it was.
        """
        return self._live.context.shown_processor()

    def cluster_of(self, task_id: str) -> int:
        """Return the number of the cluster that serves a task.

        Raises:
            TaskNotFoundError: if no such task is merged.
        """
        state, named = self.merged.checkpoint.state, self.ledger_id(task_id)
        if named not in state.records:
            require_merged([task_id], state.records)  # the error says the id as it was asked for, not its commitment
        return state.cluster_of(named)

    def ledger_id(self, task_id: str) -> str:
        """Return the id that the ledger has for a task: the same, or its keyed commitment.

        Raises:
            TaskNotFoundError: if the ledger's ids are keyed and this model was loaded without the key.
        """
        return ledger_id(self.merged.checkpoint, task_id, self._live.context.task_id_key)

    def load_tasks(self, data: TaskDataset | DataFiles | None = None, *, ids: IdsSetting | None = None) -> TaskDataset:
        """Return the tasks' data: given, kept from training, in the snapshot, or from the ledger's source.

        A snapshot has encoded examples: `encode` gives them, and there are no rows.

        Args:
            data (`TaskDataset`, `str`, `Path` or *list* of them, *optional*): the data, or files of their rows.
            ids (`str`, *optional*): for files of new rows, what to do with ids that look alike, see `TaskSpec`. By
                default ids are read as the recipe says, and none is refused: the merged ones are told apart already.

        Raises:
            TaskDataError: if they are not found, or use another task specification than the merged ones.
        """
        context = self._live.context
        given = data if data is not None else context.tasks
        return load_merged_tasks(
            self.merged.checkpoint,
            given,
            context.folder,
            context.task_id_key,
            context.snapshot,
            snapshot_place=context.snapshot_place,
            ids=ids,
        )

    def keyed_tasks(self, tasks: TaskDataset) -> TaskDataset:
        """Return data under the ids that the ledger has, keyed if it keeps keyed commitments."""
        return with_ledger_ids(self.merged.checkpoint, tasks, self._live.context.task_id_key)
