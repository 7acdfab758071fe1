"""A live model together with the tasks of a run: merging asks it for vectors, features and scores."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

from hf_clamu.exact import ALL_WEIGHTS, FixedPoint, PackedMask, TaskVector, unpack_mask
from hf_clamu.resources import Stopwatch
from hf_clamu.storage.archive import Archive
from hf_clamu.storage.journal import Journal
from hf_clamu.tasks import EncodedTask, Encodings, ModelLimits, TaskDataset, traits_of
from hf_clamu.training.finetuning import FinetuningArguments, finetune
from hf_clamu.training.measuring import Measurement, measure, prompts_of, task_feature
from hf_clamu.training.reporting import LossReport
from hf_clamu.training.signs import FixedSigns
from hf_clamu.training.workers import Workers
from hf_clamu.training.workspace import Workspace

__all__ = ["LocalVectors", "Progress", "TaskTrainer", "silent_progress"]

T = TypeVar("T")


class Progress(Protocol):
    """Shows how far a loop is: called with the items and a description, yields the items."""

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Yield the items one by one."""
        ...


def silent_progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Show nothing."""
    return items


class LocalVectors(Protocol):
    """Vectors of tasks that were finetuned elsewhere, by task id."""

    def __contains__(self, task_id: object) -> bool:
        """Whether a task has one."""
        ...

    def fingerprint(self, task_id: str) -> str:
        """Return a digest of what `read` would read."""
        ...

    def read(self, task_id: str, workspace: Workspace, codec: FixedPoint) -> TaskVector:
        """Return a task's vector; it may be overwritten by the next call."""
        ...

    def is_computed(self, task_id: str) -> bool:
        """Whether libraries and device may show in the bits of a task's vector."""
        ...

    def release(self) -> None:
        """Give back the memory that vectors are read to."""
        ...


class TaskTrainer:
    """Finetunes and measures tasks on one live model.

    Args:
        workspace (`Workspace`): the live model.
        tasks (`TaskDataset`): the data.
        processor (*tokenizer or image processor*, *optional*): turns rows into tensors.
        arguments (`FinetuningArguments`): how each task is finetuned.
        codec (`FixedPoint`): the integer grid.
        progress (`Progress`, *optional*): shows how far long loops are.
        workers (`Workers`, *optional*): the processes that share the work; by default this one alone.
        journal (`Journal`, *optional*): keeps what is finished.
        archive (`Archive`, *optional*): keeps the vectors of merged tasks.
        local_vectors (`LocalVectors`, *optional*): of tasks that are not finetuned here.
        encodings (`Encodings`, *optional*): what was encoded already, for the same processor and model.
        anchors (*mapping* of `str` to `torch.Tensor`, *optional*): what tasks are compared with, from public rows.
        report (`LossReport`, *optional*): gets the losses of each task.
    """

    def __init__(
        self,
        workspace: Workspace,
        tasks: TaskDataset,
        processor: Any,
        arguments: FinetuningArguments,
        codec: FixedPoint,
        *,
        progress: Progress = silent_progress,
        workers: Workers | None = None,
        journal: Journal | None = None,
        archive: Archive | None = None,
        local_vectors: LocalVectors | None = None,
        encodings: Encodings | None = None,
        anchors: Mapping[str, torch.Tensor] | None = None,
        report: LossReport | None = None,
    ) -> None:
        self.workspace = workspace
        self.tasks = tasks
        self.codec = codec
        self.workers = workers or Workers(workspace.device)
        self.journal = journal
        self.archive = archive
        self.local_vectors = local_vectors
        self.anchors = anchors or {}
        self._report = report
        self.progress = progress if self.workers.is_main else silent_progress
        # Whether tasks and clusters are taken in the opposite order and by other processes; no byte may depend on it.
        self.backwards = False
        # The vector that a caller has at the moment; trainers that share memory share the list.
        self._lent: list[TaskVector] = []
        self._encodings = encodings or Encodings(processor, ModelLimits.of(workspace.model))
        self._arguments = arguments
        self._signs: FixedSigns | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._stopwatch = Stopwatch()

    def on(self, tasks: TaskDataset) -> TaskTrainer:
        """Return a trainer of other data on the same live model."""
        other = copy.copy(self)
        other.tasks = tasks
        return other

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Hand out tasks or clusters among the processes; iterating over the result gives those of this one."""
        return self.workers.share(items, backwards=self.backwards)

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took so far, without the stages inside it."""
        return self._stopwatch.seconds

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Return a context that adds what a block takes to `seconds[stage]`."""
        return self._stopwatch.stage(stage)

    def encoded(self, task_id: str) -> EncodedTask:
        """Return a task's tokenised data."""
        with self.timed("encode"):
            return self._encodings.of(self.tasks, task_id)

    def check_texts(self, task_ids: Sequence[str]) -> None:
        """Check that the model can take every text of some tasks, before hours are spent on others.

        Images are left out: decoding all of them twice takes longer, and a processor makes them fit.

        Raises:
            TaskDataError: naming the first task and row that it cannot take.
        """
        if traits_of(self.tasks.spec.kind).reads == "image" or not self.tasks.has_rows:
            return
        for task_id in task_ids[self.workers.rank :: self.workers.size]:
            self.encoded(task_id)

    def finetune(self, task_id: str) -> TaskVector:
        """Finetune on one task; the live model holds its local model afterwards.

        The vector is lent, as by `vector`.
        """
        self._take_back()
        if self._arguments.has_fixed_signs and self._signs is None:
            self._signs = FixedSigns(self.workspace.theta_0, self._arguments.seed)
        data = self.encoded(task_id)
        with self.timed("finetune"):
            vector = finetune(
                self.workspace,
                data,
                self._arguments,
                self.codec,
                signs=self._signs,
                buffers=self._buffers,
                report=self._report,
            )
        self._lent.append(vector)
        return vector

    def release_vectors(self) -> None:
        """Give back the memory that vectors are written to; the last vector is gone."""
        self._take_back()
        self._buffers.clear()
        if self.local_vectors is not None:
            self.local_vectors.release()

    def is_local(self, task_id: str) -> bool:
        """Whether a task was finetuned elsewhere and its local model was given."""
        return self.local_vectors is not None and task_id in self.local_vectors

    def is_computed(self, task_id: str) -> bool:
        """Whether libraries and device may show in the vector of a task that was finetuned elsewhere."""
        return self.local_vectors is not None and self.is_local(task_id) and self.local_vectors.is_computed(task_id)

    def vector(self, task_id: str) -> TaskVector:
        """Return a task's vector: read from its local model if that was given, and otherwise by finetuning.

        It is lent until the next call, which needs its memory: its `steps` are empty then, so that the integers of
        another task cannot be taken for those of its digest.
        """
        if self.local_vectors is not None and task_id in self.local_vectors:
            self._take_back()
            with self.timed("read"):
                vector = self.local_vectors.read(task_id, self.workspace, self.codec)
            self._lent.append(vector)
            return vector
        return self.finetune(task_id)

    def _take_back(self) -> None:
        while self._lent:
            self._lent.pop().steps.clear()

    def feature(self, task_id: str) -> torch.Tensor:
        """Return the task's mean feature under the base model."""
        self.workspace.reset()
        return task_feature(self.workspace, self.encoded(task_id).train)

    def prompt_feature(self, task_id: str) -> torch.Tensor:
        """Return the task's mean feature under the base model, of what its model is given alone.

        It is `feature` unless the model writes the rest of an example itself.
        """
        self.workspace.reset()
        return task_feature(self.workspace, prompts_of(self.encoded(task_id).train, self.tasks.spec.kind))

    def load_masked(self, delta: Mapping[str, torch.Tensor], alpha: float, mask: PackedMask = ALL_WEIGHTS) -> None:
        """Bring `M0 + alpha * (mask * delta)` into the live model.

        Args:
            delta (*mapping* of `str` to `torch.Tensor`, integer): the merged delta.
            alpha (`float`): the scaling coefficient.
            mask (`PackedMask`): with its factors; all weights for the global model.
        """
        self.workspace.load(dict(self._masked(delta, alpha, mask)))

    def _masked(
        self, delta: Mapping[str, torch.Tensor], alpha: float, mask: PackedMask
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, theta in self.workspace.theta_0.items():
            served, bits = self.codec.apply(theta, delta[name], alpha * mask.factor(name), theta.dtype), mask.of(name)
            if isinstance(bits, torch.Tensor):
                served = torch.where(unpack_mask(bits, theta.shape).to(theta.device), served, theta)
            yield name, served if isinstance(bits, torch.Tensor) or bits else theta

    def measure_held_out(self, task_id: str) -> Measurement:
        """Measure the live model on a task's validation examples, or its training examples if it has none."""
        encoded = self.encoded(task_id)
        return measure(self.workspace, encoded.validation or encoded.train, self.tasks.spec.kind)
