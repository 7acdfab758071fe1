"""SIFT-Masks: the mask of a task is the support of its own vector, so it is found once and kept.

All task vectors keep to one sign per weight (see `FixedSigns`), so `1[n_t * v > 0]` is `1[n_t != 0]`. Such a mask
depends on its task alone: a request drops or adds masks of tasks, and learns none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_clamu.exact import TaskVector, pack_mask, packed_size
from hf_clamu.training import TaskTrainer

__all__ = ["TaskMasks", "support", "union"]

Mask = dict[str, torch.Tensor]
_STAGE = "task-masks"


def support(vector: TaskVector) -> Mask:
    """Return the packed mask of a task: the weights that its vector moves.

    Args:
        vector (`TaskVector`): of a task that was finetuned under fixed signs.

    Source: SIFT-Masks (arXiv 2504.04626), `m_t = 1[tau_t * v > 0]`.
    """
    return {name: pack_mask(steps != 0) for name, steps in vector.steps.items()}


def union(masks: Sequence[Mask]) -> Mask:
    """Return the mask of a cluster: the weights that any of its members moves.

    Args:
        masks (*sequence* of *dict* of `str` to `torch.Tensor`, uint8): packed masks of the members; a single one is
            returned as it is.
    """
    first, *others = masks
    if not others:
        return first
    whole = {name: bits.clone() for name, bits in first.items()}
    for mask in others:
        for name, bits in mask.items():
            whole[name].bitwise_or_(bits)
    return whole


class TaskMasks:
    """The masks of tasks that are being finetuned: in the journal where there is one, else in memory.

    Args:
        trainer (`TaskTrainer`): knows the processes and the journal.
    """

    def __init__(self, trainer: TaskTrainer) -> None:
        self._trainer = trainer
        # By task and digest of its vector: a run that was stopped may have left the mask of other data.
        self._found: dict[tuple[str, str], Mask] = {}
        for part in [] if trainer.journal is None else trainer.journal.parts(_STAGE):
            self._found |= {entry: part.tensors() for entry in part.entries.items()}

    def holds(self, task_id: str, vector_digest: str) -> bool:
        """Whether this process has the mask of a task's vector."""
        return (task_id, vector_digest) in self._found

    def keep(self, task_id: str, vector: TaskVector) -> None:
        """Take the mask of a task that was just finetuned."""
        self._keep(task_id, vector.digest, support(vector))

    def _keep(self, task_id: str, vector_digest: str, mask: Mask) -> None:
        journal = self._trainer.journal
        if journal is not None:
            # Mapped from the file: all masks together may be larger than the model. Sums, which are due from time to
            # time, are written after the masks of the tasks in them.
            mask = journal.write(_STAGE, {task_id: vector_digest}, mask, is_timed=False).tensors()
        self._found[task_id, vector_digest] = mask

    def gathered(self, vector_digests: Mapping[str, str]) -> dict[str, Mask]:
        """Return the masks of tasks, those that other processes finetuned among them.

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
            mask = self._found.get((task_id, digest)) or {
                name: torch.zeros(packed_size(shape.numel()), dtype=torch.uint8) for name, shape in shapes.items()
            }
            workers.broadcast_(mask, ranks[0])
            if not self.holds(task_id, digest):
                self._keep(task_id, digest, mask)
        return {task_id: self._found[task_id, digest] for task_id, digest in vector_digests.items()}
