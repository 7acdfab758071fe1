"""Masks of tasks, for localizations that keep one per task."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_clamu.exact import TaskVector, packed_size
from hf_clamu.merging.localization.base import LocalizationMethod, Weights
from hf_clamu.training import TaskTrainer

__all__ = ["TaskMasks"]

_STAGE = "task-masks"


class TaskMasks:
    """The masks of tasks that are being finetuned: in the journal where there is one, otherwise in memory.

    Args:
        trainer (`TaskTrainer`): knows the processes and the journal.
        method (`LocalizationMethod`): makes the masks.
    """

    def __init__(self, trainer: TaskTrainer, method: LocalizationMethod) -> None:
        self._trainer = trainer
        self._method = method
        # By task and digest of its vector: a run that was stopped may have left the mask of other data.
        self._masks: dict[tuple[str, str], Weights] = {}
        for part in [] if trainer.journal is None else trainer.journal.parts(_STAGE):
            self._masks |= {entry: part.tensors() for entry in part.entries.items()}

    def holds(self, task_id: str, vector_digest: str) -> bool:
        """Whether this process has the mask of a task's vector."""
        return (task_id, vector_digest) in self._masks

    def keep(self, task_id: str, vector: TaskVector) -> None:
        """Make the mask of a task that was just finetuned."""
        self._keep(task_id, vector.digest, self._method.task_mask(vector))

    def _keep(self, task_id: str, vector_digest: str, mask: Weights) -> None:
        journal = self._trainer.journal
        if journal is not None:
            # Mapped from the file: all masks together may be larger than the model. Sums, which are due from time to
            # time, are written after the masks of the tasks in them.
            mask = journal.write(_STAGE, {task_id: vector_digest}, mask, is_timed=False).tensors()
        self._masks[task_id, vector_digest] = mask

    def gather(self, vector_digests: Mapping[str, str]) -> dict[str, Weights]:
        """Return the masks of tasks, also of those that other processes finetuned.

        Args:
            vector_digests (*mapping* of `str` to `str`): task id to the digest of its vector.
        """
        workers, shapes = self._trainer.workers, self._trainer.workspace.shapes
        own = [task_id for task_id, digest in vector_digests.items() if self.holds(task_id, digest)]
        holders = [set(held) for held in workers.gather(own)]
        for task_id in sorted(vector_digests):
            digest = vector_digests[task_id]
            ranks = [rank for rank, held in enumerate(holders) if task_id in held]
            if len(ranks) == workers.size:
                continue
            mask = self._masks.get((task_id, digest)) or {
                name: torch.zeros(packed_size(shape.numel()), dtype=torch.uint8) for name, shape in shapes.items()
            }
            workers.broadcast_(mask, ranks[0])
            if not self.holds(task_id, digest):
                self._keep(task_id, digest, mask)
        return {task_id: self._masks[task_id, digest] for task_id, digest in vector_digests.items()}
