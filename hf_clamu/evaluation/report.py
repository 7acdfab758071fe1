"""How well a merged model serves its tasks: per task, per cluster and over all tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hf_clamu.errors import TaskDataError
from hf_clamu.evaluation.scores import accuracy, answer_probability, macro_f1
from hf_clamu.serving.auto_routing import resolve_routes
from hf_clamu.serving.routing import Route, find_route, group_by_route, select_route
from hf_clamu.tasks import Example, ModelLimits, TaskDataset, traits_of
from hf_clamu.tasks.encoding import padding_id
from hf_clamu.training import (
    LiveModel,
    Progress,
    label_predictions,
    losses_and_scores,
    prompts_of,
    silent_progress,
)

__all__ = ["EvaluationReport", "Summary", "evaluate_model"]

Split = Literal["validation", "train", "all"]
Serving = Literal["own", "global", "base", "auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A metric over some tasks, each counting the same.

    Args:
        mean (`float`): in [0, 1].
        spread (`float`): standard deviation over the tasks.
    """

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Summarise at least one value."""
        values = list(values)
        return cls(mean=math.fsum(values) / len(values), spread=statistics.pstdev(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """Scores of a merged model on its tasks.

    Args:
        metrics (*dict* of `str` to `Summary`): over all tasks: `"accuracy"` and `"macro_f1"` for classifiers,
            `"answer_probability"` for language models.
        tasks (*dict* of `str` to *dict* of `str` to `float`): per task, each metric.
        clusters (*dict* of `int` to *dict* of `str` to `Summary`): per cluster, each metric over its tasks.
        cluster_names (*dict* of `int` to `str`): their names.
        num_examples (*dict* of `str` to `int`): per task.
        without_examples (*tuple* of `str`): merged tasks that have no example of the split, so that nothing of them
            was measured.
    """

    metrics: dict[str, Summary]
    tasks: dict[str, dict[str, float]]
    clusters: dict[int, dict[str, Summary]]
    num_examples: dict[str, int]
    without_examples: tuple[str, ...] = ()
    cluster_names: dict[int, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The metric that `score` and `spread` are of: accuracy or answer probability."""
        return next(iter(self.metrics))

    @property
    def score(self) -> float:
        """Mean of `metric` over the tasks."""
        return self.metrics[self.metric].mean

    @property
    def spread(self) -> float:
        """Standard deviation of `metric` over the tasks."""
        return self.metrics[self.metric].spread

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "metric": self.metric,
            "score": self.score,
            "spread": self.spread,
            "metrics": {name: asdict(summary) for name, summary in self.metrics.items()},
            "num_tasks": len(self.tasks),
            "num_examples": sum(self.num_examples.values()),
            "without_examples": list(self.without_examples),
            "tasks": {
                task_id: {**values, "num_examples": self.num_examples[task_id]}
                for task_id, values in self.tasks.items()
            },
            "clusters": {
                str(number): {name: asdict(summary) for name, summary in summaries.items()}
                for number, summaries in self.clusters.items()
            },
            "cluster_names": {str(number): name for number, name in self.cluster_names.items()},
        }


def evaluate_model(
    model: Any,
    tasks: TaskDataset,
    *,
    split: Split = "all",
    serving: Serving | int | str = "own",
    progress: Progress = silent_progress,
) -> EvaluationReport:
    """Measure a merged model on its tasks.

    Classifiers are measured by the labels they choose, language models by the probability of the right answer. Each
    row is encoded once, as training has it.

    Args:
        model (`ClamuModel`): the model; what is selected is the same afterwards. It is held until the end: other
            threads wait.
        tasks (`TaskDataset`): data of merged tasks; others in it are left out.
        split (`str`): `"validation"`, `"train"` or `"all"` examples of the tasks.
        serving (`str` or `int`): each task by its `"own"` cluster, or all by the `"global"` model, the `"base"`, or
            one cluster by its name or number; or with `"auto"` each example by the cluster that is nearest to it by
            the base model's features, whoever it belongs to.
        progress (`Progress`, *optional*): shows how far it is.

    Raises:
        RecipeError: if serving is `"auto"` and the model keeps no features, or has no masks to choose from.
        TaskDataError: if no task of the data is merged, or none of them has examples of that split.
    """
    with model.held():
        return _evaluated(model, tasks, split, serving, progress)


def _evaluated(
    model: Any, tasks: TaskDataset, split: Split, serving: Serving | int | str, progress: Progress
) -> EvaluationReport:
    tasks = model.keyed_tasks(tasks)
    numbers = model.merged.state.cluster_numbers()
    known = [task_id for task_id in tasks.task_ids if task_id in numbers]
    if not known:
        raise TaskDataError(
            f"None of the {len(tasks)} tasks of the data is merged into this model. Give the data of merged tasks."
        )
    groups: dict[int, list[str]] = {}
    for task_id in known:
        groups.setdefault(numbers[task_id], []).append(task_id)
    route = _route(model, serving)
    live = LiveModel(model, device=model.device, pad_token_id=padding_id(model.processor))
    measured: dict[str, tuple[dict[str, float], int]] = {}
    for number in progress(sorted(groups), "evaluate"):
        for task_id in groups[number]:
            examples = _examples(tasks, task_id, model, split)
            if examples:
                routes = [number if route is None else route] * len(examples)
                measured[task_id] = _metrics_of(live, examples, routes, tasks.spec.kind), len(examples)
    if not measured:
        raise TaskDataError(
            f"None of the {len(known)} tasks has {split} examples: the recipe keeps none (validation_fraction), or "
            "the tasks are too small. Evaluate another split, or give held-out data (--data PATH)."
        )
    values = {task_id: measured[task_id][0] for task_id in known if task_id in measured}
    measured_groups = {
        number: [values[task_id] for task_id in members if task_id in values]
        for number, members in sorted(groups.items())
    }
    clusters = {number: _summaries(members) for number, members in measured_groups.items() if members}
    return EvaluationReport(
        metrics=_summaries(values.values()),
        tasks=values,
        clusters=clusters,
        num_examples={task_id: measured[task_id][1] for task_id in values},
        without_examples=tuple(task_id for task_id in known if task_id not in values),
        cluster_names={number: model.cluster_names[number] for number in clusters},
    )


def _route(model: Any, serving: Serving | int | str) -> Route | None:
    """Return who answers for all tasks; `None` if each is served by its own cluster."""
    if serving in ("own", "global"):
        return None if serving == "own" else "global"
    return "base" if serving == "base" else find_route(model, serving, None)


def _summaries(tasks: Iterable[Mapping[str, float]]) -> dict[str, Summary]:
    rows = list(tasks)
    return {name: Summary.of(row[name] for row in rows) for name in rows[0]}


def _examples(tasks: TaskDataset, task_id: str, model: Any, split: Split) -> tuple[Example, ...]:
    encoded = tasks.encode(task_id, model.processor, ModelLimits.of(model))
    parts = {"train": encoded.train, "validation": encoded.validation}
    return parts.get(split, (*encoded.train, *encoded.validation))


def _metrics_of(live: LiveModel, examples: Sequence[Example], routes: Sequence[Route], kind: str) -> dict[str, float]:
    """Measure a model on some examples, which are encoded as training had them, each served by its route."""
    prompts = prompts_of(examples, kind)
    losses, predictions, references = [], [], []
    for route, indices in group_by_route(resolve_routes(live.model, routes, prompts.__getitem__)).items():
        select_route(live.model, route)
        served = [examples[index] for index in indices]
        if traits_of(kind).writes_text:
            losses += losses_and_scores(live, served, kind)[0]
            continue
        found = label_predictions(live, served, kind)
        predictions += found[0]
        references += found[1]
    if traits_of(kind).writes_text:
        return {"answer_probability": answer_probability([-loss for loss in losses])}
    return {"accuracy": accuracy(predictions, references), "macro_f1": macro_f1(predictions, references)}
