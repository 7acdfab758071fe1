"""Requests on a merged model: unmerge, add, update, rebuild. Each gives a new checkpoint; none changes the old one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.idle import require_learning, warn_of_idle_parts
from hf_clamu.base_models.loading import BaseModel
from hf_clamu.base_models.peft_space import PeftSpace
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import (
    ArchiveError,
    DigestMismatchError,
    EnvironmentMismatchError,
    RecipeError,
    TaskAlreadyMergedError,
    TaskDataError,
)
from hf_clamu.exact import digest_json, digest_tensors
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.merging import (
    ClamuArguments,
    MergedState,
    add_tasks,
    check_data,
    depends_on_environment,
    depends_on_threads,
    deriving_reads_data,
    have_data,
    is_environment_independent,
    merge_tasks,
    missing_checkpoints_error,
    missing_tasks,
    require_no_data,
    unmerge_tasks,
    update_tasks,
    with_rows,
)
from hf_clamu.storage import Archive, Journal
from hf_clamu.tasks import DataFiles, TaskDataset, load_tasks
from hf_clamu.training import Environment, Progress, TaskTrainer, Workers, Workspace, deterministic, silent_progress

__all__ = [
    "Rebuilt",
    "Request",
    "add",
    "build",
    "described",
    "find_tasks",
    "first_config",
    "in_ledger",
    "open_trainer",
    "outdated",
    "rebuild",
    "unmerge",
    "update",
]


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A new checkpoint, and what it was made with.

    Args:
        checkpoint (`Checkpoint`): the new one.
        base (`transformers.PreTrainedModel`): the live model, holding the base weights again.
        tasks (`TaskDataset`, *optional*): data of the tasks that are merged now; None if nobody needed them.
        how (`str`): `"subtracted"`, `"added"`, `"updated"` or `"rebuilt"`.
        seconds (*dict* of `str` to `float`): durations.
    """

    checkpoint: Checkpoint
    base: Any
    tasks: TaskDataset | None
    how: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every request needs.

    Args:
        checkpoint (`Checkpoint`): the merged model before.
        base (`transformers.PreTrainedModel`): a base model of its own to train on.
        processor (*optional*): tokenizer or image processor.
        data (`TaskDataset`, `str`, `Path` or *list* of them, *optional*): the tasks' data, or files of them.
        origin (`Path`, *optional*): the saved model's folder; data files are looked for beside it.
        task_id_key (`str`, *optional*): the key of the ledger's task ids, if they are keyed.
        journal (`Journal`, *optional*): keeps what is finished, for another start.
        archive (`Archive`, *optional*): has the vectors of the merged tasks.
        local_models (`LocalModels`, *optional*): those that were finetuned elsewhere, under the ledger's ids.
        progress (`Progress`): shows how far it is.
    """

    checkpoint: Checkpoint
    base: Any
    processor: Any
    data: TaskDataset | DataFiles | None
    origin: Path | None
    task_id_key: str | None = None
    journal: Journal | None = None
    archive: Archive | None = None
    local_models: LocalModels | None = None
    progress: Progress = silent_progress

    @property
    def arguments(self) -> ClamuArguments:
        """The settings of the build."""
        return self.checkpoint.arguments

    @property
    def space(self) -> PeftSpace | None:
        """The adapter that tasks are finetuned through."""
        return PeftSpace.of_checkpoint(self.checkpoint)

    @property
    def environment(self) -> Environment:
        """The environment that a request would run in: the threads are those of the build."""
        recorded = self.checkpoint.environment
        threads = self.arguments.num_threads or torch.get_num_threads() if recorded is None else recorded.num_threads
        return Environment.capture(Workers.current().device, threads, portable=self.arguments.portable)

    def require_environment(self) -> None:
        """Check that this environment gives the bits of the build, if they depend on it.

        Raises:
            EnvironmentMismatchError: naming the differences.
        """
        if self.checkpoint.environment is not None:
            self.environment.require(self.checkpoint.environment)

    def require_data(self, task_ids: Sequence[str]) -> None:
        """Check that the data of merged tasks are those that were merged.

        Raises:
            DigestMismatchError: naming the first task whose data changed.
        """
        tasks = self.tasks()
        check_data(self.checkpoint.state, task_ids, tasks, lambda task_id: tasks.encode(task_id, self.processor))

    def new_tasks(self) -> TaskDataset:
        """Return the tasks, without rows, of which there are local models and that are not merged."""
        state = self.checkpoint.state
        new = [task_id for task_id in self.local_models or () if task_id not in state.records]
        if not new:
            raise TaskDataError("There is nothing to add: give tasks, or checkpoints of tasks that are not merged.")
        return TaskDataset.without_rows(self.checkpoint.task_spec, new, keyed=self.checkpoint.has_keyed_ids)

    def tasks(self) -> TaskDataset:
        """Return the data of the merged tasks; their ids alone if they were merged without data."""
        records = self.checkpoint.state.records
        if records and not have_data(records):
            return TaskDataset.without_rows(self.checkpoint.task_spec, records, keyed=self.checkpoint.has_keyed_ids)
        if not records and self.data is None:
            # Of no task, there is no data to be found.
            return TaskDataset(self.checkpoint.task_spec, {}, self.checkpoint.source)
        return find_tasks(self.checkpoint, self.data, self.origin, self.task_id_key)


def find_tasks(
    checkpoint: Checkpoint, data: TaskDataset | DataFiles | None, origin: Path | None, task_id_key: str | None = None
) -> TaskDataset:
    """Return the tasks' data: given, or from the source that the ledger names.

    Args:
        checkpoint (`Checkpoint`): the merged model.
        data (`TaskDataset`, `str`, `Path` or *list* of them, *optional*): the data, or files of their rows.
        origin (`Path`, *optional*): the saved model's folder; files are looked for beside it, then in the working
            directory.
        task_id_key (`str`, *optional*): the key of the ledger's task ids, if they are keyed.

    Raises:
        TaskDataError: if they are not to be found, or are cut into tasks in another way.
    """
    spec = checkpoint.task_spec.to_dict()
    tasks = data if isinstance(data, TaskDataset) else _load_tasks(checkpoint, data, origin)
    found = tasks.spec.to_dict()
    odd = [key for key in spec if found.get(key) != spec[key]]
    if odd:
        raise TaskDataError(
            f"The data given are cut into tasks in another way than the merged ones: {odd[0]} is "
            f"{found.get(odd[0])!r}, the model's recipe says {spec[odd[0]]!r}. Give the data with the recipe's "
            "settings."
        )
    return in_ledger(checkpoint, tasks, task_id_key)


def in_ledger(checkpoint: Checkpoint, tasks: TaskDataset, task_id_key: str | None) -> TaskDataset:
    """Return tasks under the ids that the ledger has: as they are, or keyed.

    Raises:
        TaskDataError: if the ledger's ids are keyed and the key is not given.
    """
    if not checkpoint.has_keyed_ids or tasks.is_keyed:
        return tasks
    if task_id_key is None:
        raise TaskDataError(
            "The ledger of this model keeps keyed commitments instead of task ids, so the data's ids say nothing "
            "without the key: give task_id_key to from_pretrained (CLAMU_TASK_ID_KEY for the command line)."
        )
    return tasks.with_key(task_id_key)


def _load_tasks(checkpoint: Checkpoint, data: DataFiles | None, origin: Path | None) -> TaskDataset:
    spec = checkpoint.task_spec.to_dict()
    source = checkpoint.source
    if source is None:
        if data is None:
            raise TaskDataError(
                "The ledger of this model names no source of rows: it was built from data in memory, or from "
                "checkpoints. Give the data of the "
                "merged tasks (data=, --data PATH)."
            )
        source = {"files": data, **{key: value for key, value in spec.items() if value is not None}}
    # Labels are declared once for the whole space: rows of forgotten tasks may be gone by now.
    source = {**source, "label_names": spec.get("label_names")} if spec.get("label_names") else source
    beside = [origin.absolute().parent] if origin is not None else []
    return load_tasks(source, data=data, search_dirs=[*beside, Path.cwd()])


def build(
    base: Any,
    processor: Any,
    tasks: TaskDataset,
    arguments: ClamuArguments,
    describe: Callable[[MergedState], ClamuConfig],
    fresh: dict[str, torch.Tensor],
    source: Mapping[str, Any] | None,
    progress: Progress,
    space: PeftSpace | None = None,
    journal: Journal | None = None,
    archive: Archive | None = None,
    local_models: LocalModels | None = None,
    *,
    backwards: bool = False,
) -> Rebuilt:
    """Build a merged model from all tasks given, with all processes of the run.

    Args:
        base (`transformers.PreTrainedModel`): the base model; it holds its weights again afterwards.
        processor (*optional*): tokenizer or image processor.
        tasks (`TaskDataset`): the data.
        arguments (`ClamuArguments`): the settings.
        describe (*callable*): makes the configuration of the result.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the base checkpoint lacks.
        source (*mapping*, *optional*): where the data came from, for the ledger.
        progress (`Progress`): shows how far it is.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        journal (`Journal`, *optional*): keeps what is finished, for another start.
        archive (`Archive`, *optional*): gets the vectors of the tasks.
        local_models (`LocalModels`, *optional*): of the tasks that are not to be finetuned here.
        backwards (`bool`): take tasks and clusters in the opposite order and split them over the processes in another
            way (`training.workers.split_backwards`), which must not show in any byte.
    """
    started = time.perf_counter()
    workers = Workers.current()
    shares_cpu = workers.size > 1 and workers.device.type == "cpu"
    if shares_cpu and arguments.num_threads is None and depends_on_threads(tasks, arguments):
        raise RecipeError(
            "num_threads must be set where several processes share the CPU: sums depend on the number of threads, and "
            f"launchers change it. Set it in the recipe's arguments, such as num_threads: 1 (now {workers.size} "
            "processes)."
        )
    threads = arguments.num_threads or torch.get_num_threads()
    environment = Environment.capture(workers.device, threads, portable=arguments.portable)
    stage = _Stage(
        base, processor, tasks, arguments, environment, progress, space, journal, archive, local_models, backwards
    )
    state, seconds = stage.run(lambda trainer: merge_tasks(trainer, arguments), adds=True)
    if space is not None and workers.is_main and not backwards:
        warn_of_idle_parts([record.bounds for record in state.records.values()])
    checkpoint = Checkpoint(
        config=describe(state),
        state=state,
        environment=environment if depends_on_environment(state.records, arguments) else None,
        source=dict(source) if source is not None else None,
        fresh=fresh,
    )
    seconds = {**seconds, "total": time.perf_counter() - started}
    return Rebuilt(checkpoint=checkpoint, base=base, tasks=tasks, how="rebuilt", seconds=seconds)


@dataclass(frozen=True)
class _Stage:
    """Everything that a change of state runs on."""

    base: Any
    processor: Any
    tasks: TaskDataset
    arguments: ClamuArguments
    environment: Environment
    progress: Progress
    space: PeftSpace | None
    journal: Journal | None
    archive: Archive | None
    local_models: LocalModels | None
    backwards: bool = False

    def run(self, change: Callable[[TaskTrainer], MergedState], *, adds: bool) -> tuple[MergedState, dict[str, float]]:
        workers = Workers.current()
        with workers.watched(), contextlib.ExitStack() as stack:
            key = "" if self.journal is None and workers.size == 1 else self._key()
            if self.journal is not None:
                if workers.is_main:
                    stack.enter_context(self.journal.locked())
                self.journal.open(key)
            if self.archive is not None and workers.is_main:
                self.archive.open(may_create=adds)
            # Nobody goes on where the main process was refused, and nobody with other weights or libraries.
            keys = workers.gather(key)
            if len(set(keys)) > 1:
                odd = next(rank for rank, key in enumerate(keys) if key != keys[0])
                raise EnvironmentMismatchError(
                    f"Process {odd} has another base model or environment than process 0, so their bits would differ. "
                    "Start all processes with the same libraries, on the same kind of device."
                )
            stack.enter_context(deterministic(self.environment.num_threads))
            trainer = open_trainer(
                self.base,
                self.processor,
                self.tasks,
                self.arguments,
                self.progress,
                self.space,
                self.journal,
                self.archive,
                self.local_models,
            )
            trainer.backwards = self.backwards
            # After a mismatch, too: a rebuild starts from this model.
            stack.callback(trainer.workspace.release)
            state = change(trainer)
            if self.archive is not None:
                for rank in range(workers.size):  # in turn: they may share a disk, and a repository on the Hub
                    if rank == workers.rank:
                        self.archive.flush()
                    workers.meet()
            return state, trainer.seconds

    def _key(self) -> str:
        """Return the digest of what the bits depend on besides the tasks' data."""
        return digest_json(
            {
                "arguments": self.arguments.to_dict(),
                "base": digest_tensors(dict(self.base.state_dict())),
                "environment": self.environment.to_dict(),
                "peft_config": None if self.space is None else self.space.to_dict(),
                "peft_merging": None if self.space is None else self.space.merging,
            }
        )


def rebuild(request: Request, tasks: TaskDataset, *, backwards: bool = False) -> Rebuilt:
    """Build anew from these tasks, under this environment; in the opposite order and another split, if that is wanted.

    Raises:
        TaskDataError: if one was finetuned elsewhere and its local model is not given.
    """
    config, records = request.checkpoint.config, request.checkpoint.state.records
    given = request.local_models or LocalModels({})
    foreign = [one for one in tasks.task_ids if one in records and records[one].from_checkpoint]
    absent = [one for one in foreign if one not in given]
    if absent:
        raise missing_checkpoints_error(absent, "to be added up again")

    def describe(state: MergedState) -> ClamuConfig:
        return described(config, state)

    return build(
        request.base,
        request.processor,
        tasks,
        request.arguments,
        describe,
        request.checkpoint.fresh,
        request.checkpoint.source,
        request.progress,
        request.space,
        request.journal,
        request.archive,
        # Of the others, too, a local model may be given; but a build finetunes them.
        given.select(foreign),
        backwards=backwards,
    )


def unmerge(request: Request, task_ids: Sequence[str], on_mismatch: str) -> Rebuilt:
    """Forget tasks; on a mismatch raise, or rebuild from the retained tasks or localize here, as the caller chose.

    With an archive nothing is retrained, so the environment matters only where something is derived from more than
    integers, ids and settings.
    """
    state = request.checkpoint.state
    missing_tasks(task_ids, state.records)
    retained = [task_id for task_id in state.task_ids if task_id not in set(task_ids)]
    tasks = _tasks_if_needed(request)
    localized_in = None

    def require_environment() -> None:
        nonlocal localized_in
        if request.archive is not None and is_environment_independent(
            {one: state.records[one] for one in retained}, request.arguments
        ):
            return
        try:
            request.require_environment()
        except EnvironmentMismatchError as error:
            if request.archive is None:
                raise
            if on_mismatch != "localize":
                raise EnvironmentMismatchError(
                    f"{error} The archive spares the retraining, but clusters, masks or scores are computed here: "
                    "on_mismatch='localize' (--on-mismatch localize) subtracts exactly and derives those in this "
                    "environment, which the ledger then names."
                ) from None
            localized_in = request.environment

    def change(trainer: TaskTrainer) -> MergedState:
        return unmerge_tasks(state, task_ids, trainer, request.arguments)

    def again() -> TaskDataset:
        return with_rows(tasks, retained)

    kept = tasks.select([task_id for task_id in retained if task_id in tasks])
    built = _changed(request, task_ids, tasks, require_environment, change, again, kept, "subtracted", on_mismatch)
    if built.how == "rebuilt":
        return built
    checkpoint = replace(built.checkpoint, localized_in=localized_in)
    return replace(built, checkpoint=checkpoint, tasks=kept if len(kept) or request.archive is None else None)


def _tasks_if_needed(request: Request, new: TaskDataset | None = None) -> TaskDataset:
    """Return the data of the merged tasks; none of them where they are neither to be found nor needed.

    Args:
        request (`Request`): its archive spares retraining.
        new (`TaskDataset`, *optional*): tasks that come, where none leaves.
    """
    checkpoint = request.checkpoint
    try:
        return request.tasks()
    except TaskDataError:
        if new is None and request.archive is None:
            raise
        validated = new is not None and any(map(new.has_validation, new))
        if deriving_reads_data(checkpoint.state, request.arguments, validated):
            raise
    return TaskDataset(checkpoint.task_spec, {}, checkpoint.source)


def add(request: Request, new: TaskDataset) -> Rebuilt:
    """Merge more tasks."""
    state = request.checkpoint.state
    new = in_ledger(request.checkpoint, new, request.task_id_key)
    for task_id in new.task_ids:
        if task_id in state.records:
            raise TaskAlreadyMergedError(
                f"Task {task_id!r} is merged already. To replace its data, update it (update_task, clamu update)."
            )
    strange = [one for one in request.local_models or () if one not in state.records and one not in new]
    if strange:
        raise TaskDataError(
            f"There is a checkpoint of task {strange[0]!r}, which is neither merged nor among the tasks to add. Name "
            "it as the task is, or leave it out."
        )
    if len(new) and not new.has_rows:
        require_no_data(request.arguments)
    started = time.perf_counter()
    request.require_environment()
    tasks = new
    if state.task_ids:
        old = _tasks_if_needed(request, new)
        tasks = old.select([task_id for task_id in state.task_ids if task_id in old]).merged_with(new)
    after, seconds = _derived(
        request, tasks, lambda trainer: add_tasks(state, new.task_ids, trainer, request.arguments), adds=True
    )
    seconds["total"] = time.perf_counter() - started
    return _answer(request, after, tasks, "added", seconds)


def update(request: Request, new: TaskDataset, on_mismatch: str) -> Rebuilt:
    """Give merged tasks other data; on a mismatch raise, or rebuild with the new data if the caller chose so.

    Args:
        request (`Request`): its data are those that were merged.
        new (`TaskDataset`): tasks under the ledger's ids, see `outdated`.
        on_mismatch (`str`): `"error"` or `"rebuild"`.
    """
    state = request.checkpoint.state
    foreign = [one for one in new.task_ids if state.records[one].from_checkpoint]
    if foreign:
        raise TaskDataError(
            f"Task {foreign[0]!r} came from a checkpoint, so other data do not give another vector. Unmerge it, then "
            "add its new checkpoint."
        )
    old = request.tasks()
    others = [task_id for task_id in state.task_ids if task_id not in new]
    tasks = old.select([task_id for task_id in others if task_id in old]).merged_with(new)

    def change(trainer: TaskTrainer) -> MergedState:
        return update_tasks(state, new, trainer, request.arguments)

    def again() -> TaskDataset:
        return with_rows(old, others).merged_with(new)

    check = request.require_environment
    return _changed(request, new.task_ids, old, check, change, again, tasks, "updated", on_mismatch)


def outdated(request: Request, new: TaskDataset) -> TaskDataset:
    """Return, under the ledger's ids, the tasks whose data differ from those that were merged.

    Raises:
        TaskNotFoundError: if a task is not merged.
    """
    records = request.checkpoint.state.records
    new = in_ledger(request.checkpoint, new, request.task_id_key)
    missing_tasks(new.task_ids, records)
    found = []
    for task_id in new.task_ids:
        encoded, record = new.encode(task_id, request.processor), records[task_id]
        if (encoded.digest, encoded.cluster_key) != (record.data_digest, record.cluster_key):
            found.append(task_id)
    return new.select(found)


def _changed(
    request: Request,
    leaving: Sequence[str],
    tasks: TaskDataset,
    require_environment: Callable[[], None],
    change: Callable[[TaskTrainer], MergedState],
    again: Callable[[], TaskDataset],
    kept: TaskDataset,
    how: str,
    on_mismatch: str,
) -> Rebuilt:
    """Subtract tasks and do what else a change needs, or build from `again()` if that is wanted and necessary."""
    started = time.perf_counter()
    given = request.local_models or ()
    if on_mismatch == "rebuild" and request.archive is None and any(one not in (*tasks, *given) for one in leaving):
        return rebuild(request, again())  # their owners' rows are deleted already
    try:
        require_environment()
        after, seconds = _derived(request, tasks, change)
    except (ArchiveError, DigestMismatchError, EnvironmentMismatchError):
        if on_mismatch != "rebuild":
            raise
        return rebuild(request, again())
    seconds["total"] = time.perf_counter() - started
    return _answer(request, after, kept, how, seconds)


def first_config(
    base: BaseModel, arguments: ClamuArguments, tasks: TaskDataset, card: CardSettings
) -> Callable[[MergedState], ClamuConfig]:
    """Return what makes the configuration of a build.

    What is merged under which settings is the whole configuration; it names no machine.
    """
    config = ClamuConfig(
        architecture=type(base.model).__name__,
        base_model=base.reference().to_dict(),
        base_config=base.config_dict(),
        generation_config=base.generation_dict(),
        arguments=arguments.to_dict(),
        task_spec=tasks.spec.to_dict(),
        task_ids="hmac-sha256" if tasks.is_keyed else "plain",
        peft_config=None if base.space is None else base.space.to_dict(),
        peft_merging=None if base.space is None else base.space.merging,
        card=card.to_dict(),
    )
    return lambda state: described(config, state)


def described(config: ClamuConfig, state: MergedState) -> ClamuConfig:
    """Return a configuration with what it says of the state brought up to date."""
    values = config.to_file_dict()
    del values["model_type"], values["architectures"]
    values |= {
        "delta_digest": digest_tensors(state.delta),
        "alpha": state.alpha,
        "scores": state.scores,
        "num_tasks": len(state.records),
        "num_clusters": len(state.clusters),
    }
    return ClamuConfig(**values)


def _derived(
    request: Request, tasks: TaskDataset, change: Callable[[TaskTrainer], MergedState], *, adds: bool = False
) -> tuple[MergedState, dict[str, float]]:
    return _Stage(
        request.base,
        request.processor,
        tasks,
        request.arguments,
        request.environment,
        request.progress,
        request.space,
        request.journal,
        request.archive,
        request.local_models,
    ).run(change, adds=adds)


def _answer(request: Request, state: MergedState, tasks: TaskDataset, how: str, seconds: dict[str, float]) -> Rebuilt:
    before = request.checkpoint
    # Of no task, too, there is what a build would write.
    depends = depends_on_environment(state.records, request.arguments)
    environment = (before.environment or request.environment) if depends else None
    checkpoint = Checkpoint(
        config=described(before.config, state),
        state=state,
        environment=environment,
        source=before.source,
        fresh=before.fresh,
    )
    return Rebuilt(checkpoint=checkpoint, base=request.base, tasks=tasks, how=how, seconds=seconds)


def open_trainer(
    base: Any,
    processor: Any,
    tasks: TaskDataset,
    arguments: ClamuArguments,
    progress: Progress,
    space: PeftSpace | None = None,
    journal: Journal | None = None,
    archive: Archive | None = None,
    local_models: LocalModels | None = None,
) -> TaskTrainer:
    """Return a `TaskTrainer` on a base model, as every stage uses it."""
    workers = Workers.current()
    workspace = Workspace(
        base,
        freeze=arguments.freeze,
        device=workers.device,
        pad_token_id=getattr(processor, "pad_token_id", None) or 0,
        bf16=arguments.bf16,
        adapter=None if space is None else space.local_adapter(arguments.seed),
    )
    if space is not None and space.is_live and arguments.freeze:
        require_learning(base, workspace.parameters)
    return TaskTrainer(
        workspace, tasks, processor, arguments, arguments.codec, progress, workers, journal, archive, local_models
    )
