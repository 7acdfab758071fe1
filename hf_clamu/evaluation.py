"""How well a merged model serves its tasks, and what the other methods would give on the same clusters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.exact import DeltaAccumulator
from hf_clamu.merging import ClamuArguments, Localizer
from hf_clamu.models.base import BaseModel
from hf_clamu.models.maintenance import open_trainer
from hf_clamu.tasks import EncodedTask, Example, TaskDataset
from hf_clamu.training import LiveModel, Measurement, Progress, deterministic, measure, silent_progress

__all__ = ["EvaluationReport", "MethodScore", "compare_methods", "evaluate_model"]

Split = Literal["validation", "train", "all"]
Serving = Literal["own", "global", "base"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """Scores of a merged model on its tasks.

    Args:
        metric (`str`): `"accuracy"`, or `"answer_probability"` for language models.
        score (`float`): mean over the tasks, in [0, 1].
        spread (`float`): standard deviation over the tasks.
        tasks (*dict* of `str` to `Measurement`): per task.
        clusters (*dict* of `int` to `float`): mean score per cluster.
    """

    metric: str
    score: float
    spread: float
    tasks: dict[str, Measurement]
    clusters: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "metric": self.metric,
            "score": self.score,
            "spread": self.spread,
            "num_tasks": len(self.tasks),
            "num_examples": sum(found.num_examples for found in self.tasks.values()),
            "tasks": {
                task_id: {"score": found.score, "loss": found.loss, "num_examples": found.num_examples}
                for task_id, found in self.tasks.items()
            },
            "clusters": {str(number): score for number, score in self.clusters.items()},
        }


def evaluate_model(
    model: Any,
    tasks: TaskDataset,
    *,
    split: Split = "all",
    serving: Serving | int = "own",
    progress: Progress = silent_progress,
) -> EvaluationReport:
    """Measure a merged model on its tasks.

    Args:
        model (`ClamuModel`): the model; the selected cluster is the same afterwards.
        tasks (`TaskDataset`): data of merged tasks; others in it are left out.
        split (`str`): `"validation"`, `"train"` or `"all"` examples of the tasks.
        serving (`str` or `int`): each task by its `"own"` cluster, or all by the `"global"` model, the `"base"`, or
            one cluster by its number.
        progress (`Progress`, *optional*): shows how far it is.

    Raises:
        TaskDataError: if no task of the data is merged, or a task has no examples of that split.
    """
    tasks = model.keyed_tasks(tasks)
    known = [task_id for task_id in tasks.task_ids if task_id in model.tasks]
    if not known:
        raise TaskDataError(
            f"None of the {len(tasks)} tasks of the data is merged into this model. Give the data of merged tasks."
        )
    groups: dict[int, list[str]] = {}
    for task_id in known:
        groups.setdefault(model.cluster_of(task_id), []).append(task_id)
    selected = model.cluster
    live = LiveModel(model, device=model.device, pad_token_id=getattr(model.processor, "pad_token_id", None) or 0)
    found: dict[str, Measurement] = {}
    try:
        for number in progress(sorted(groups), "evaluate"):
            _serve(model, number if serving == "own" else serving)
            for task_id in groups[number]:
                found[task_id] = measure(live, _examples(tasks.encode(task_id, model.processor), split))
    finally:
        model.set_cluster(selected)
    scores = [found[task_id].score for task_id in known]
    return EvaluationReport(
        metric="answer_probability" if tasks.spec.kind.endswith("-lm") else "accuracy",
        score=math.fsum(scores) / len(scores),
        spread=statistics.pstdev(scores),
        tasks={task_id: found[task_id] for task_id in known},
        clusters={
            number: math.fsum(found[task_id].score for task_id in members) / len(members)
            for number, members in sorted(groups.items())
        },
    )


def _serve(model: Any, serving: Serving | int) -> None:
    if serving == "base":
        model.set_base()
    else:
        model.set_cluster(None if serving == "global" else serving)


def _examples(encoded: EncodedTask, split: Split) -> Sequence[Example]:
    chosen = {"validation": encoded.validation, "train": encoded.train}.get(
        split, (*encoded.train, *encoded.validation)
    )
    if not chosen:
        raise TaskDataError(
            f"Task {encoded.task_id!r} has no {split} examples: the recipe keeps none (validation_fraction). "
            "Evaluate another split, or give held-out data (--data PATH)."
        )
    return chosen


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
        methods (*sequence* of `str`): localizations.
        progress (`Progress`, *optional*): shows how far it is.

    Returns:
        *dict* of `str` to `MethodScore`: `"base"`, `"local"` and each method.
    """
    with deterministic(arguments.num_threads):
        trainer = open_trainer(base.model, base.processor, tasks, arguments, progress)
        workspace = trainer.workspace
        model_bytes = 4 * workspace.num_parameters
        task_ids = [task_id for members in clusters for task_id in members]

        def mean(served: Callable[[str], None]) -> float:
            scores = []
            for task_id in task_ids:
                served(task_id)
                scores.append(measure(workspace, held_out[task_id]).score)
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
                local.append(measure(workspace, held_out[task_id]).score)
        results["local"] = MethodScore(
            score=math.fsum(local) / len(local), alpha=None, storage_bytes=model_bytes * len(task_ids)
        )
        delta = total.narrowed()

        def cluster_vector(members: Sequence[str]) -> dict[str, torch.Tensor]:
            return sums[tuple(members)].narrowed()

        number_of = {task_id: number for number, members in enumerate(clusters) for task_id in members}
        for method in methods:
            settings: Any = replace(arguments, localization=method)  # type: ignore[arg-type]
            alpha, masks = Localizer(trainer, delta, clusters, settings, arguments.seed, cluster_vector).run()
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
        workspace.release()
    return results
