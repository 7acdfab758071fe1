"""What an owner can check of a model with nothing but their own rows."""

from __future__ import annotations

from hf_clamu.errors import TaskNotFoundError
from hf_clamu.models.mixins.requests import RequestsMixin
from hf_clamu.models.mixins.serving import holds_model
from hf_clamu.models.own_vector import OwnVector, compare_own_vector, rows_of
from hf_clamu.models.requesting import RequestOptions
from hf_clamu.operations.data import load_rows
from hf_clamu.tasks import DataFiles, TaskDataset
from hf_clamu.training import Progress, silent_progress, undisturbed

__all__ = ["ProvingMixin"]


class ProvingMixin(RequestsMixin):
    """Proofs for the owner of a task."""

    @holds_model
    @undisturbed()
    def prove_task(
        self, task_id: str, *, data: TaskDataset | DataFiles, progress: Progress = silent_progress
    ) -> OwnVector:
        """Compute a task's vector again from its rows, and compare it with the ledger.

        Before a task is forgotten this shows that the ledger's entry is of these rows, and afterwards that no entry
        is. Nothing is changed, and no rows of others are needed.

        Args:
            task_id (`str`): the task. Where ids are keyed it may be the ledger's own id, and then no key is needed.
            data (`TaskDataset`, `str` or `Path`): its rows; a file may hold others, too, if it names the task.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `OwnVector`: what the ledger says of it.

        Raises:
            TaskDataError: if the data hold no rows of the task.
        """
        checkpoint = self.merged.checkpoint
        request = self._request(RequestOptions(progress=progress))
        try:
            ledger_id = self.ledger_id(task_id)
        except TaskNotFoundError:  # keyed ids and no key: then it is named as the ledger has it
            ledger_id = task_id
        tasks = load_rows(checkpoint, data, request.origin)
        return compare_own_vector(request, rows_of(tasks, task_id, ledger_id, keyed=checkpoint.has_keyed_ids))
