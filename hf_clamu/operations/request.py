"""A request on a merged model: what it is given, what it checks first, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import start_digest
from hf_clamu.base_models.quantization.modules import QUANTIZERS
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import (
    ArchiveError,
    DigestMismatchError,
    EnvironmentMismatchError,
    RecipeError,
    SnapshotError,
    TaskDataError,
)
from hf_clamu.known_names import OnMismatch
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.merging import (
    ClamuArguments,
    MergedState,
    check_data,
    depends_on_environment,
    deriving_reads_data,
    have_data,
    require_merged,
)
from hf_clamu.operations.configuration import refreshed_config
from hf_clamu.operations.context import RunContext
from hf_clamu.operations.data import load_merged_tasks, with_ledger_ids
from hf_clamu.storage import Archive, Journal, Snapshot
from hf_clamu.tasks import DataFiles, Encodings, TaskDataset
from hf_clamu.training import Environment, Progress, Workers, silent_progress

__all__ = ["MISMATCHES", "ChangeResult", "Outcome", "Request", "RequestKind", "on_mismatch_of"]

RequestKind = Literal["unmerge", "add", "update"]
# How a new state came about; receipts say it under "how".
Outcome = Literal["subtracted", "added", "updated", "rebuilt"]
# What a rebuild is the way out of.
MISMATCHES = (ArchiveError, SnapshotError, DigestMismatchError, EnvironmentMismatchError)


@dataclass(frozen=True, kw_only=True)
class ChangeResult:
    """A new checkpoint, and what it was made with.

    Args:
        checkpoint (`Checkpoint`): the new one.
        base (`transformers.PreTrainedModel`): the live model, holding the base weights again.
        tasks (`TaskDataset`, *optional*): data of the tasks that are merged now; None if they were not needed.
        outcome (`str`): `"subtracted"`, `"added"`, `"updated"` or `"rebuilt"`.
        seconds (*dict* of `str` to `float`): durations.
        vectors_from (`str`, *optional*): `"archive"` if the vectors that were subtracted were read from there.
    """

    checkpoint: Checkpoint
    base: Any
    tasks: TaskDataset | None
    outcome: Outcome
    seconds: dict[str, float]
    vectors_from: Literal["archive"] | None = None

    @property
    def tasks_with_rows(self) -> TaskDataset | None:
        """The data, if it has rows to keep for later requests."""
        return self.tasks if self.tasks is not None and self.tasks.has_rows else None


def on_mismatch_of(value: str, kind: Literal["unmerge", "update"], *, has_archive: bool) -> OnMismatch:
    """Check what a caller wants done on a mismatch.

    Args:
        value (`str`): what the caller gave.
        kind (`str`): of the request.
        has_archive (`bool`): an archive is given, too.

    Raises:
        RecipeError: if it needs an archive, and none is given.
        ValueError: if requests of this kind know no such way out.
    """
    known = [way for way in get_args(OnMismatch) if kind == "unmerge" or way != "localize"]
    for way in known:
        if value == way:
            if way == "localize" and not has_archive:
                raise RecipeError(
                    "on_mismatch='localize' goes with an archive (--on-mismatch localize goes with --archive): "
                    "without one, tasks are retrained here."
                )
            return way  # type: ignore[no-any-return]
    names = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
    raise ValueError(f"on_mismatch must be {names}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every request needs.

    Args:
        checkpoint (`Checkpoint`): the merged model before.
        copy_base (*callable*): makes a base model (`transformers.PreTrainedModel`) for this request to train on.
        processor (*optional*): tokenizer or image processor.
        encodings (`Encodings`): encodes rows with that processor, for that model; each step takes them from here.
        data (`TaskDataset`, `str`, `Path` or *list* of them, *optional*): the tasks' data, or files of them.
        origin (`Path`, *optional*): the saved model's folder; data files are looked for beside it.
        task_id_key (`str`, *optional*): the key of the ledger's task ids, if they are keyed.
        journal (`Journal`, *optional*): keeps what is finished, for another start.
        archive (`Archive`, *optional*): has the vectors of the merged tasks.
        local_models (`LocalModels`, *optional*): those that were finetuned elsewhere, under the ledger's ids.
        snapshot (`Snapshot`, *optional*): has the rows of the merged tasks, if no data are given.
        snapshot_place (`Path`, *optional*): where it would be, for messages.
        progress (`Progress`): shows how far it is.
    """

    checkpoint: Checkpoint
    copy_base: Callable[[], Any]
    processor: Any
    encodings: Encodings
    data: TaskDataset | DataFiles | None
    origin: Path | None
    task_id_key: str | None = None
    journal: Journal | None = None
    archive: Archive | None = None
    local_models: LocalModels | None = None
    snapshot: Snapshot | None = None
    snapshot_place: Path | None = None
    progress: Progress = silent_progress

    @property
    def arguments(self) -> ClamuArguments:
        """The settings of the build."""
        return self.checkpoint.arguments

    @cached_property
    def base(self) -> Any:
        """A base model of its own to train on, made when something is trained, and fitting the local models.

        Raises:
            IncompatibleBaseError: if a local model does not fit it.
        """
        base = self.copy_base()
        if self.local_models is not None:
            self.local_models.check(base, self.checkpoint.task_spec.kind, self.processor)
        return base

    @cached_property
    def environment(self) -> Environment:
        """The environment that a request would run in: the threads are those of the build."""
        recorded = self.checkpoint.environment
        threads = self.arguments.num_threads or torch.get_num_threads() if recorded is None else recorded.num_threads
        return Environment.capture(
            Workers.current().device,
            threads,
            portable=self.arguments.portable,
            libraries=() if self.checkpoint.base_bits is None else QUANTIZERS,
        )

    def context(self, tasks: TaskDataset) -> RunContext:
        """Return what a change of the state runs on.

        Args:
            tasks (`TaskDataset`): the data it needs.
        """
        base, space = self.base, PeftSpace.of_checkpoint(self.checkpoint)
        return RunContext(
            base=base,
            base_digest=start_digest(self.checkpoint.base.digest, space, self.checkpoint.fresh),
            processor=self.processor,
            tasks=tasks,
            arguments=self.arguments,
            environment=self.environment,
            progress=self.progress,
            space=space,
            journal=self.journal,
            archive=self.archive,
            local_models=self.local_models,
            encodings=self.encodings,
            anchors=self.checkpoint.anchors,
        )

    def require_environment(self) -> None:
        """Check that this environment gives the bits of the build, if they depend on it.

        Raises:
            EnvironmentMismatchError: naming the differences.
        """
        if self.checkpoint.environment is not None:
            self.environment.require(self.checkpoint.environment)

    def unchanged_tasks(self) -> TaskDataset:
        """Return the data of the merged tasks, checked to be those that were merged.

        Raises:
            DigestMismatchError: naming the first task whose data changed.
        """
        tasks, state = self.tasks(), self.checkpoint.state
        check_data(state, state.task_ids, tasks, partial(self.encodings.of, tasks))
        return tasks.select(state.task_ids)

    def tasks(self) -> TaskDataset:
        """Return the data of the merged tasks; their ids alone if they were merged without data."""
        records = self.checkpoint.state.records
        if records and not have_data(records):
            return TaskDataset.without_rows(self.checkpoint.task_spec, records, keyed=self.checkpoint.has_keyed_ids)
        if not records and self.data is None:
            return self._no_tasks()
        return load_merged_tasks(
            self.checkpoint,
            self.data,
            self.origin,
            self.task_id_key,
            self.snapshot,
            snapshot_place=self.snapshot_place,
        )

    def tasks_if_needed(self, new: TaskDataset | None = None) -> TaskDataset:
        """Return the data of the merged tasks, or no tasks if the data are neither found nor needed.

        Args:
            new (`TaskDataset`, *optional*): tasks to add; then no merged task has to be trained again, and with an
                archive none has to be otherwise.
        """
        try:
            return self.tasks()
        except TaskDataError:
            if new is None and self.archive is None:
                raise
            validated = new is not None and any(map(new.has_validation, new))
            if deriving_reads_data(self.checkpoint.state, self.arguments, validated):
                raise
        return self._no_tasks()

    def _no_tasks(self) -> TaskDataset:
        return TaskDataset(self.checkpoint.task_spec, {}, self.checkpoint.source)

    def new_tasks(self) -> TaskDataset:
        """Return, without rows, the tasks that have local models and are not merged."""
        state = self.checkpoint.state
        new = [task_id for task_id in self.local_models or () if task_id not in state.records]
        if not new:
            raise TaskDataError("There is nothing to add: give tasks, or checkpoints of tasks that are not merged.")
        return TaskDataset.without_rows(self.checkpoint.task_spec, new, keyed=self.checkpoint.has_keyed_ids)

    def with_ledger_ids(self, tasks: TaskDataset) -> TaskDataset:
        """Return tasks under the ids that the ledger has.

        Raises:
            TaskDataError: if the ledger's ids are keyed and the key is not given.
        """
        return with_ledger_ids(self.checkpoint, tasks, self.task_id_key)

    def changed_tasks(self, new: TaskDataset) -> TaskDataset:
        """Return, under the ledger's ids, the tasks whose data differ from those that were merged.

        Raises:
            TaskNotFoundError: if a task is not merged.
        """
        records = self.checkpoint.state.records
        new = self.with_ledger_ids(new)
        require_merged(new.task_ids, records)
        changed = []
        for task_id in new.task_ids:
            encoded, record = self.encodings.of(new, task_id), records[task_id]
            if (encoded.digest, encoded.cluster_key) != (record.data_digest, record.cluster_key):
                changed.append(task_id)
        return new.select(changed)

    def lacks_rows(self, leaving: Sequence[str], tasks: TaskDataset) -> bool:
        """Whether a task has nothing left to train it again from: no row, no local model and no archived vector."""
        given = self.local_models or ()
        return self.archive is None and any(task_id not in tasks and task_id not in given for task_id in leaving)

    def answer(
        self,
        outcome: Outcome,
        state: MergedState,
        *,
        tasks: TaskDataset | None,
        seconds: dict[str, float],
        subtracted: Sequence[str] = (),
        localized_in: Environment | None = None,
    ) -> ChangeResult:
        """Return the result of a change that was not a rebuild.

        Args:
            outcome (`str`): how the state came about.
            state (`MergedState`): the new one.
            tasks (`TaskDataset`, *optional*): data of the tasks that are merged now.
            seconds (*dict* of `str` to `float`): durations.
            subtracted (*sequence* of `str`): the tasks whose vectors were recovered and subtracted.
            localized_in (`Environment`, *optional*): where clusters and masks were derived, if not where the vectors
                were computed.
        """
        before = self.checkpoint
        # A model without tasks, too, has the environment that a build would write.
        depends = depends_on_environment(state.records, self.arguments)
        checkpoint = Checkpoint(
            config=refreshed_config(before.config, state),
            state=state,
            environment=(before.environment or self.environment) if depends else None,
            source=before.source,
            fresh=before.fresh,
            anchors=before.anchors,
            localized_in=localized_in,
            known_masks=before.masks_kept_in(state),
        )
        # A local model that is given goes first, and then the archive is not read.
        local = self.local_models or ()
        is_archived = self.archive is not None and not any(task_id in local for task_id in subtracted)
        return ChangeResult(
            checkpoint=checkpoint,
            base=self.base,
            tasks=tasks,
            outcome=outcome,
            seconds=seconds,
            vectors_from="archive" if subtracted and is_archived else None,
        )
