"""Merging local models that were finetuned elsewhere into one model, as a build merges those that it finetunes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import transformers

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import BaseModel
from hf_clamu.base_models.library_calls import is_loaded_by
from hf_clamu.base_models.loading import load_base
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.layout import CONFIG_NAME
from hf_clamu.errors import IncompatibleBaseError, TaskDataError
from hf_clamu.local_models.adapter_checkpoint import AdapterCheckpoint
from hf_clamu.local_models.local_models import LocalModels, require_named
from hf_clamu.local_models.shared_factors import adapter_space, share_factors
from hf_clamu.merging import WITHOUT_DATA, ClamuArguments, require_finetuning, require_no_data, warn_of_scores
from hf_clamu.operations.build import build
from hf_clamu.operations.configuration import initial_config
from hf_clamu.operations.context import RunContext, build_environment
from hf_clamu.operations.request import ChangeResult
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.resources import with_stages
from hf_clamu.storage import Archive, Journal
from hf_clamu.tasks import TaskDataset, TaskSpec, keyed_id, require_known_words, task_kinds, traits_of
from hf_clamu.training import Progress

__all__ = ["LocalMerge", "keyed_checkpoints"]


@dataclass(frozen=True, kw_only=True)
class LocalMerge:
    """What a merge of local models starts from.

    Args:
        base (`str`, `Path`, *dict* or `transformers.PreTrainedModel`): what they were finetuned from, see `load_base`.
        checkpoints (*mapping* of `str` to `str` or `Path`): task id to a folder, or to a Hub id.
        arguments (`ClamuArguments`, *optional*): the settings; by default the preset `clusters`, or `task_vectors`
            and `emr` without data.
        tasks (`TaskDataset`, *optional*): the tasks' data; those without a checkpoint take no part.
        processor (*optional*): tokenizer or image processor; by default the base model's own.
        revision (`str`, *optional*): of the base model on the Hub.
        token (`str` or `bool`, *optional*): for private repos.
        cache_dir (*optional*): of huggingface_hub.
        task_id_key (`str`, *optional*): keys the ids in the ledger.
        card (`CardSettings`): what the model card shows beside.
        peft_merging (`str`, *optional*): how adapters are merged: `"product"`, what they change in the weights, or
            `"frozen_a"`, as they are. By default the second where all tasks come as LoRA adapters of one shape with
            the same factor A, bit for bit. The saved model records it, and requests keep to it.
    """

    base: Any
    checkpoints: Mapping[str, Any]
    arguments: ClamuArguments | None = None
    tasks: TaskDataset | None = None
    processor: Any = None
    revision: str | None = None
    token: Any = None
    cache_dir: Any = None
    task_id_key: str | None = None
    card: CardSettings = field(default_factory=CardSettings)
    peft_merging: str | None = None

    def run(
        self, journal: Journal | None, archive: Archive | None, progress: Progress
    ) -> tuple[ChangeResult, BaseModel]:
        """Merge them, with all processes that a launcher started.

        Args:
            journal (`Journal`, *optional*): keeps what is finished, for another start.
            archive (`Archive`, *optional*): gets the vectors of the tasks.
            progress (`Progress`): shows how far it is.

        Raises:
            IncompatibleBaseError: if the base cannot be loaded, or a checkpoint is not of its kind.
            RecipeError: if a setting needs data, and there are none.
            TaskDataError: if a folder or the data of a task are missing.
        """
        started = time.perf_counter()
        require_named(self.checkpoints)
        if not self.checkpoints:
            raise TaskDataError("There is nothing to merge: give at least one checkpoint.")
        arguments = self.arguments or ClamuArguments(preset="clusters")
        require_finetuning(arguments, sorted(map(str, self.checkpoints)))
        if self.tasks is None:
            arguments = self.arguments or ClamuArguments.from_dict(WITHOUT_DATA)
            require_no_data(arguments)
        given = keyed_checkpoints(self.checkpoints, self.task_id_key)
        local_models = LocalModels.find(given, token=self.token, cache_dir=self.cache_dir)
        tasks = self._tasks(local_models)
        space = adapter_space(local_models, self.peft_merging)
        base = self._load_base(tasks, arguments, space)
        if space is not None:
            share_factors(base, local_models)
        arguments = resolved_arguments(arguments, base.model, base.space, from_elsewhere=True, announce=True)
        local_models.check(base.model, tasks.spec.kind, base.processor)
        if tasks.has_rows:
            require_known_words(tasks, base.processor)
        context = RunContext(
            base=base.model,
            base_digest=base.start_digest,
            processor=base.processor,
            tasks=tasks,
            arguments=arguments,
            environment=build_environment(arguments, base.model),
            progress=progress,
            journal=journal,
            archive=archive,
            local_models=local_models,
            space=base.space,
        )
        config = initial_config(base, tasks, arguments, self.card)
        loaded = time.perf_counter() - started
        built = build(context, config, fresh=base.fresh, source=tasks.source)
        warn_of_scores(built.checkpoint.state.scores)
        return replace(built, seconds=with_stages(built.seconds, load=loaded)), base

    def _load_base(self, tasks: TaskDataset, arguments: ClamuArguments, space: PeftSpace | None) -> BaseModel:
        return load_base(
            self.base,
            tasks.spec,
            num_labels=tasks.num_labels,
            processor=self.processor,
            revision=self.revision,
            run_seed=arguments.seed,
            space=space,
            token=self.token,
            cache_dir=self.cache_dir,
            needs_processor=tasks.has_rows,
        )

    def _tasks(self, local_models: LocalModels) -> TaskDataset:
        if self.tasks is None:
            keyed = self.task_id_key is not None
            return TaskDataset.without_rows(_spec_of(local_models), local_models, keyed=keyed)
        tasks = self.tasks if self.task_id_key is None else self.tasks.with_key(self.task_id_key)
        absent = [task_id for task_id in local_models if task_id not in tasks]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise TaskDataError(
                f"The data have no rows of task {absent[0]!r}{more}, of which there is a checkpoint. Name checkpoints "
                "as the data name tasks (ID=FOLDER), or leave the data out."
            )
        names = list(tasks.spec.label_names or ())
        for task_id in local_models:
            found = local_models[task_id].labels
            if names and found != names and found != [f"LABEL_{number}" for number in range(len(names))]:
                raise _other_labels(local_models, task_id, found, names, "the data")
        return tasks.select(local_models)


def keyed_checkpoints(checkpoints: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """Return checkpoints under the ids that a ledger has for their tasks: the same, or keyed.

    Args:
        checkpoints (*mapping* of `str` to `str` or `Path`): by plain id.
        key (`str`, *optional*): the key.
    """
    return {
        keyed_id(key, one) if key is not None and isinstance(one, str) else one: at for one, at in checkpoints.items()
    }


def _spec_of(local_models: LocalModels) -> TaskSpec:
    """Return what kind of tasks local models were finetuned on; all of them must say the same.

    It may not depend on one of them, because any of them may be forgotten.
    """
    found: tuple[str, list[str]] | None = None
    first = ""
    for task_id in local_models:
        local_model = local_models[task_id]
        architecture = next(iter(local_model.architectures), "model of no named class")
        kind = local_model.kind if isinstance(local_model, AdapterCheckpoint) else _kind_of(architecture)
        if kind is None:
            raise IncompatibleBaseError(
                f"Task {task_id!r}: {local_model.folder} is a {architecture}. Local models must be one of: "
                f"{', '.join(task_kinds())}."
            )
        labels = [] if traits_of(kind).writes_text else local_model.labels
        if found is None:
            found, first = (kind, labels), task_id
        elif found[0] != kind:
            raise IncompatibleBaseError(
                f"Task {task_id!r} is a {kind} model and task {first!r} one for {found[0]}. Merge models with the "
                "same head."
            )
        elif found[1] != labels:
            raise _other_labels(local_models, task_id, labels, found[1], f"task {first!r}")
    assert found is not None, "there is a checkpoint"
    kind, labels = found
    # Evaluation and prediction read data later; until then the columns have no names.
    columns = traits_of(kind).usual_columns
    return TaskSpec.from_dict({"kind": kind, "task_column": "task", "label_names": labels or None, **columns})


def _kind_of(architecture: str) -> str | None:
    found = getattr(transformers, architecture, None)
    return next((kind for kind in task_kinds() if is_loaded_by(traits_of(kind).auto_class, found)), None)


def _other_labels(
    local_models: LocalModels, task_id: str, found: list[str], expected: list[str], whose: str
) -> IncompatibleBaseError:
    path = local_models[task_id].folder / CONFIG_NAME
    return IncompatibleBaseError(
        f"Task {task_id!r}: {path} has the labels {', '.join(found)} (id2label), "
        f"{whose} has {', '.join(expected)}. Merge models with the same labels in the same order, named alike."
    )
