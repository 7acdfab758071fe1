"""The ways to serve many owners and to forget any of them that the demo compares, each built from the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.loading import load_base
from hf_clamu.evaluation import Approach, MergedModel, OwnerModels, ShardedModels
from hf_clamu.merging import ClamuArguments
from hf_clamu.operations.context import open_trainer
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.tasks import Example, TaskDataset
from hf_clamu.trainer import ClamuTrainer
from hf_clamu.training import Progress, TaskTrainer

__all__ = ["WAYS", "Setting", "Way"]

_NUM_SHARDS = 6
_LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all ways start from.

    Args:
        base (`Path`): the folder of the base model.
        tasks (`TaskDataset`): the owners' training rows.
        per_task (`ClamuArguments`): the settings of a mask per owner.
        clusters (`ClamuArguments`): the settings of a mask per group of owners.
        chosen (*mapping* of `str` to *tuple*): steps per owner and learning rate of what is not merged, by its name.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is answered, by owner.
        progress (`Progress`): shows how far a build or request is.
    """

    base: Path
    tasks: TaskDataset
    per_task: ClamuArguments
    clusters: ClamuArguments
    chosen: Mapping[str, tuple[int, float]]
    held_out: Mapping[str, Sequence[Example]]
    progress: Progress

    def plain(self, name: str) -> ClamuArguments:
        """Return the settings for finetuning without fixed signs, on which nothing is merged."""
        steps, rate = self.chosen[name]
        return replace(self.clusters, finetune_steps=steps, learning_rate=rate)

    def of_owners(self, task_ids: Sequence[str]) -> Setting:
        """Return the setting of some owners alone."""
        held_out = {task_id: self.held_out[task_id] for task_id in task_ids}
        return replace(self, tasks=self.tasks.select(task_ids), held_out=held_out)

    def trainer(self, arguments: ClamuArguments, space: PeftSpace | None = None) -> TaskTrainer:
        """Return what finetunes owners on the base model."""
        spec, num_labels = self.tasks.spec, self.tasks.num_labels
        base = load_base(str(self.base), spec, num_labels=num_labels, run_seed=arguments.seed, space=space)
        known = resolved_arguments(arguments, base.model, base.space)
        return open_trainer(base.model, base.processor, self.tasks, known, self.progress, space=base.space)

    def train(self, arguments: ClamuArguments, folder: Path) -> Any:
        """Build a merged model and save it; return the trainer and the model."""
        trainer = ClamuTrainer(str(self.base), self.tasks, arguments, progress=self.progress)
        model = trainer.train()
        model.save_pretrained(folder)
        return trainer, model

    def saved(self, folder: Path, receipts: Path | None = None) -> MergedModel:
        """Return a saved model as an approach."""
        return MergedModel(folder, self.tasks, self.held_out, receipts=receipts, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to serve and forget.

    Args:
        name (`str`): its key in the results.
        label (`str`): its name in tables and figures.
        build (*callable*): takes the setting and a new folder, returns the approach, built.
        is_slow (`bool`): a request trains or masks all owners again, so only one is measured.
    """

    name: str
    label: str
    build: Callable[[Setting, Path], Approach]
    is_slow: bool = False


def _sharded(num_shards: int) -> Callable[[Setting, Path], Approach]:
    def build(setting: Setting, folder: Path) -> Approach:
        folder.mkdir()
        arguments = setting.plain("joint")
        models = ShardedModels(setting.trainer(arguments), arguments, setting.held_out, folder, num_shards=num_shards)
        models.build()
        return models

    return build


def _per_owner(name: str, peft_config: Mapping[str, Any] | None) -> Callable[[Setting, Path], Approach]:
    def build(setting: Setting, folder: Path) -> Approach:
        folder.mkdir()
        arguments = setting.plain(name)
        space = None if peft_config is None else PeftSpace.of(peft_config)
        models = OwnerModels(setting.trainer(arguments, space), arguments, setting.held_out, folder)
        models.build()
        return models

    return build


def _merged(**changes: Any) -> Callable[[Setting, Path], Approach]:
    def build(setting: Setting, folder: Path) -> Approach:
        setting.train(replace(setting.clusters, **changes), folder)
        return setting.saved(folder)

    return build


def _per_task(setting: Setting, folder: Path) -> Approach:
    setting.train(setting.per_task, folder)
    return setting.saved(folder)


_MASK_PER_OWNER = {"clustering": "none"}
# What `scaling: auto` chose on the training rows; the search itself would take half of the demo's time.
_TALL, _EMR = {**_MASK_PER_OWNER, "scaling": 16.0}, {**_MASK_PER_OWNER, "scaling": 4.0}
# The paper's masks, without factors.
_ALONE = {**_MASK_PER_OWNER, "scaling": 4.0, "mask_steps": 15, "mask_gradient_norm": "raw", "mask_factors": "none"}

# In the order of the table: what one would do without merging, other merges, ours.
WAYS = (
    Way(name="joint", label="one joint model, trained again", build=_sharded(1), is_slow=True),
    Way(name="sisa", label=f"SISA, {_NUM_SHARDS} shards", build=_sharded(_NUM_SHARDS)),
    Way(name="local", label="a model per owner", build=_per_owner("local", None)),
    Way(name="lora", label="LoRA per owner", build=_per_owner("lora", _LORA)),
    Way(name="global", label="average of all owners", build=_merged(localization="global", scaling=1.0)),
    Way(name="tall", label="TALL masks", build=_merged(localization="tall", **_TALL), is_slow=True),
    Way(name="emr", label="EMR masks", build=_merged(localization="emr", **_EMR), is_slow=True),
    Way(name="clamu", label="preset `clusters` (ClAMU)", build=_merged(), is_slow=True),
    Way(name="clamu_per_task", label="ClAMU per owner", build=_merged(**_ALONE), is_slow=True),
    Way(name="sift", label="preset `per-task` (SIFT)", build=_per_task),
)
