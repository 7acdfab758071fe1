"""What the other methods would give on the clusters of a build."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hf_clamu.base_models.loading import BaseModel
from hf_clamu.errors import RecipeError
from hf_clamu.exact import DeltaAccumulator
from hf_clamu.merging import LOCALIZATIONS, ClamuArguments, Localizer, MaskProblem
from hf_clamu.operations.context import open_trainer
from hf_clamu.tasks import Example, TaskDataset
from hf_clamu.training import Progress, deterministic, measure, silent_progress

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(arguments.num_threads))
        trainer = open_trainer(base.model, base.processor, tasks, arguments, progress)
        workspace = trainer.workspace
        stack.callback(workspace.release)
        model_bytes = 4 * workspace.num_parameters
        task_ids = [task_id for members in clusters for task_id in members]

        def mean(served: Callable[[str], None]) -> float:
            scores = []
            for task_id in task_ids:
                served(task_id)
                scores.append(measure(workspace, held_out[task_id], tasks.spec.kind).score)
            return math.fsum(scores) / len(scores)

        workspace.reset()
        results = {"base": MethodScore(score=mean(lambda _: None), alpha=None, storage_bytes=model_bytes)}
        total = DeltaAccumulator(workspace.shapes)
        sums = {members: DeltaAccumulator(workspace.shapes) for members in clusters}
        local = []
        for members in clusters:
            for task_id in progress(members, "finetune for comparison"):
                vector = trainer.finetune(task_id)
                total.add(vector)
                sums[members].add(vector)
                local.append(measure(workspace, held_out[task_id], tasks.spec.kind).score)
        results["local"] = MethodScore(
            score=math.fsum(local) / len(local), alpha=None, storage_bytes=model_bytes * len(task_ids)
        )
        delta = total.narrowed()

        def cluster_vector(members: Sequence[str]) -> dict[str, torch.Tensor]:
            return sums[tuple(members)].narrowed()

        number_of = {task_id: number for number, members in enumerate(clusters) for task_id in members}
        for method in methods:
            problem = MaskProblem(
                delta=delta,
                clusters=clusters,
                arguments=replace(arguments, localization=method),
                run_seed=arguments.seed,
                cluster_vector=cluster_vector,
            )
            alpha, masks = Localizer(trainer, problem).run()
            loaded: list[int] = []

            def serve(
                task_id: str,
                alpha: float = alpha,
                masks: tuple[dict[str, torch.Tensor], ...] = masks,
                loaded: list[int] = loaded,
            ) -> None:
                # Tasks come cluster by cluster, so each masked model is loaded once.
                if loaded != [number_of[task_id]]:
                    loaded[:] = [number_of[task_id]]
                    trainer.load_masked(delta, alpha, masks[loaded[0]] if masks else None)

            mask_bytes = (workspace.num_parameters + 7) // 8 * len(masks)
            results[method] = MethodScore(score=mean(serve), alpha=alpha, storage_bytes=model_bytes + mask_bytes)
    return results
