"""What a change of a merged model runs on: one frozen context for all processes of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from hf_clamu.base_models.adapters.idle import require_learning
from hf_clamu.base_models.adapters.product import local_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.quantization.modules import QUANTIZERS, quantization_of
from hf_clamu.errors import EnvironmentMismatchError
from hf_clamu.exact import digest_json, digest_tensors
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.merging import ClamuArguments
from hf_clamu.storage import Archive, Journal
from hf_clamu.tasks import Encodings, TaskDataset
from hf_clamu.tasks.encoding import padding_id
from hf_clamu.training import (
    Environment,
    LossReport,
    Progress,
    TaskTrainer,
    Workers,
    Workspace,
    deterministic,
    silent_progress,
)

__all__ = ["RunContext", "build_environment", "open_trainer"]

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything that a change of state runs on.

    Args:
        base (`transformers.PreTrainedModel`): the base model; it holds its weights again afterwards.
        processor (*optional*): tokenizer or image processor.
        tasks (`TaskDataset`): the data.
        arguments (`ClamuArguments`): the settings.
        environment (`Environment`): libraries, device and threads that decide the bits.
        progress (`Progress`): shows how far it is.
        base_digest (`str`): SHA-256 of its weights and of an adapter's first values, which was computed when it was
            loaded or copied.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        journal (`Journal`, *optional*): keeps what is finished, for another start.
        archive (`Archive`, *optional*): gets and has the vectors of the merged tasks.
        local_models (`LocalModels`, *optional*): of the tasks that are not finetuned here.
        encodings (`Encodings`, *optional*): what was encoded already.
        anchors (*mapping* of `str` to `torch.Tensor`): what tasks are compared with, from public rows; perhaps empty.
        report (`LossReport`, *optional*): gets the losses of each task that is finetuned.
        backwards (`bool`): take tasks and clusters in the opposite order and split them over the processes in another
            way (`training.workers.split_backwards`), which must not show in any byte.
    """

    base: Any
    processor: Any
    tasks: TaskDataset
    arguments: ClamuArguments
    environment: Environment
    base_digest: str
    progress: Progress = silent_progress
    space: PeftSpace | None = None
    journal: Journal | None = None
    archive: Archive | None = None
    local_models: LocalModels | None = None
    encodings: Encodings | None = None
    anchors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    report: LossReport | None = None
    backwards: bool = False

    def run(self, change: Callable[[TaskTrainer], _Result], *, adds: bool) -> tuple[_Result, dict[str, float]]:
        """Compute a new state, or what is to be known of one, with all processes of the run.

        Args:
            change (*callable*): computes it with a trainer on this context.
            adds (`bool`): the change may start an archive.

        Returns:
            what `change` returns, *dict* of `str` to `float`: the state, and how many seconds each stage took without
            those inside it.

        Raises:
            EnvironmentMismatchError: if the processes differ in the base model, the libraries or the device.
        """
        workers = Workers.current()
        with workers.watched(), contextlib.ExitStack() as stack:
            key = "" if self.journal is None and workers.size == 1 else self._key()
            if self.journal is not None:
                if not self.journal.is_locked:  # a request has locked it before it looked at what is merged
                    stack.enter_context(self.journal.locked(is_main=workers.is_main))
                self.journal.open(key)
            if self.archive is not None and workers.is_main:
                self.archive.open(may_create=adds)
            # No process goes on where the main one was refused, or with other weights or libraries.
            _require_same(workers.gather(key))
            stack.enter_context(deterministic(self.environment.num_threads))
            trainer = open_trainer(
                self.base,
                self.processor,
                self.tasks,
                self.arguments,
                self.progress,
                space=self.space,
                journal=self.journal,
                archive=self.archive,
                local_models=self.local_models,
                encodings=self.encodings,
                anchors=self.anchors,
                report=self.report,
                backwards=self.backwards,
            )
            # After a mismatch, too: a rebuild starts from this model.
            stack.callback(trainer.workspace.release)
            result = change(trainer)
            if self.archive is not None:
                workers.in_turn(self.archive.flush)
            return result, dict(trainer.seconds)

    def _key(self) -> str:
        """Return the digest of what the bits depend on besides the tasks' data."""
        return digest_json(
            {
                **({"anchors": digest_tensors(self.anchors)} if self.anchors else {}),
                "arguments": self.arguments.to_dict(),
                "base": self.base_digest,
                "environment": self.environment.to_dict(),
                "peft_config": None if self.space is None else self.space.to_dict(),
                "peft_merging": None if self.space is None else self.space.merging,
            }
        )


def _require_same(keys: Sequence[str]) -> None:
    if len(set(keys)) > 1:
        rank = next(rank for rank, key in enumerate(keys) if key != keys[0])
        raise EnvironmentMismatchError(
            f"Process {rank} has another base model or environment than process 0, so their bits would differ. "
            "Start all processes with the same libraries, on the same kind of device."
        )


def build_environment(arguments: ClamuArguments, base: Any) -> Environment:
    """Return the environment that a build with these settings on this base model would run in."""
    threads = arguments.num_threads or torch.get_num_threads()
    libraries = () if quantization_of(base) is None else QUANTIZERS
    return Environment.capture(Workers.current().device, threads, portable=arguments.portable, libraries=libraries)


def open_trainer(
    base: Any,
    processor: Any,
    tasks: TaskDataset,
    arguments: ClamuArguments,
    progress: Progress = silent_progress,
    *,
    space: PeftSpace | None = None,
    journal: Journal | None = None,
    archive: Archive | None = None,
    local_models: LocalModels | None = None,
    encodings: Encodings | None = None,
    anchors: Mapping[str, torch.Tensor] | None = None,
    report: LossReport | None = None,
    backwards: bool = False,
) -> TaskTrainer:
    """Return a `TaskTrainer` on a base model; the arguments are those of `RunContext`."""
    workers = Workers.current()
    workspace = Workspace(
        base,
        freeze=arguments.freeze,
        device=workers.device,
        pad_token_id=padding_id(processor),
        bf16=arguments.bf16,
        adapter=local_adapter(space, arguments.seed),
    )
    if space is not None and space.is_live and arguments.freeze:
        require_learning(base, workspace.parameters)
    trainer = TaskTrainer(
        workspace,
        tasks,
        processor,
        arguments,
        arguments.codec,
        progress=progress,
        workers=workers,
        journal=journal,
        archive=archive,
        local_vectors=local_models,
        encodings=encodings,
        anchors=anchors,
        report=report,
    )
    trainer.backwards = backwards
    return trainer
