"""What a build and a request will need, before they start: weights, memory, disk and a rough time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import ADAPTER_NAME, plain_name
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import weights_dtype
from hf_clamu.base_models.processors import load_processor
from hf_clamu.errors import RecipeError
from hf_clamu.exact import narrowest_dtype, packed_size
from hf_clamu.exact.linear_digest import DIGEST_SHAPE
from hf_clamu.merging import PRESETS, ClamuArguments, candidate_alphas, trial_arguments
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.planning.models import model_to_train
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import DataFiles, ModelLimits, TaskDataset, traits_of
from hf_clamu.training import trainable_names

__all__ = ["BuildEstimate", "PresetEstimates", "estimate_build", "estimate_presets", "operations_per_second"]

# The interpreter with torch and transformers, and the examples of one cluster; measured, and no part of the model.
_PROGRAM_BYTES = 1_500_000_000
# What training reaches of the speed of one large matrix product.
_EFFICIENCY = 0.5
# What a training step takes for each tensor of weights, however small it is: Python, the optimizer, many small
# operations; a forward pass takes half of that. Measured on one core, as are the next two.
_TENSOR_SECONDS = 0.0003
# Writing merged weights into the live model: for each tensor and each weight.
_LOAD_TENSOR_SECONDS, _LOAD_WEIGHT_SECONDS = 0.0001, 5e-9
# Reading and encoding a row.
_ROW_SECONDS = 0.0005
_SAMPLE_TASKS = 4
# So many rows are tokenised in a few seconds.
_CHEAP_ROWS = 20_000
# The part of its rows that a data set with a validation split of its own usually keeps there.
_OWN_SPLIT = 0.2
# Of 6 operations per weight and token of a training step, a forward pass takes 2 (Kaplan et al., 2020, section 2.1).
_FORWARD = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildEstimate:
    """Estimates for one build.

    Args:
        num_parameters (`int`): weights of the model.
        num_trained (`int`): weights that take part in merging.
        num_tasks, num_clusters, num_processes (`int`): of the build.
        rows_per_task (`float`): mean number of rows of a task.
        learning_rate (`float`), fraction_bits (`int`): of the build, chosen where the recipe leaves them open.
        memory_bytes (`int`): of each process, without activations: base weights, a copy of those that take part, their
            gradients, and two more values for each (AdamW's state, or the merged weights and scores of mask training);
            under fixed signs also a byte for its sign.
        model_bytes (`int`): the saved model.
        scratch_bytes (`int`): files beside it while the build runs, of all processes.
        seconds (*dict* of `str` to `float`, *optional*): `encode` (of rows), `finetune`, `localize`, `score` (of
            validation examples) and their `total`, and `request`, which forgets one task by retraining it, on this
            machine; `None` where the length of examples is not known. Right within a factor of three or so. Starting
            the program, downloads, loading and saving are not counted.
    """

    num_parameters: int
    num_trained: int
    num_tasks: int
    num_clusters: int
    num_processes: int
    rows_per_task: float
    learning_rate: float
    fraction_bits: int
    memory_bytes: int
    model_bytes: int
    scratch_bytes: int
    seconds: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetEstimates:
    """Estimates for a recipe and for each preset.

    Args:
        own (`BuildEstimate`): of the recipe as it stands.
        presets (*dict* of `str` to `BuildEstimate`): of the recipe under each preset that it can be used with.
        refused (*dict* of `str` to `str`): the other presets, and why they cannot be used.
    """

    own: BuildEstimate
    presets: dict[str, BuildEstimate]
    refused: dict[str, str]


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
    work, tokens = _work_of_recipe(recipe, data, num_tasks, tokens)
    return _estimate(work, num_processes, tokens)


def estimate_presets(
    recipe: Recipe,
    *,
    data: DataFiles | None = None,
    num_tasks: int | None = None,
    num_processes: int = 1,
    tokens: int | None = None,
) -> PresetEstimates:
    """Estimate what a recipe needs as it stands, and under each preset instead; data are read once.

    Args:
        recipe (`Recipe`): the recipe.
        data, num_tasks, num_processes, tokens (*optional*): as for `estimate_build`.

    Raises:
        RecipeError, IncompatibleBaseError, TaskDataError: as `estimate_build`.
    """
    own, tokens = _work_of_recipe(recipe, data, num_tasks, tokens)
    estimates: dict[str, BuildEstimate] = {}
    refused: dict[str, str] = {}
    for name in PRESETS:
        try:
            work = _Work.of(recipe.with_preset(name), own.tasks, num_tasks)
        except RecipeError as error:
            refused[name] = str(error)
        else:
            estimates[name] = _estimate(work, num_processes, tokens)
    return PresetEstimates(own=_estimate(own, num_processes, tokens), presets=estimates, refused=refused)


def _work_of_recipe(
    recipe: Recipe, data: DataFiles | None, num_tasks: int | None, tokens: int | None
) -> tuple[_Work, int | None]:
    """Return the build of a recipe, and the mean tokens of an example if they are known."""
    recipe.clamu_arguments()  # first: a wrong setting should show before data are read
    work = _Work.of(recipe, recipe.tasks(data), num_tasks)
    return work, tokens or _mean_tokens(recipe, work.tasks, work.model)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A build under one set of settings."""

    recipe: Recipe
    arguments: ClamuArguments
    tasks: TaskDataset
    model: Any
    quantized: dict[str, int]  # bytes of weights in few bits, by their name without an adapter
    num_tasks: int
    num_clusters: int
    num_rows: float  # of a task, on average
    num_held_out: float  # of them, roughly

    @classmethod
    def of(cls, recipe: Recipe, tasks: TaskDataset, num_tasks: int | None) -> _Work:
        arguments = recipe.clamu_arguments()
        count = num_tasks or len(tasks)
        space = PeftSpace.for_settings(arguments, recipe.peft_config, recipe.peft_merging)
        model, quantized = model_to_train(recipe, space, tasks, arguments)
        return cls(
            recipe=recipe,
            arguments=resolved_arguments(arguments, model, space),
            tasks=tasks,
            model=model,
            quantized=quantized,
            num_tasks=count,
            num_clusters=arguments.clustering_method.num_clusters(
                arguments.num_clusters, count, map(tasks.cluster_key, tasks)
            ),
            num_rows=math.fsum(map(tasks.num_examples, tasks)) / len(tasks),
            num_held_out=math.fsum(
                tasks.num_examples(task_id) * (tasks.spec.validation_fraction or _OWN_SPLIT)
                for task_id in tasks
                if tasks.has_validation(task_id)
            )
            / len(tasks),
        )


def _estimate(work: _Work, num_processes: int, tokens: int | None) -> BuildEstimate:
    recipe, arguments, base = work.recipe, work.arguments, work.recipe.base()
    count, clusters = work.num_tasks, work.num_clusters
    sizes = {name: parameter.numel() for name, parameter in work.model.named_parameters()}
    names = trainable_names(work.model, arguments.freeze)
    trained = [sizes[name] for name in names]
    weights, part = sum(sizes.values()), sum(trained)
    localization = arguments.localization_method
    num_masks = clusters if localization.makes_masks else 0
    if localization.keeps_task_masks and clusters < count:
        num_masks += count  # of the tasks, beside those of the clusters
    masks = num_masks * sum(map(packed_size, trained))
    if localization.has_factors(arguments):
        masks += 4 * clusters * len(trained)
    digests = count * math.prod(DIGEST_SHAPE) * torch.int32.itemsize if arguments.linear_digest is True else 0
    signs = part if arguments.has_fixed_signs else 0
    size = torch.float32.itemsize if recipe.dtype is None else weights_dtype(recipe.dtype).itemsize
    # An adapter is in float32, whatever its base is.
    own = {
        name: torch.float32.itemsize * sizes[name]
        if ADAPTER_NAME in name.split(".")
        else work.quantized.get(plain_name(name), size * sizes[name])
        for name in sizes
    }
    moving = sum(own[name] for name in names)
    in_base = sum(own[name] for name in sizes if ADAPTER_NAME not in name.split("."))
    embedded = not isinstance(base, str) or Path(base).is_dir()
    delta = _bytes_of_sums(arguments, count) * part
    # A sum, which may have been widened on the way, two versions of it in the journal, and for some localizations a
    # sum per cluster.
    sums = 4 * delta + (clusters * delta if localization.needs_cluster_vectors else 0)
    return BuildEstimate(
        num_parameters=weights,
        num_trained=part,
        num_tasks=count,
        num_clusters=clusters,
        num_processes=num_processes,
        rows_per_task=work.num_rows,
        learning_rate=arguments.peak_learning_rate,
        fraction_bits=arguments.codec.fraction_bits,
        memory_bytes=_PROGRAM_BYTES + sum(own.values()) + 4 * moving + signs,
        model_bytes=delta + masks + digests + (in_base if embedded else 0),
        scratch_bytes=num_processes * sums + delta + masks,
        seconds=None if tokens is None else _seconds(work, tokens, num_processes, trained),
    )


def _bytes_of_sums(arguments: ClamuArguments, num_tasks: int) -> int:
    """Return the bytes of an integer of the merged delta, if AdamW moves some weight as far as it can."""
    bound = math.ceil(arguments.total_learning_rate / arguments.codec.step)
    return narrowest_dtype(num_tasks * bound, arguments.integer_bits).itemsize


def _seconds(work: _Work, tokens: int, num_processes: int, trained: Sequence[int]) -> dict[str, float]:
    """Return the time of each stage; `trained` are the sizes of the tensors that take part."""
    arguments, count = work.arguments, work.num_tasks
    sizes: list[int] = [parameter.numel() for parameter in work.model.parameters()]
    # Forward 2, backward 4 operations per weight and token.
    example: float = 6 * sum(sizes) * tokens / (_EFFICIENCY * operations_per_second())
    load = len(trained) * _LOAD_TENSOR_SECONDS + sum(trained) * _LOAD_WEIGHT_SECONDS

    def training(steps: int, batch: float) -> float:
        return steps * (len(sizes) * _TENSOR_SECONDS + batch * example) / num_processes

    def measuring(passes: int, rows: float, loads: int) -> float:
        return (passes * (len(sizes) * _TENSOR_SECONDS / 2 + rows * example * _FORWARD) + loads * load) / num_processes

    finetune = training(count * arguments.finetune_steps, min(arguments.batch_size, work.num_rows))
    # Every alpha of the grid is localized, perhaps with fewer steps before the one that is chosen, and scored.
    alphas = len(candidate_alphas(arguments.scaling, count))
    trial, method = trial_arguments(arguments, alphas), arguments.localization_method
    batch = min(arguments.mask_batch_size, work.num_rows * count / work.num_clusters)
    mask_steps = alphas * method.num_training_steps(trial)
    if trial is not arguments:
        mask_steps += method.num_training_steps(arguments)
    localize = training(work.num_clusters * mask_steps, batch)
    if arguments.scaling == "auto":
        localize += measuring(alphas * count, work.num_rows, alphas * work.num_clusters)
    # Of base, global and own model, after a build and after each request.
    score = 0.0
    if arguments.score_validation and work.num_held_out:
        score = measuring(3 * count, work.num_held_out, 2 * work.num_clusters)
    encode = _ROW_SECONDS * count * work.num_rows  # in every process
    # Where masks are made of the vectors of whole clusters, which no file keeps, all tasks are retrained.
    retrained = count if arguments.localization_method.needs_cluster_vectors else 1
    return {
        "encode": encode,
        "finetune": finetune,
        "localize": localize,
        "score": score,
        "total": encode + finetune + localize + score,
        "request": encode + finetune * retrained / count + localize + score,
    }


def _mean_tokens(recipe: Recipe, tasks: TaskDataset, model: Any) -> int | None:
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
    limits, sample = ModelLimits.of(model), tasks.task_ids[:_SAMPLE_TASKS]
    lengths = [len(example["input_ids"]) for one in sample for example in tasks.encode(one, processor, limits).train]
    if sum(map(tasks.num_examples, tasks)) <= _CHEAP_ROWS:
        for task_id in tasks.task_ids[len(sample) :]:  # a text that the model cannot take shows here
            tasks.encode(task_id, processor, limits)
    return math.ceil(sum(lengths) / len(lengths))


@functools.cache
def operations_per_second() -> float:
    """Time a large matrix product on the device that would train; once in a process, so that estimates compare."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 4096 if device.type == "cuda" else 1024
    left, right = torch.rand(2, size, size, device=device)
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
