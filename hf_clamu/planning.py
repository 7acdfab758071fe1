"""What a build will need, before it starts: weights, memory, disk and a rough time."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import add_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import weights_dtype
from hf_clamu.base_models.loading import empty_model
from hf_clamu.base_models.processors import load_processor
from hf_clamu.exact import packed_size
from hf_clamu.merging import ClamuArguments, candidate_alphas
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import DataFiles, ModelLimits, TaskDataset, traits_of
from hf_clamu.training import trainable_names

__all__ = ["BuildEstimate", "estimate_build", "operations_per_second"]

# The interpreter with torch and transformers, and the examples of one cluster; measured, and no part of the model.
_PROGRAM_BYTES = 1_500_000_000
# What training reaches of the speed of one large matrix product.
_EFFICIENCY = 0.5
# What a step takes however small the model is: Python, the optimizer, many small operations. Measured on one core.
_STEP_SECONDS = 0.005
_SAMPLE_TASKS = 4
# So many rows are tokenised in a few seconds.
_CHEAP_ROWS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildEstimate:
    """Estimates for one build.

    Args:
        num_parameters (`int`): weights of the model.
        num_trained (`int`): weights that take part in merging.
        num_tasks, num_clusters, num_processes (`int`): of the build.
        memory_bytes (`int`): of each process, without activations: base weights, a copy of those that take part, their
            gradients, and two more values for each (AdamW's state, or the merged weights and scores of mask training);
            under fixed signs also a byte for its sign.
        model_bytes (`int`): the saved model.
        scratch_bytes (`int`): files beside it while the build runs, of all processes.
        seconds (*dict* of `str` to `float`, *optional*): `finetune`, `localize` and `total`, on this machine; `None`
            where the length of examples is not known. Right within a factor of three or so.
    """

    num_parameters: int
    num_trained: int
    num_tasks: int
    num_clusters: int
    num_processes: int
    memory_bytes: int
    model_bytes: int
    scratch_bytes: int
    seconds: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def estimate_build(
    recipe: Recipe,
    *,
    data: DataFiles | None = None,
    num_tasks: int | None = None,
    num_processes: int = 1,
    tokens: int | None = None,
) -> BuildEstimate:
    """Estimate what a recipe needs; no weights are loaded.

    Args:
        recipe (`Recipe`): the recipe.
        data (`str`, `Path` or *list* of them, *optional*): files of the rows, instead of those that the recipe names.
        num_tasks (`int`, *optional*): plan for so many tasks; by default those of the data.
        num_processes (`int`): that share the work.
        tokens (`int`, *optional*): mean tokens (or patches) of an example; by default those of a few tasks.

    Raises:
        RecipeError: if the recipe cannot be used.
        IncompatibleBaseError: if the base model's configuration cannot be read.
        TaskDataError: if the data cannot be used.
    """
    arguments = recipe.clamu_arguments()
    tasks = recipe.tasks(data)
    base, model = recipe.base(), _model_to_train(recipe, arguments, tasks)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = [sizes[name] for name in trainable_names(model, arguments.freeze)]
    count = num_tasks or len(tasks)
    keys = map(tasks.cluster_key, tasks)
    clusters = arguments.clustering_method.num_clusters(arguments.num_clusters, count, keys)
    weights, part = sum(sizes.values()), sum(trained)
    localization = arguments.localization_method
    num_masks = clusters if localization.makes_masks else 0
    if localization.keeps_task_masks and clusters < count:
        num_masks += count  # of the tasks, beside those of the clusters
    masks = num_masks * sum(map(packed_size, trained))
    signs = part if arguments.has_fixed_signs else 0
    size = torch.float32.itemsize if recipe.dtype is None else weights_dtype(recipe.dtype).itemsize
    embedded = not isinstance(base, str) or Path(base).is_dir()
    # A sum, if need be in int64, two versions of it in the journal, and for some localizations a sum per cluster.
    sums = 8 * part + 2 * 4 * part + (clusters * 4 * part if localization.needs_cluster_vectors else 0)
    return BuildEstimate(
        num_parameters=weights,
        num_trained=part,
        num_tasks=count,
        num_clusters=clusters,
        num_processes=num_processes,
        memory_bytes=_PROGRAM_BYTES + size * weights + 4 * size * part + signs,
        model_bytes=4 * part + masks + (size * weights if embedded else 0),
        scratch_bytes=num_processes * sums + 4 * part + masks,
        seconds=_seconds(_Work(recipe, tasks, model, num_tasks=count, num_clusters=clusters), num_processes, tokens),
    )


def _model_to_train(recipe: Recipe, arguments: ClamuArguments, tasks: TaskDataset) -> Any:
    """Return the model that trains, with its adapter inside and without memory for its weights."""
    space = PeftSpace.for_settings(arguments, recipe.peft_config, recipe.peft_merging)
    model = empty_model(recipe.base(), tasks.spec, num_labels=tasks.num_labels, revision=recipe.revision)
    if space is not None:
        with torch.device("meta"):
            add_adapter(space, model, arguments.seed)
    return model


@dataclass(frozen=True)
class _Work:
    """What takes the time of a build."""

    recipe: Recipe
    tasks: TaskDataset
    model: Any
    num_tasks: int = field(kw_only=True)
    num_clusters: int = field(kw_only=True)


def _seconds(work: _Work, num_processes: int, tokens: int | None) -> dict[str, float] | None:
    arguments, tasks = work.recipe.clamu_arguments(), work.tasks
    sample = tasks.task_ids[:_SAMPLE_TASKS]
    examples = math.fsum(tasks.num_examples(task_id) for task_id in sample) / len(sample)
    tokens = tokens or _mean_tokens(work.recipe, tasks, work.model, sample)
    if tokens is None:
        return None
    # Forward 2, backward 4 operations per weight and token (Kaplan et al., 2020, section 2.1).
    weights: int = sum(parameter.numel() for _, parameter in work.model.named_parameters())
    step = 6 * weights * tokens / (_EFFICIENCY * operations_per_second())

    def seconds(steps: int, batch: float) -> float:
        return steps * (_STEP_SECONDS + batch * step) / num_processes

    finetune = seconds(work.num_tasks * arguments.finetune_steps, min(arguments.batch_size, examples))
    # Every alpha of the grid is localized in full.
    num_masks = len(candidate_alphas(arguments.scaling, work.num_tasks)) * work.num_clusters
    batch = min(arguments.mask_batch_size, examples * work.num_tasks / work.num_clusters)
    localize = seconds(num_masks * arguments.localization_method.num_training_steps(arguments), batch)
    return {"finetune": finetune, "localize": localize, "total": finetune + localize}


def _mean_tokens(recipe: Recipe, tasks: TaskDataset, model: Any, sample: tuple[str, ...]) -> int | None:
    """Return the mean length of an example in tokens or patches; None if there is no tokenizer to tell."""
    patch = getattr(model.config, "patch_size", None)
    if traits_of(tasks.spec.kind).reads == "image":
        size = getattr(model.config, "image_size", None)
        return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) else None
    processor, base = recipe.processor(tasks.spec.kind), recipe.base()
    if processor is None and isinstance(base, str):
        processor = load_processor(base, tasks.spec.kind, revision=recipe.revision)
    if processor is None:
        return None
    limits = ModelLimits.of(model)
    lengths = [len(example["input_ids"]) for one in sample for example in tasks.encode(one, processor, limits).train]
    if sum(map(tasks.num_examples, tasks)) <= _CHEAP_ROWS:
        for task_id in tasks.task_ids[len(sample) :]:  # a text that the model cannot take shows here
            tasks.encode(task_id, processor, limits)
    return math.ceil(sum(lengths) / len(lengths))


def operations_per_second() -> float:
    """Time a large matrix product on the device that would train."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 4096 if device.type == "cuda" else 1024
    left, right = torch.rand(2, size, size, device=device)
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
