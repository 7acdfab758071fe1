"""`ClamuModel`: a transformers model that serves clusters and forgets tasks.

The class of a loaded model is a subclass of the base architecture that keeps its name, not a module around it: every
tool that takes a `PreTrainedModel` takes it. `ClamuModel` itself is the mixin that all of them share.
"""

from __future__ import annotations

import copy
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from hf_clamu.base_models.adapters.export import plain_model, save_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import cast_others, kept_in_float32, move_to_device_map
from hf_clamu.base_models.identity import load_architecture
from hf_clamu.base_models.library_calls import suppress_load_report
from hf_clamu.base_models.processors import save_processor
from hf_clamu.base_models.saved import clone_base, load_base_of, saved_processor
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.comparison import VerificationReport, compare_folders
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.layout import BASE_FOLDER, LEDGER_NAME
from hf_clamu.checkpoint.ledger import ledger_entries
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.errors import (
    ClusterNotFoundError,
    EnvironmentMismatchError,
    IncompatibleBaseError,
    TaskDataError,
    TaskNotFoundError,
    WeightsChangedError,
)
from hf_clamu.exact import ALL_WEIGHTS, NO_WEIGHTS, PackedMask, WeightSwitch
from hf_clamu.hub import erase
from hf_clamu.hub.archive import archive_at
from hf_clamu.hub.pull import download, is_repo_id
from hf_clamu.hub.push import PushResult, publish
from hf_clamu.local_models.local_models import LocalModels, require_named
from hf_clamu.merging import ClamuArguments, require_merged
from hf_clamu.models.exporting import require_same_adapter, require_same_checkpoint
from hf_clamu.models.saving import require_unchanged, save_checkpoint
from hf_clamu.operations.add import add
from hf_clamu.operations.build import rebuild
from hf_clamu.operations.data import load_merged_tasks, with_ledger_ids
from hf_clamu.operations.lifecycle.pending import (
    Change,
    archived_names,
    finish_pending,
    record_pending,
    remove_pending,
)
from hf_clamu.operations.lifecycle.receipts import PENDING, amend_receipt, make_receipt, salted_ids
from hf_clamu.operations.lifecycle.recovery import finalize_changes, needs_recovery, recover_pending
from hf_clamu.operations.local_merge import LocalMerge
from hf_clamu.operations.request import ChangeResult, Request, RequestKind, on_mismatch_of
from hf_clamu.operations.unmerge import unmerge
from hf_clamu.operations.update import update
from hf_clamu.storage import Archive, Journal
from hf_clamu.storage.replace import staged_folder
from hf_clamu.storage.staging import scratch_folder
from hf_clamu.tasks import DataFiles, TaskDataset, keyed_id
from hf_clamu.training import Progress, Workers, silent_progress, undisturbed

__all__ = ["ClamuModel", "attach"]

_Method = TypeVar("_Method", bound=Callable[..., Any])

# What transformers' Auto classes and pipelines hand to every `from_pretrained`.
_IGNORED_OPTIONS = (
    *("config", "trust_remote_code", "code_revision", "adapter_kwargs", "use_safetensors", "low_cpu_mem_usage"),
    *("proxies", "tokenizer", "commit_hash"),
)
# What transformers' tools hand to every `save_pretrained`, and what decides nothing here: the weights are those that
# are merged, in files of our own.
_PUSH_OPTIONS = ("commit_message", "create_pr", "private", "repo_id", "revision", "token")
_IGNORED_SAVE_OPTIONS = ("max_shard_size", "safe_serialization", "save_function", "save_peft_format", "state_dict")


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from or last saved to.

    Args:
        folder (`Path`): of the saved model; for one from the Hub, in the cache.
        repo_id (`str`, *optional*): the Hub repo.
        commit (`str`, *optional*): its commit when it was loaded or pushed.
        revision (`str`): the branch, tag or commit that was asked for.
        token (`str` or `bool`, *optional*): that it was loaded with.
        ledgers (*mapping* of `Path` to `str`): digests of the ledgers that were seen or written last, by folder.
    """

    folder: Path
    repo_id: str | None = None
    commit: str | None = None
    revision: str = "main"
    token: str | bool | None = None
    ledgers: Mapping[Path, str] = field(default_factory=dict)


@dataclass
class _Attachment:
    """What a live model knows of its merging; replaced as a whole when tasks come or go."""

    checkpoint: Checkpoint
    switch: WeightSwitch
    processor: Any = None
    handed_out: Any = None
    tasks: TaskDataset | None = None
    origin: Origin | None = None
    task_id_key: str | None = None
    base_name: str = ""
    journals: list[Journal] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    receipt_dirs: list[Path | None] = field(default_factory=list)
    unsaved: list[Change] = field(default_factory=list)


def _alone(method: _Method) -> _Method:
    """Let a method hold the live model: no other thread switches it, serves from it or changes its state meanwhile."""

    @wraps(method)
    def held(self: ClamuModel, /, *args: Any, **kwargs: Any) -> Any:
        with self._attached.switch.guard.lock:
            return method(self, *args, **kwargs)

    return cast(_Method, held)


class ClamuModel:
    """A merged model with clusters, ready for everything that takes a `transformers.PreTrainedModel`.

    Make one with `ClamuTrainer.train()` or load one with `ClamuModel.from_pretrained`. Fresh from either it is the
    global model; `set_cluster` brings a cluster's weights.

    Example:

    ```python
    model = ClamuModel.from_pretrained("clamu-reddit")
    model.set_cluster(task="user_17")
    model.unmerge_task("user_17")
    model.save_pretrained("clamu-reddit")
    ```
    """

    _clamu: Any

    @classmethod
    @undisturbed()
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cluster: int | None = None,
        task: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        task_id_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model; digests of all files and of the base model are checked.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder that `save_pretrained` wrote, or a Hub id.
            cluster (`int`, *optional*): the cluster to select.
            task (`str`, *optional*): select the cluster that serves this task.
            revision (`str`, *optional*): branch, tag or commit on the Hub.
            token (`str` or `bool`, *optional*): for private repos.
            cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
            local_files_only (`bool`, *optional*): do not look at the Hub.
            force_download (`bool`, *optional*): fetch the repo's files although the cache holds them.
            dtype (`str` or `torch.dtype`, *optional*): serve in this type: `W0` and `W0 + alpha * delta` are computed
                in the type of the build and cast once. A model that was cast cannot unmerge.
            device_map (`str`, `torch.device`, `int` or *dict*, *optional*): where to serve; `"auto"` takes the first
                GPU if there is one.
            attn_implementation (`str`, *optional*): of the base architecture.
            task_id_key (`str`, *optional*): the key of the ledger's task ids, if it keeps keyed commitments; methods
                then take plain ids.
            kwargs: what transformers' Auto classes and pipelines pass along and this has no use for.

        Returns:
            `ClamuModel`: an instance of the base architecture's class.

        Raises:
            CheckpointFormatError: if a file is missing, truncated, tampered with, or of a newer format.
            HubError: if the repo cannot be downloaded.
            IncompatibleBaseError: if the base model is not the one that was merged into.
            TaskNotFoundError: if no such task is merged.
        """
        if dtype is None:
            dtype = kwargs.pop("torch_dtype", None)  # its older name, which transformers still takes
        if kwargs.pop("subfolder", None):
            raise ValueError("A saved ClAMU model is a folder or repo of its own: subfolder= cannot be given.")
        odd = sorted(
            key
            for key, value in kwargs.items()
            if key not in _IGNORED_OPTIONS and not key.startswith("_") and value is not None
        )
        if odd:
            raise TypeError(f"ClamuModel.from_pretrained does not know the option {odd[0]!r}.")
        options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        origin = Origin(folder=Path(pretrained_model_name_or_path))
        if is_repo_id(str(pretrained_model_name_or_path)):
            repo_id = str(pretrained_model_name_or_path)
            folder, commit = download(repo_id, revision=revision, force_download=force_download, **options)
            origin = Origin(folder=folder, repo_id=repo_id, commit=commit, revision=revision or "main", token=token)
        checkpoint = read_checkpoint(origin.folder)
        if checkpoint.files is not None:
            origin = replace(origin, ledgers={origin.folder.resolve(): checkpoint.files.digest})
        model, contents = load_base_of(origin.folder, checkpoint, attn_implementation=attn_implementation, **options)
        processor = saved_processor(origin.folder, checkpoint)
        loaded = attach(model, checkpoint, processor=processor, origin=origin, dtype=_dtype(dtype), contents=contents)
        loaded._attached.task_id_key = task_id_key
        move_to_device_map(loaded, device_map)
        if cluster is not None or task is not None:
            loaded.set_cluster(cluster, task=task)
        return loaded

    @classmethod
    @undisturbed()
    def merge(
        cls,
        base: Any,
        checkpoints: Mapping[str, str | Path],
        args: ClamuArguments | None = None,
        *,
        tasks: TaskDataset | None = None,
        processing_class: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        task_id_key: str | None = None,
        card: CardSettings | Mapping[str, Any] | None = None,
        journal_dir: str | Path | None = None,
        archive_dir: str | Path | None = None,
        progress: Progress = silent_progress,
    ) -> Any:
        """Merge local models that were finetuned elsewhere; they are read one after the other, tensor by tensor.

        The result forgets and adds tasks, and is byte for byte a merge of those that are left, whatever their order.

        Args:
            base (`str`, `Path`, *dict* or `transformers.PreTrainedModel`): the model that they were finetuned from, as
                in `ClamuTrainer`; in float32, unless it is a model in memory.
            checkpoints (*mapping* of `str` to `str` or `Path`): task id to the folder of a plain transformers
                checkpoint (safetensors, perhaps sharded, of any floating-point type), or to a Hub id.
            args (`ClamuArguments`, *optional*): the settings. Those of finetuning have no effect. Without data the
                default is `clustering="task_vectors", localization="emr"`.
            tasks (`TaskDataset`, *optional*): the data of the tasks, for learned masks, clusters of features and
                held-out scores. Tasks without a checkpoint take no part.
            processing_class (*optional*): tokenizer or image processor; by default the base model's own.
            revision (`str`, *optional*): branch, tag or commit of the base model on the Hub.
            token (`str` or `bool`, *optional*): for private repos.
            cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
            task_id_key (`str`, *optional*): a secret that keys the ids in the ledger, as in `ClamuTrainer`.
            card (`CardSettings` or *dict*, *optional*): as in `ClamuTrainer`.
            journal_dir (`str` or `Path`, *optional*): as in `ClamuTrainer`.
            archive_dir (`str` or `Path`, *optional*): as in `ClamuTrainer`; requests with the archive do not need the
                checkpoints again.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `ClamuModel`: the global model selected.

        Raises:
            CheckpointFormatError: if a file of a checkpoint is missing or damaged.
            FixedPointOverflowError: if a weight is NaN or infinite; the message names the task.
            IncompatibleBaseError: if a checkpoint has another architecture, other tensors or other shapes than the
                base; the message names file and parameter.
            RecipeError: if a setting looks at data, and there are none.
            TaskDataError: if a folder, or the data of a task, is missing.
        """
        journal = None if journal_dir is None else Journal(Path(journal_dir))
        start = LocalMerge(
            base=base,
            checkpoints=checkpoints,
            arguments=args,
            tasks=tasks,
            processor=processing_class,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            task_id_key=task_id_key,
            card=card if isinstance(card, CardSettings) else CardSettings.from_dict(card or {}),
        )
        built, loaded = start.run(journal, archive_at(archive_dir), progress)
        kept = built.tasks_with_rows
        model = attach(built.base, built.checkpoint, processor=loaded.processor, tasks=kept)
        model._attached.task_id_key = task_id_key
        model._attached.journals = [] if journal is None else [journal]
        return model

    # -- what is merged ------------------------------------------------------------------------------------------

    @property
    def clamu_config(self) -> ClamuConfig:
        """The configuration that a saved model has in `config.json`."""
        return self._attached.checkpoint.config

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the merged tasks, sorted."""
        return self._attached.checkpoint.state.task_ids

    @property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """Member ids of each cluster."""
        return self._attached.checkpoint.state.clusters

    @property
    def cluster(self) -> int | None:
        """The selected cluster; `None` for the global model."""
        return self._attached.switch.selected.cluster

    @property
    def ledger(self) -> dict[str, Any]:
        """The merged tasks with digests, example counts, bounds and clusters, as in `ledger.json`."""
        checkpoint = self._attached.checkpoint
        return {
            "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
            **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
            "source": checkpoint.source,
            **ledger_entries(checkpoint.state),
        }

    def state_digest(self) -> str:
        """Return the SHA-256 of everything that is merged; receipts name it, and `clamu info` prints it."""
        return self._attached.checkpoint.state_digest

    @property
    def task_features(self) -> torch.Tensor | None:
        """What the tasks are clustered by: features or sketches of shape `(tasks, size)`, by sorted id."""
        return self._attached.checkpoint.state.task_features

    @property
    def receipts(self) -> tuple[dict[str, Any], ...]:
        """Receipts of the requests that this object carried out."""
        return tuple(self._attached.receipts)

    @property
    def processor(self) -> Any:
        """A copy of the tokenizer or image processor that is saved with the model; `None` if there is none.

        It is yours to change (its padding side, say): what is saved and trained with stays as it was.
        """
        attached = self._attached
        if attached.handed_out is None and attached.processor is not None:
            attached.handed_out = copy.deepcopy(attached.processor)
        return attached.handed_out

    def cluster_of(self, task_id: str) -> int:
        """Return the number of the cluster that serves a task.

        Raises:
            TaskNotFoundError: if no such task is merged.
        """
        state, named = self._attached.checkpoint.state, self.ledger_id(task_id)
        if named not in state.records:
            require_merged([task_id], state.records)  # the error says the id as it was asked for, not its commitment
        return state.cluster_of(named)

    def ledger_id(self, task_id: str) -> str:
        """Return the id that the ledger has for a task: the same, or its keyed commitment.

        Raises:
            TaskNotFoundError: if the ledger's ids are keyed and this model was loaded without the key.
        """
        attached = self._attached
        if not attached.checkpoint.has_keyed_ids or task_id in attached.checkpoint.state.records:
            return task_id
        if attached.task_id_key is None:
            raise TaskNotFoundError(
                f"The ledger keeps keyed commitments instead of task ids, so {task_id!r} cannot be looked up without "
                "the key: load the model with task_id_key= (CLAMU_TASK_ID_KEY for the command line)."
            )
        return keyed_id(attached.task_id_key, task_id)

    # -- serving -------------------------------------------------------------------------------------------------

    @_alone
    def set_cluster(self, cluster: int | None = None, *, task: str | None = None) -> ClamuModel:
        """Bring a cluster's weights into the live model, bit for bit, in place.

        Where several threads use the model, another one may select before this one runs the model: use `serving`.

        Args:
            cluster (`int`, *optional*): number of the cluster; `None` selects the global model.
            task (`str`, *optional*): instead of a number, the cluster that serves this task.

        Returns:
            `ClamuModel`: the model itself.

        Raises:
            TaskNotFoundError: if no such task is merged.
            ClusterNotFoundError: if there is no such cluster.
            WeightsChangedError: if a weight was changed since the last switch; nothing is touched then.
        """
        state = self._attached.checkpoint.state
        if task is not None:
            if cluster is not None:
                raise ValueError("set_cluster takes a cluster number or a task, not both.")
            cluster = self.cluster_of(task)
        if cluster is None:
            self._select(ALL_WEIGHTS)
        else:
            if isinstance(cluster, bool) or not isinstance(cluster, int):
                raise TypeError(f"cluster must be a whole number or None, got {cluster!r}; for a task use task=.")
            if not 0 <= cluster < len(state.clusters):
                count = len(state.clusters)
                known = f"this model has {count}, numbered from 0 to {count - 1}" if count else "this model has none"
                raise ClusterNotFoundError(f"There is no cluster {cluster}; {known}.")
            self._select(replace(state.mask(cluster), cluster=cluster))
        return self

    @_alone
    def set_base(self) -> ClamuModel:
        """Bring the base model's own weights back, bit for bit; returns the model itself."""
        self._select(NO_WEIGHTS)
        return self

    @contextmanager
    def serving(self, cluster: int | None = None, *, task: str | None = None) -> Iterator[ClamuModel]:
        """Select a cluster and hold the model, so that selecting and running it are one step for all threads.

        Other threads wait where they select, serve, save or make a request, until the block ends. Then what was
        selected before is selected again.

        Args:
            cluster (`int`, *optional*): number of the cluster; `None` selects the global model.
            task (`str`, *optional*): instead of a number, the cluster that serves this task.

        Yields:
            `ClamuModel`: the model itself.

        Raises:
            TaskNotFoundError, ClusterNotFoundError, WeightsChangedError: as `set_cluster`.

        Example:

        ```python
        with model.serving(task="user_17"):
            logits = model(**inputs).logits
        ```
        """
        with self.held():
            self.set_cluster(cluster, task=task)
            yield self

    @contextmanager
    def held(self, *, restores: bool = True) -> Iterator[ClamuModel]:
        """Hold the model, as `serving` does, and leave to the block what is selected in it.

        Args:
            restores (`bool`): select again, after the block, what was selected before it; unless a request came in
                between, after which the global model is selected.

        Yields:
            `ClamuModel`: the model itself.
        """
        with self._attached.switch.guard.lock:
            attached = self._attached
            selected = attached.switch.selected
            try:
                yield self
            finally:
                if restores and self._attached is attached:
                    self._select(selected)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, unless a switch broke off in between."""
        if not self._attached.switch.is_consistent:
            raise WeightsChangedError(
                "A switch of clusters was interrupted, and the live weights are of no cluster now. Select one again "
                "with set_cluster; it finds out where they are."
            )
        live: Any = super()
        return live.__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> ClamuModel:
        live: Any = self
        with self._attached.switch.guard.lock:  # of weights that nobody switches meanwhile
            made: Any = type(self).__new__(type(self))
            memo[id(self)] = made
            made.__setstate__(copy.deepcopy(live.__getstate__(), memo))
        return made  # type: ignore[no-any-return]

    def _select(self, mask: PackedMask) -> None:
        attached, live = self._attached, self.__dict__
        # PEFT writes this name into adapters that are trained on top: it must not be that of other weights.
        cluster = "the global model" if mask.cluster is None else f"cluster {mask.cluster}"
        where = attached.origin.repo_id or attached.origin.folder if attached.origin is not None else "a live model"
        live["name_or_path"] = f"({cluster} of {where}: export it and name that folder)"
        attached.switch.select(self._parameters_by_name(), mask)
        if mask is NO_WEIGHTS:
            live["name_or_path"] = attached.base_name

    # -- requests ------------------------------------------------------------------------------------------------

    @_alone
    def unmerge_task(
        self,
        task_id: str | Sequence[str],
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | None = None,
        archive: str | Path | Archive | None = None,
        progress: Progress = silent_progress,
    ) -> ClamuModel:
        """Forget one task or many: the result is byte for byte a build without them.

        Each named task is retrained alone, checked by digest and subtracted; clusters, scaling coefficient and masks
        are derived from the retained tasks. Afterwards the global model is selected. Saving or pushing is a step of
        its own.

        Args:
            task_id (`str` or *sequence* of `str`): the tasks to forget.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of all merged tasks; by default what the
                model was trained with in this process, or the source that its ledger names.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): folders or Hub ids of local models that
                were finetuned elsewhere (see `merge`), as they were merged: of the named tasks, and where TALL or EMR
                masks are derived anew, of the retained ones, too.
            on_mismatch (`str`): `"error"`, or `"rebuild"` to build anew from the retained tasks if data, bits or
                environment differ from the ledger, or with an archive `"localize"` to derive clusters and masks in
                this environment if it differs.
            receipt_dir (`str` or `Path`, *optional*): writes the receipt there; it is in `receipts` anyway. With
                `journal_dir` it is written when the change is saved.
            journal_dir (`str` or `Path`, *optional*): a folder for what is finished, so that an interrupted request
                goes on from there when it is repeated. It holds vectors of the named tasks, and the receipt, until
                the next `save_pretrained` or `push_to_hub` removes it.
            archive (`str` or `Path`, *optional*): a folder, or `"hf://ORG/NAME"`, that
                `ClamuTrainer(archive_dir=...)` filled: the vectors are taken from there instead of retraining, so the
                rows of the named tasks are not needed. The next `save_pretrained` or `push_to_hub` destroys them
                there, and then receipts are written.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `ClamuModel`: the model itself.

        Raises:
            TaskNotFoundError: if one is not merged.
            DigestMismatchError: if data changed or the retrained bits differ; nothing is changed then.
            ArchiveError: if the archive lacks a vector or holds another one; nothing is changed then.
            EnvironmentMismatchError: if the environment differs; nothing is changed then.
            TaskDataError: if data are missing.
        """
        options = (on_mismatch, receipt_dir, journal_dir, archive, progress)
        return self._unmerge({None: task_id}, data, checkpoints, *options)

    @_alone
    def unmerge_requests(
        self,
        requests: Mapping[str, str | Sequence[str]],
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | None = None,
        archive: str | Path | Archive | None = None,
        progress: Progress = silent_progress,
    ) -> ClamuModel:
        """Carry out several requests to forget at once: the same bytes, one localization, and a receipt for each.

        Args:
            requests (*mapping* of `str` to `str` or *sequence* of `str`): the tasks that each request names, by what
                the request is called. Its receipt has this name and commitments to these tasks alone.
            data, checkpoints, on_mismatch, receipt_dir, journal_dir, archive, progress: as in `unmerge_task`.

        Raises:
            TaskNotFoundError: if a task of any request is not merged; nothing is changed then.
        """
        options = (on_mismatch, receipt_dir, journal_dir, archive, progress)
        return self._unmerge(dict(requests), data, checkpoints, *options)

    @undisturbed()
    def _unmerge(
        self,
        requests: Mapping[Any, str | Sequence[str]],
        data: TaskDataset | DataFiles | None,
        checkpoints: Mapping[str, str | Path] | None,
        on_mismatch: str,
        receipt_dir: str | Path | None,
        journal_dir: str | Path | None,
        archive: str | Path | Archive | None,
        progress: Progress,
    ) -> ClamuModel:
        named = {
            name: [self.ledger_id(one) for one in ([task_ids] if isinstance(task_ids, str) else task_ids)]
            for name, task_ids in requests.items()
        }
        way_out = on_mismatch_of(on_mismatch, "unmerge")
        if way_out == "localize" and archive is None:
            raise ValueError("on_mismatch='localize' goes with an archive: without one, tasks are retrained here.")
        ids = [task_id for task_ids in named.values() for task_id in task_ids]
        if self._settle_earlier("unmerge", ids, journal_dir, receipt_dir, archive):
            return self
        request = self._request(data, progress, journal_dir, archive, checkpoints)
        built = unmerge(request, ids, way_out)
        return self._replace_state("unmerge", named, built, request, receipt_dir)

    @_alone
    @undisturbed()
    def add_task(
        self,
        tasks: TaskDataset | None = None,
        *,
        checkpoints: Mapping[str, str | Path] | None = None,
        data: TaskDataset | DataFiles | None = None,
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | None = None,
        archive: str | Path | Archive | None = None,
        progress: Progress = silent_progress,
    ) -> ClamuModel:
        """Merge more tasks: the result is byte for byte a build that had them from the start.

        Args:
            tasks (`TaskDataset`, *optional*): the new tasks, with the same columns, labels and template as the merged
                ones. Without it the checkpoints of tasks that are not merged are added.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): folders or Hub ids of local models that
                were finetuned elsewhere: of new tasks, which are not finetuned then, and where TALL or EMR masks are
                derived anew, of the merged ones, too.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of the merged tasks, as in `unmerge_task`.
            receipt_dir (`str` or `Path`, *optional*): as in `unmerge_task`.
            journal_dir (`str` or `Path`, *optional*): as in `unmerge_task`.
            archive (`str` or `Path`, *optional*): a folder or `"hf://ORG/NAME"` that gets the new vectors.
            progress (`Progress`, *optional*): shows how far it is.

        Raises:
            TaskAlreadyMergedError: if one is merged already.
            DigestMismatchError: if the data of a merged task has changed.
            TaskDataError: if a folder is missing, or some tasks come with data and others without.
        """
        new = map(self.ledger_id, checkpoints or ()) if tasks is None else self.keyed_tasks(tasks).task_ids
        if self._settle_earlier("add", list(new), journal_dir, receipt_dir, archive):
            return self
        request = self._request(data, progress, journal_dir, archive, checkpoints, adds=True)
        tasks = request.new_tasks() if tasks is None else tasks
        built = add(request, tasks)
        ids = request.with_ledger_ids(tasks).task_ids
        return self._replace_state("add", {None: ids}, built, request, receipt_dir)

    @_alone
    @undisturbed()
    def update_task(
        self,
        tasks: TaskDataset,
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | None = None,
        archive: str | Path | Archive | None = None,
        progress: Progress = silent_progress,
    ) -> ClamuModel:
        """Give merged tasks other data (some examples more, some less): the result is byte for byte a build with it.

        The tasks are retrained on the data that was merged and subtracted, finetuned on the new data and added;
        clusters, scaling coefficient and masks are derived once. A task whose data did not change is left out; if
        none did, nothing happens and there is no receipt.

        Args:
            tasks (`TaskDataset`): all rows that the tasks are to have from now on.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of all merged tasks as they were merged, as in
                `unmerge_task`.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): as in `unmerge_task`, of other tasks: one
                that came from a checkpoint cannot be given other data.
            on_mismatch (`str`): as in `unmerge_task`; with `"rebuild"` the old rows need not be there any more.
            archive (`str` or `Path`, *optional*): the old vectors are taken from there, and the new ones go there.
            receipt_dir, journal_dir, progress: as in `unmerge_task`.

        Raises:
            TaskNotFoundError: if one is not merged; `add_task` merges it.
            DigestMismatchError: if the old data changed or the retrained bits differ; nothing is changed then.
            TaskDataError: if the old data are missing.
        """
        way_out = on_mismatch_of(on_mismatch, "update")
        self._settle_earlier("update", (), journal_dir, receipt_dir, archive)
        request = self._request(data, progress, journal_dir, archive, checkpoints)
        new = request.changed_tasks(tasks)
        if not len(new):
            return self
        built = update(request, new, way_out)
        return self._replace_state("update", {None: new.task_ids}, built, request, receipt_dir)

    def load_tasks(self, data: TaskDataset | DataFiles | None = None) -> TaskDataset:
        """Return the tasks' data: given, at hand from training, or from the source that the ledger names.

        Raises:
            TaskDataError: if they are not to be found, or are cut into tasks in another way than the merged ones.
        """
        attached = self._attached
        folder = None if attached.origin is None else attached.origin.folder
        return load_merged_tasks(
            attached.checkpoint, data if data is not None else attached.tasks, folder, attached.task_id_key
        )

    def keyed_tasks(self, tasks: TaskDataset) -> TaskDataset:
        """Return data under the ids that the ledger has, keyed if it keeps keyed commitments."""
        return with_ledger_ids(self._attached.checkpoint, tasks, self._attached.task_id_key)

    @_alone
    @undisturbed()
    def verify(
        self,
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        progress: Progress = silent_progress,
    ) -> VerificationReport:
        """Build anew from the data of the merged tasks and compare every byte of the saved model.

        Args:
            data (`TaskDataset`, `str` or `Path`, *optional*): as in `unmerge_task`.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): of all tasks that came from checkpoints.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `VerificationReport`: whether every file is identical, and which are not.

        Raises:
            EnvironmentMismatchError: if a rebuild here cannot give the same bits.
            DigestMismatchError: if the data of a merged task has changed.
        """
        started = time.perf_counter()
        request = self._request(data, progress, checkpoints=checkpoints)
        request.require_environment()
        if request.checkpoint.localized_in is not None:
            raise EnvironmentMismatchError(
                "Clusters and masks of this model were derived in another environment than its task vectors "
                "(on_mismatch='localize'), so no build in one environment gives its bytes. A request that is carried "
                "out here derives them anew."
            )
        request.require_data(self.tasks)
        built = rebuild(request, request.tasks().select(self.tasks), backwards=True)
        workers = Workers.current()
        with workers.watched():
            odd = self._differences(built) if workers.is_main else None
            count, differences, additional = workers.gather(odd)[0]
        return VerificationReport(
            identical=not differences,
            files_compared=count,
            differences=tuple(differences),
            additional=tuple(additional),
            seconds=time.perf_counter() - started,
        )

    def _differences(self, built: ChangeResult) -> tuple[int, list[str], list[str]]:
        """Compare the saved model with one built anew: how many files there are, which differ, and which are more."""
        with scratch_folder("verify") as scratch:
            rebuilt = scratch / "rebuilt"
            self._wrap(built).save_pretrained(rebuilt)
            ours = None if self._attached.origin is None else self._attached.origin.folder
            if ours is None or not _holds(ours, self._attached.checkpoint):
                ours = scratch / "ours"
                self.save_pretrained(ours, keep_origin=True)
            report = compare_folders(ours, rebuilt)
        return report.files_compared, list(report.differences), list(report.additional)

    # -- files ---------------------------------------------------------------------------------------------------

    @_alone
    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the merged model; an existing one at this place is replaced as a whole or not at all.

        The same files are written whatever cluster is selected. Files of others in the folder are kept. Where several
        processes work on a run, the main one writes.

        Args:
            save_directory (`str` or `Path`): the folder.
            kwargs: of transformers' `save_pretrained`. `is_main_process=False` writes nothing; `push_to_hub=True`
                pushes afterwards, with `repo_id` (by default the folder's name) and the other options of
                `push_to_hub`. `overwrite=True` replaces any model that is in the folder, `overwrite=False` none; by
                default one is replaced unless this model knows the folder and it was changed since.

        Raises:
            SaveConflictError: if something else was saved there since this model was loaded from it or saved to it;
                nothing is overwritten.
            WeightsChangedError: if the live weights were changed since the last switch. They are no merged model
                then, and the base class's own `save_pretrained(model, folder)` saves them as a plain one. So they are
                saved where transformers' `Trainer` asks for it, unless a merged model is at that place.
        """
        keep_origin, overwrite = kwargs.pop("keep_origin", False), kwargs.pop("overwrite", None)
        is_main_process, push = kwargs.pop("is_main_process", True), kwargs.pop("push_to_hub", False)
        push_options = {key: kwargs.pop(key) for key in _PUSH_OPTIONS if key in kwargs}
        by_trainer = "state_dict" in kwargs  # which transformers' Trainer gives and nobody else needs to
        odd = sorted(key for key, value in kwargs.items() if key not in _IGNORED_SAVE_OPTIONS and value is not None)
        if odd:
            raise TypeError(f"ClamuModel.save_pretrained does not know the option {odd[0]!r}.")
        if not is_main_process or (not keep_origin and not Workers.current().is_main):
            return
        target = Path(save_directory)
        attached = self._attached
        try:
            attached.switch.check(self._parameters_by_name())
        except WeightsChangedError:
            if not by_trainer or not attached.switch.is_consistent or (target / LEDGER_NAME).exists():
                raise
            self._save_plain(target, merge=True)
            return
        # A copy on disk does not forget which repo it belongs to.
        old, place = attached.origin or Origin(folder=target), target.resolve()
        known = old.ledgers.get(place)
        require_unchanged(target, attached.checkpoint, known, overwrite)
        if not keep_origin:
            self._announce_place(target)
        files = (attached.checkpoint, attached.processor, self._write_base)
        digest = save_checkpoint(target, *files, known=known, overwrite=overwrite)
        if not keep_origin:
            attached.origin = replace(old, folder=target, ledgers={**old.ledgers, place: digest})
            self._settle()
        if push:
            self.push_to_hub(**{"repo_id": target.name, **push_options})

    @_alone
    def push_to_hub(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        erase_history: bool = False,
    ) -> PushResult:
        """Push the merged model as one commit; on the Hub, too, there is the old state or the new one.

        Args:
            repo_id (`str`, *optional*): by default the repo that the model came from.
            private (`bool`, *optional*): for a new repo.
            revision (`str`, *optional*): the branch; `"main"` by default.
            commit_message (`str`, *optional*): by default says how many tasks are merged, and names none.
            create_pr (`bool`): open a pull request instead.
            token (`str` or `bool`, *optional*): by default the one that the model was loaded with.
            erase_history (`bool`): then remove everything but the new state, as far as the Hub allows (see
                `erase_history`); what still answers is in the result and in the last receipt. Cannot be undone.

        Returns:
            `PushResult`: the commit, and with `erase_history` the report.

        Raises:
            HubConflictError: if somebody pushed since this model was loaded; nothing is overwritten.
            HubError: if the Hub refuses or cannot be reached; the old state goes on serving.
        """
        attached = self._attached
        origin = attached.origin
        target = repo_id or (origin.repo_id if origin is not None else None)
        if target is None:
            raise ValueError("This model came from no Hub repo: give push_to_hub a repo_id, such as 'org/name'.")
        if erase_history and create_pr:
            raise ValueError("erase_history goes with a push to a branch, not with create_pr.")
        # From an older commit, too: what was pushed after it must not be overwritten unseen.
        known = origin is not None and origin.repo_id == target and revision in (None, origin.revision)
        if token is None and origin is not None:
            token = origin.token
        with scratch_folder("push") as scratch:
            folder = scratch / "model"
            self.save_pretrained(folder, keep_origin=True)
            result = publish(
                folder,
                target,
                token=token,
                private=private,
                revision=revision,
                commit_message=commit_message or f"Upload a ClAMU model of {len(self.tasks)} tasks",
                create_pr=create_pr,
                parent_commit=origin.commit if known and origin is not None else None,
            )
        if create_pr:
            return result
        old = (origin.commit,) if origin is not None and origin.commit is not None and origin.repo_id == target else ()
        folder = origin.folder if origin is not None else Path(target)
        branch = revision or "main"
        place = Origin(folder=folder, repo_id=target, commit=result.commit, revision=branch, token=token)
        attached.origin = replace(place, ledgers={} if origin is None else origin.ledgers)
        try:
            if erase_history:
                report = erase.erase_history(target, token=token, keep_revision=branch, old_commits=old)
                attached.origin = replace(attached.origin, commit=report.kept_commit)
                unsaved = [receipt for change in attached.unsaved for receipt in change.receipts]
                for receipt in unsaved:  # written below
                    receipt["erasure"] = report.to_dict()
                if not unsaved and attached.receipts:
                    amend_receipt(attached.receipt_dirs[-1], attached.receipts[-1], erasure=report.to_dict())
                result = replace(result, commit=report.kept_commit, erasure=report)
        finally:
            self._settle()
        return result

    @_alone
    def export(
        self,
        save_directory: str | os.PathLike[str],
        *,
        cluster: int | None = None,
        task: str | None = None,
        merge: bool = True,
    ) -> None:
        """Write a plain transformers checkpoint that any tool loads without hf_clamu.

        Args:
            save_directory (`str` or `Path`): a new or empty folder.
            cluster (`int`, *optional*): the cluster to write; by default the global model.
            task (`str`, *optional*): the cluster that serves this task.
            merge (`bool`): where the model has a PEFT adapter inside, merge it into the base weights; `False` writes
                the adapter alone, as PEFT loads it onto the base model.

        Raises:
            ExactnessError: if what was written, loaded as others will load it, does not answer as the live model; it
                is removed then.
            RecipeError: if PEFT cannot load the adapter without hf_clamu.
        """
        space = self._space()
        if not merge and space is None:
            raise ValueError("merge=False writes a PEFT adapter, but this model has none inside: leave it out.")
        target = Path(save_directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} is there and not empty. Export to a new folder.")
        with self.serving(cluster, task=task), staged_folder(target) as stage:
            if space is not None and not merge:
                base = self._attached.checkpoint.base
                save_adapter(space, self, stage, base.name_or_path or None, base.revision)
                with self.held():
                    self.set_base()
                    plain = plain_model(self, self._architecture, merge=False).state_dict()
                    plain = {name: value.clone() for name, value in plain.items()}
                require_same_adapter(self, self._architecture, plain, stage)
            else:
                self._save_plain(stage, merge=True)
                require_same_checkpoint(self, self._architecture, stage, same_weights=space is None)
            if self._attached.processor is not None:
                save_processor(self._attached.processor, stage)

    def _write_base(self, folder: Path) -> None:
        attached = self._attached
        live: Any = self
        if live.dtype != attached.checkpoint.base.torch_dtype:
            self._copy_base(folder)
            return
        with self.held():
            self.set_base()
            self._save_plain(folder, merge=False)

    def _copy_base(self, folder: Path) -> None:
        """Take the embedded base model from where this model was loaded: the live weights were cast."""
        origin = self._attached.origin
        if origin is None or not (origin.folder / BASE_FOLDER).is_dir():
            raise WeightsChangedError(
                "The live weights were cast to another type and the saved model they came from is gone, so the base "
                "model cannot be written. Load it again without dtype=, then save."
            )
        shutil.copytree(origin.folder / BASE_FOLDER, folder)

    def _save_plain(self, folder: Path, *, merge: bool) -> None:
        space = self._space()
        with suppress_load_report():
            if space is None:
                self._architecture.save_pretrained(self, folder)
            else:
                plain_model(self, self._architecture, merge=merge).save_pretrained(folder)

    @property
    def _architecture(self) -> Any:
        """The plain class of the live model."""
        return type(self).__mro__[2]

    def _space(self) -> PeftSpace | None:
        """Return the adapter that the live model has inside."""
        space = PeftSpace.of_checkpoint(self._attached.checkpoint)
        return space if space is not None and space.is_live else None

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _attached(self) -> _Attachment:
        attached = self.__dict__.get("_clamu")
        if not isinstance(attached, _Attachment):
            raise TypeError("ClamuModel is not made directly: use ClamuModel.from_pretrained or ClamuTrainer.train.")
        return attached

    def _announce_place(self, folder: Path) -> None:
        """Say beside what is announced where it is about to be saved: a process that dies cannot say it any more."""
        attached = self._attached
        if attached.unsaved and attached.journals:
            record_pending(attached.journals[-1], attached.unsaved, folder)

    def _settle(self) -> None:
        """Finish the changes that are saved now: write their receipts, clear their journals."""
        attached = self._attached
        finalize_changes(attached.unsaved)
        for journal in attached.journals:
            finish_pending(journal, attached.unsaved)
        attached.unsaved, attached.journals = [], []

    def _settle_earlier(
        self,
        kind: str,
        task_ids: Sequence[str],
        journal_dir: str | Path | None,
        receipt_dir: str | Path | None,
        archive: str | Path | Archive | None,
    ) -> bool:
        """Finish what a process that was killed announced in a journal; return whether it was this very request."""
        if journal_dir is None:
            return False
        workers = Workers.current()
        with workers.watched():
            receipts: list[dict[str, Any]] = []
            if workers.is_main:
                receipts = self._settled(Journal(Path(journal_dir)), receipt_dir, archive_at(archive))
            receipts = workers.gather(receipts)[0]
        attached = self._attached
        attached.receipts += receipts
        attached.receipt_dirs += [None if receipt_dir is None else Path(receipt_dir)] * len(receipts)
        done = {one for receipt in receipts if receipt["request"] == kind for one in salted_ids(receipt) or ()}
        return bool(task_ids) and done.issuperset(task_ids)

    def _settled(
        self, journal: Journal, receipt_dir: str | Path | None, archive: Archive | None
    ) -> list[dict[str, Any]]:
        attached = self._attached
        if not needs_recovery(journal, attached.unsaved, receipt_dir, archive):
            return []
        with journal.locked():
            settled = recover_pending(
                journal,
                {self.state_digest()},
                merged=archived_names(attached.checkpoint.state),
                receipt_dir=None if receipt_dir is None else Path(receipt_dir),
                archive=None if archive is None or archive.retains_forgotten else archive,
                ours=attached.unsaved,
            )
        for line in settled.to_do:
            warnings.warn(line, stacklevel=5)
        if not settled.changes or settled.changes[-1].after != self.state_digest():
            return []  # it is another folder that has them
        return [receipt for change in settled.changes for receipt in change.receipts]

    def _parameters_by_name(self) -> dict[str, torch.nn.Parameter]:
        model: Any = self
        return dict(model.named_parameters())

    def _request(
        self,
        data: TaskDataset | DataFiles | None,
        progress: Progress,
        journal_dir: str | Path | None = None,
        archive: str | Path | Archive | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        *,
        adds: bool = False,
    ) -> Request:
        attached = self._attached
        local_models = None
        if checkpoints:
            require_named(checkpoints)
            token = None if attached.origin is None else attached.origin.token
            given = {self.ledger_id(one): folder for one, folder in checkpoints.items()}
            if not adds:  # of tasks that are gone there may be folders, too
                given = {one: folder for one, folder in given.items() if one in attached.checkpoint.state.records}
            if self._space() is not None:
                raise TaskDataError(
                    "This model merges the parameters of an adapter, and checkpoints are whole models. Give the data "
                    "of the tasks; they are finetuned through the adapter."
                )
            local_models = LocalModels.find(given, token=token)
        base = self._fresh_base()
        if local_models is not None:
            kind = str((self.clamu_config.task_spec or {})["kind"])
            local_models.check(base, kind, attached.processor)
        return Request(
            checkpoint=attached.checkpoint,
            base=base,
            processor=attached.processor,
            data=data if data is not None else attached.tasks,
            origin=None if attached.origin is None else attached.origin.folder,
            task_id_key=attached.task_id_key,
            journal=None if journal_dir is None else Journal(Path(journal_dir)),
            archive=archive_at(archive),
            local_models=local_models,
            progress=progress,
        )

    def _fresh_base(self) -> Any:
        """Return a base model of its own for a request to train on."""
        with self.held():
            self.set_base()
            return clone_base(self, self._attached.checkpoint)

    def _replace_state(
        self,
        kind: RequestKind,
        requests: Mapping[str | None, Sequence[str]],
        built: ChangeResult,
        request: Request,
        receipt_dir: str | Path | None,
    ) -> ClamuModel:
        attached = self._attached
        before = attached.checkpoint
        digests = {"before": before.state_digest, "after": built.checkpoint.state_digest}
        environment = built.checkpoint.environment
        facts: dict[str, Any] = {
            "digests": digests,
            "environment": None if environment is None else environment.to_dict(),
            "how": built.outcome,
            "num_requests": len(requests),
            "num_tasks": {"before": len(before.state.records), "after": len(built.checkpoint.state.records)},
            "seconds": built.seconds,
        }
        if built.checkpoint.localized_in is not None:
            facts["localized_in"] = built.checkpoint.localized_in.to_dict()
        archived: dict[str, Any] = {}
        if request.archive is not None:
            old, new = archived_names(before.state), archived_names(built.checkpoint.state)
            spent = [] if request.archive.retains_forgotten else sorted(old - new)
            archived = {"archive_dir": request.archive.uri, "written": sorted(new - old)}
            archived["spent"] = spent
            facts["archive"] = PENDING if spent else "kept" if old - new else "written"
            if built.outcome in ("subtracted", "updated"):
                facts["vectors_from"] = "archive"
        recipe = _recipe(before.config)
        receipts = [
            make_receipt(kind, task_ids, recipe=recipe, facts=facts, request_id=name)
            for name, task_ids in requests.items()
        ]
        where = None if receipt_dir is None else Path(receipt_dir).absolute()
        change = Change(
            before=digests["before"],
            after=digests["after"],
            receipts=receipts,
            receipt_dir=None if where is None else str(where),
            **archived,
        )
        unsaved = [*attached.unsaved, change]
        journals = attached.journals
        if request.journal is not None:
            folder = request.journal.folder
            journals = [*(journal for journal in journals if journal.folder != folder), request.journal]
        waits = bool(journals) or request.archive is not None
        if Workers.current().is_main:
            if journals:
                record_pending(journals[-1], unsaved)
            for journal in journals[:-1]:
                remove_pending(journal, unsaved)
            if not waits:
                finalize_changes(unsaved[-1:])
        self.set_base()
        live: Any = self
        fresh = attach(
            live,
            built.checkpoint,
            processor=attached.processor,
            tasks=built.tasks_with_rows,
            origin=attached.origin,
        )
        fresh._attached.receipts = [*attached.receipts, *receipts]
        fresh._attached.receipt_dirs = [
            *attached.receipt_dirs,
            *[None if where is None else Path(where)] * len(receipts),
        ]
        fresh._attached.unsaved = unsaved if waits else attached.unsaved
        fresh._attached.task_id_key = attached.task_id_key
        fresh._attached.journals = journals
        fresh._attached.handed_out = attached.handed_out
        return self

    def _wrap(self, built: ChangeResult) -> Any:
        return attach(built.base, built.checkpoint, processor=self._attached.processor, tasks=built.tasks)


def attach(
    model: Any,
    checkpoint: Checkpoint,
    *,
    processor: Any = None,
    tasks: TaskDataset | None = None,
    origin: Origin | None = None,
    dtype: torch.dtype | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> Any:
    """Turn a base model into a `ClamuModel` in place and select the global model.

    Args:
        model (`transformers.PreTrainedModel`): holding the base weights.
        checkpoint (`Checkpoint`): what is merged.
        processor (*optional*): tokenizer or image processor to save with it.
        tasks (`TaskDataset`, *optional*): the data, for later requests in this process.
        origin (`Origin`, *optional*): where it was loaded from or saved to.
        dtype (`torch.dtype`, *optional*): cast the live weights to this type.
        contents (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the parameters' values, where known.

    Returns:
        `ClamuModel`: the model, in evaluation mode.
    """
    state = checkpoint.state
    parameters, kept = dict(model.named_parameters()), kept_in_float32(model, dtype)
    before = model._attached if isinstance(model, ClamuModel) else None
    switch = WeightSwitch(
        parameters,
        state.delta,
        state.alpha,
        checkpoint.arguments.codec,
        dtype=dtype,
        uncast=kept,
        digests=contents,
        # Threads that wait for the model wait for the next state, too.
        guard=None if before is None else before.switch.guard,
    )
    if dtype is not None:
        cast_others(model, dtype, kept.union(state.delta))
    if not isinstance(model, ClamuModel):
        model.__class__ = clamu_class(type(model))
    model._clamu = _Attachment(
        checkpoint=checkpoint,
        switch=switch,
        processor=processor,
        tasks=tasks,
        origin=origin,
        base_name=model.name_or_path if before is None else before.base_name,
    )
    model.set_cluster(None)
    return model.eval()  # the last step: what came before may have put modules in that start in training mode


_CLASSES: dict[type, type] = {}


def clamu_class(base: type) -> type:
    """Return the subclass of an architecture that serves clusters.

    It keeps the architecture's `__name__`, which pipelines look up in their lists.
    """
    if base not in _CLASSES:
        _CLASSES[base] = type(
            base.__name__,
            (ClamuModel, base),
            {"__module__": __name__, "__qualname__": f"Clamu{base.__name__}", "__doc__": base.__doc__},
        )
    return _CLASSES[base]


def __getattr__(name: str) -> type:
    # Unpickling and deepcopy find the dynamic classes by their qualified name.
    if name.startswith("Clamu"):
        try:
            return clamu_class(load_architecture(name.removeprefix("Clamu")))
        except IncompatibleBaseError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _recipe(config: ClamuConfig) -> dict[str, Any]:
    """Return the settings that decide the bits; their digest goes into receipts."""
    recipe = dict(config.arguments or {})
    if config.peft_config is not None:
        recipe |= {"peft_config": config.peft_config, "peft_merging": config.peft_merging}
    return recipe


def _holds(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder holds this state (it may have been saved before the last request)."""
    return folder.is_dir() and read_checkpoint(folder).state_digest == checkpoint.state_digest


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, such as 'bfloat16', got {dtype!r}.")
    return found
