"""A saved merged model as an approach: served by owner, and forgetting by requests on its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_clamu.evaluation.approaches import label_probabilities
from hf_clamu.merging import deriving_reads_data
from hf_clamu.models.modeling_clamu import ClamuModel
from hf_clamu.resources import size_of_files
from hf_clamu.tasks import Example, TaskDataset
from hf_clamu.training import LiveModel, Progress, silent_progress

__all__ = ["MergedModel"]


class MergedModel:
    """A saved merged model; a request loads it, forgets and saves it in its place.

    Args:
        folder (`Path`): of the saved model. Requests change it.
        tasks (`TaskDataset`): the data of the merged tasks. A request is given the forgotten owner's rows alone where
            the recipe needs no others.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is answered, by owner.
        receipts (`Path`, *optional*): a folder for the receipts.
        progress (`Progress`, *optional*): shows how far a request is.
    """

    def __init__(
        self,
        folder: Path,
        tasks: TaskDataset,
        held_out: Mapping[str, Sequence[Example]],
        *,
        receipts: Path | None = None,
        progress: Progress = silent_progress,
    ) -> None:
        self._folder, self._tasks, self._held_out, self._receipts = folder, tasks, held_out, receipts
        self._progress = progress
        self._model = ClamuModel.from_pretrained(folder)

    @property
    def needs_owner(self) -> bool:
        """Whether there is a mask per owner or group of owners."""
        return self._model.merged.checkpoint.arguments.localization_method.makes_masks

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The merged tasks."""
        return self._model.tasks

    @property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """The tasks that share a mask."""
        return self._model.clusters if self.needs_owner else ()

    @property
    def stored_bytes(self) -> int:
        """The size of the saved model, with the base model where it is inside."""
        return size_of_files(self._folder)

    def serve(self, task_id: str) -> None:
        """Switch to the weights that serve an owner."""
        if self.needs_owner:
            self._model.set_cluster(task=task_id)

    def answers(self, task_id: str) -> list[int]:
        """Return the label of each held-out example of an owner."""
        self.serve(task_id)
        live = LiveModel(self._model, device=self._model.device)
        return [
            int(label)
            for label in label_probabilities(live, self._held_out[task_id], self._tasks.spec.kind).argmax(-1)
        ]

    def forget(self, task_id: str) -> int:
        """Forget an owner; return how many rows of the others the request had to be given."""
        model = ClamuModel.from_pretrained(self._folder)
        checkpoint = model.merged.checkpoint
        needs_others = deriving_reads_data(checkpoint.state, checkpoint.arguments)
        tasks = self._tasks.select([one for one in model.tasks if needs_others or one == task_id])
        model.unmerge_task(task_id, data=tasks, receipt_dir=self._receipts, progress=self._progress)
        model.save_pretrained(self._folder)
        self._model = model
        return sum(tasks.num_examples(one) for one in tasks if one != task_id)
