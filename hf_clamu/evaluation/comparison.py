"""What the other methods would give on the clusters of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

import torch

from hf_clamu.base_models.identity import BaseModel
from hf_clamu.errors import RecipeError
from hf_clamu.exact import ALL_WEIGHTS, DeltaAccumulator
from hf_clamu.merging import LOCALIZATIONS, ClamuArguments, Localizer, MaskProblem
from hf_clamu.operations.context import open_trainer
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.tasks import Example, TaskDataset
from hf_clamu.training import Progress, TaskTrainer, deterministic, measure, silent_progress

__all__ = ["MethodScore", "compare_methods"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodScore:
    """One method's result on held-out data.

    Args:
        score (`float`): mean over the tasks, in [0, 1].
        alpha (`float`, *optional*): the scaling coefficient that it chose.
        storage_bytes (`int`): weights that it stores: fp32 models and one bit per weight and mask.
    """

    score: float
    alpha: float | None
    storage_bytes: int


def compare_methods(
    base: BaseModel,
    tasks: TaskDataset,
    clusters: tuple[tuple[str, ...], ...],
    arguments: ClamuArguments,
    held_out: Mapping[str, Sequence[Example]],
    *,
    methods: Sequence[str] = ("global", "tall", "emr"),
    progress: Progress = silent_progress,
) -> dict[str, MethodScore]:
    """Measure the base model, the local models and other localizations on the clusters of a build.

    Every method gets the same merged delta, the same clusters and the same search of alpha.

    Args:
        base (`BaseModel`): the base model.
        tasks (`TaskDataset`): the training data.
        clusters (*tuple* of *tuple* of `str`): member ids.
        arguments (`ClamuArguments`): the settings of the build; `localization` is replaced by each method.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is measured, per task.
        methods (*sequence* of `str`): localizations; none that finetunes tasks under fixed signs.
        progress (`Progress`, *optional*): shows how far it is.

    Returns:
        *dict* of `str` to `MethodScore`: `"base"`, `"local"` and each method.

    Raises:
        RecipeError: if a method cannot be compared on the same task vectors.
    """
    for method in methods:
        if LOCALIZATIONS[method].has_fixed_signs:
            raise RecipeError(
                f"Methods are compared on the same task vectors, and {method!r} needs vectors of its own: build with "
                f"localization={method!r} and measure that (evaluate_model, clamu evaluate)."
            )
    arguments = resolved_arguments(arguments, base.model, base.space)
    with deterministic(arguments.num_threads):
        trainer = open_trainer(base.model, base.processor, tasks, arguments, progress)
        try:
            comparison = _Comparison(trainer, clusters, arguments, held_out)
            results = {"base": comparison.base(), "local": comparison.local()}
            return results | {method: comparison.localized(method) for method in methods}
        finally:
            trainer.workspace.release()


class _Comparison:
    """Measures models on the held-out data of all tasks, cluster by cluster.

    Args:
        trainer (`TaskTrainer`): live model and training data.
        clusters (*tuple* of *tuple* of `str`): member ids.
        arguments (`ClamuArguments`): the settings of the build.
        held_out (*mapping* of `str` to *sequence* of `Example`): what is measured, per task.
    """

    def __init__(
        self,
        trainer: TaskTrainer,
        clusters: tuple[tuple[str, ...], ...],
        arguments: ClamuArguments,
        held_out: Mapping[str, Sequence[Example]],
    ) -> None:
        self._trainer = trainer
        self._clusters = clusters
        self._arguments = arguments
        self._held_out = held_out
        shapes = trainer.workspace.shapes
        self._num_weights = trainer.workspace.num_parameters
        self._total = DeltaAccumulator(shapes, least_bits=trainer.codec.least_bits)
        self._sums = {members: DeltaAccumulator(shapes, least_bits=trainer.codec.least_bits) for members in clusters}

    def base(self) -> MethodScore:
        """Measure the base model."""
        self._trainer.workspace.reset()
        scores = [self._score(task_id) for members in self._clusters for task_id in members]
        return MethodScore(score=fmean(scores), alpha=None, storage_bytes=4 * self._num_weights)

    def local(self) -> MethodScore:
        """Measure each task's local model, and add up the task vectors for `localized`."""
        scores = []
        for members in self._clusters:
            for task_id in self._trainer.progress(members, "finetune for comparison"):
                vector = self._trainer.finetune(task_id)
                self._total.add(vector)
                self._sums[members].add(vector)
                scores.append(self._score(task_id))
        return MethodScore(score=fmean(scores), alpha=None, storage_bytes=4 * self._num_weights * len(scores))

    def localized(self, method: str) -> MethodScore:
        """Measure each task under the mask that a localization makes for its cluster."""
        problem = MaskProblem(
            delta=self._delta,
            clusters=self._clusters,
            arguments=replace(self._arguments, localization=method),
            run_seed=self._arguments.seed,
            cluster_vector=self._cluster_vector,
        )
        alpha, masks = Localizer(self._trainer, problem).run()
        scores = []
        for number, members in enumerate(self._clusters):
            self._trainer.load_masked(self._delta, alpha, masks[number] if masks else ALL_WEIGHTS)
            scores += [self._score(task_id) for task_id in members]
        mask_bytes = (self._num_weights + 7) // 8 * len(masks)
        mask_bytes += 4 * sum(len(mask.factors) for mask in masks if mask.factors is not None)
        return MethodScore(score=fmean(scores), alpha=alpha, storage_bytes=4 * self._num_weights + mask_bytes)

    @cached_property
    def _delta(self) -> dict[str, torch.Tensor]:
        return self._total.narrowed()

    def _cluster_vector(self, members: Sequence[str]) -> dict[str, torch.Tensor]:
        return self._sums[tuple(members)].narrowed()

    def _score(self, task_id: str) -> float:
        """Measure what the live model holds."""
        trainer = self._trainer
        return measure(trainer.workspace, self._held_out[task_id], trainer.tasks.spec.kind).score
