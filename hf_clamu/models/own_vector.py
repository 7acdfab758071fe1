"""An owner's own task vector, computed again from their rows alone, and what a ledger says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.exact.linear_digest import linear_digest
from hf_clamu.merging import TaskRecord
from hf_clamu.operations.request import Request
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import TaskTrainer

__all__ = ["OwnVector", "compare_own_vector", "rows_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnVector:
    """What a ledger says of a task whose vector was computed again.

    Args:
        ledger_id (`str`): the id that the ledger has, or would have.
        is_merged (`bool`): whether the ledger names it.
        same_data (`bool`, *optional*): whether its entry has the digest of these rows; None if there is no entry.
        same_vector (`bool`, *optional*): whether its entry has the digest of this vector; None if there is no entry,
            or if this environment does not give the bits of the build.
        same_linear_digest (`bool`, *optional*): the same of the linear digest; None if none is kept.
        data_digest (`str`): SHA-256 of the tokenised rows.
        vector_digest (`str`): SHA-256 of the integer task vector.
        environment_differs (`str`, *optional*): in what, if it does.
    """

    ledger_id: str
    is_merged: bool
    same_data: bool | None
    same_vector: bool | None
    same_linear_digest: bool | None
    data_digest: str | None
    vector_digest: str
    environment_differs: str | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing contradicts the ledger: its entry, if there is one, is of these rows and this vector."""
        return False not in (self.same_data, self.same_vector, self.same_linear_digest)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "is_sound": self.is_sound}


def rows_of(tasks: TaskDataset, task_id: str, ledger_id: str, *, keyed: bool) -> TaskDataset:
    """Return one task's rows under the id that the ledger has.

    Args:
        tasks (`TaskDataset`): rows of this task, and perhaps of others, under the ids that stand in them.
        task_id (`str`): as the owner knows it; or a keyed id of the ledger, if the rows are of one task alone.
        ledger_id (`str`): what the ledger calls it.
        keyed (`bool`): whether the ledger's ids are keyed.

    Raises:
        TaskDataError: if no rows are those of the task.
    """
    name = task_id if task_id in tasks else tasks.task_ids[0] if keyed and len(tasks) == 1 else None
    if name is None:
        alone = ", or, under the id that the ledger has for it, the rows of that task alone" if keyed else ""
        raise TaskDataError(
            f"The data hold rows of {len(tasks)} tasks, and none is called {task_id!r}. Give a file in which that id "
            f"stands{alone}."
        )
    content: Any = tasks.content(name)
    return TaskDataset(tasks.spec, {ledger_id: content}, tasks.source, keyed=keyed)


def compare_own_vector(request: Request, rows: TaskDataset) -> OwnVector:
    """Finetune the base model on one task's rows and compare the vector with a ledger.

    Args:
        request (`Request`): on the model; its data are not looked at.
        rows (`TaskDataset`): one task, under the ledger's id.
    """
    checkpoint, (ledger_id,) = request.checkpoint, rows.task_ids
    records = checkpoint.state.records
    differs = None
    if checkpoint.environment is not None:
        differing = request.environment.differences(checkpoint.environment)
        differs = "; ".join(differing) or None

    def work(trainer: TaskTrainer) -> tuple[str, str | None, torch.Tensor | None]:
        vector = trainer.vector(ledger_id)
        digest = linear_digest(vector.steps) if checkpoint.state.linear_digests is not None else None
        return vector.digest, trainer.encoded(ledger_id).digest, digest

    (vector_digest, data_digest, linear), _ = request.context(rows).run(work, adds=False)
    record = records.get(ledger_id)
    comparable = record is not None and differs is None
    return OwnVector(
        ledger_id=ledger_id,
        is_merged=record is not None,
        same_data=None if record is None else record.data_digest == data_digest,
        same_vector=record.vector_digest == vector_digest if record is not None and comparable else None,
        same_linear_digest=_same_linear(checkpoint.state.linear_digests, records, ledger_id, linear)
        if comparable
        else None,
        data_digest=data_digest,
        vector_digest=vector_digest,
        environment_differs=differs,
    )


def _same_linear(
    kept: torch.Tensor | None, records: Mapping[str, TaskRecord], ledger_id: str, own: torch.Tensor | None
) -> bool | None:
    if kept is None or own is None:
        return None
    return torch.equal(kept[list(records).index(ledger_id)], own)
