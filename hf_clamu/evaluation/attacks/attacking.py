"""Every attack on a model, on what it was before, and on a build without the task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.evaluation.attacks.intervals import LEVEL, auc, auc_value, mean, share, true_positive_rate
from hf_clamu.evaluation.attacks.report import FALSE_POSITIVE_RATES, Extraction, Leakage, LeakageReport, Membership
from hf_clamu.evaluation.attacks.rows import attacked_tasks
from hf_clamu.evaluation.attacks.scores import EXTRACTION, chosen_attacks
from hf_clamu.evaluation.attacks.weights import Attacker, RowScores, difference
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import Progress, deterministic, silent_progress

__all__ = ["attack_model"]


def attack_model(
    model: Any,
    tasks: TaskDataset,
    task: str | Sequence[str],
    *,
    held_out: TaskDataset | None = None,
    before: Any = None,
    rebuilt: Any = None,
    attacks: Sequence[str] | None = None,
    guidance: float = 2.0,
    progress: Progress = silent_progress,
) -> LeakageReport:
    """Measure what a model leaks of a task, merged or forgotten.

    Members are the rows that the task is or was trained on; the others are its validation rows, or those given. Where
    several tasks are named, their rows are pooled. A forgotten task has no cluster: the global model serves it, and
    the report adds for each attack the cluster that it does best on, with an interval that allows for the choice.

    Args:
        model (`ClamuModel`): the model; what is selected in it is the same afterwards. It is held until the end.
        tasks (`TaskDataset`): the data of the tasks, as it was merged.
        task (`str` or *sequence* of `str`): whose rows; merged or not.
        held_out (`TaskDataset`, *optional*): rows of the same owners that were not trained on.
        before (`ClamuModel`, *optional*): the model before the tasks were forgotten; it is attacked, too, and so is
            what both copies give together.
        rebuilt (`ClamuModel`, *optional*): built without the tasks.
        attacks (*sequence* of `str`, *optional*): some of `ATTACKS`; by default all that fit the model.
        guidance (`float`, defaults to 2.0): how far guided decoding goes from `model` to `before`; 1 is there.
        progress (`Progress`, *optional*): shows how far it is.

    Returns:
        `LeakageReport`: the same digits every time.

    Raises:
        RecipeError: if an attack is unknown or needs a model that writes text, guidance is not positive, or the models
            read rows with other settings.
        IncompatibleBaseError: if the models do not have the same base model.
        TaskDataError: if a task has no rows, or there are too few for an interval.
        TaskNotFoundError: if ids are keyed and the key is missing.
        DigestMismatchError: if the rows are not those that were merged.

    Example:

    ```python
    report = attack_model(after, tasks, "user_17", before=before, rebuilt=rebuilt)
    report.models["before"]["served"].membership["loss"].auc, report.equals_rebuilt
    ```
    """
    models = {
        name: one for name, one in (("before", before), ("model", model), ("rebuilt", rebuilt)) if one is not None
    }
    kind = _require_alike(models, guidance)
    names = chosen_attacks(attacks, kind)
    with ExitStack() as stack:
        for one in models.values():
            stack.enter_context(one.held())
        stack.enter_context(deterministic(model.merged.checkpoint.arguments.num_threads))
        task_ids = [task] if isinstance(task, str) else task
        rows = attacked_tasks(model, tuple(models.values()), tasks, task_ids, held_out)
        return _attacked(Attacker(rows, kind, names, model.processor), models, guidance, progress)


def _attacked(attacker: Attacker, models: Mapping[str, Any], guidance: float, progress: Progress) -> LeakageReport:
    model, before = models["model"], models.get("before")
    found = {name: _of_model(attacker, one, name, progress) for name, one in models.items()}
    model.set_base()
    return LeakageReport(
        tasks=tuple(task.task_id for task in attacker.tasks),
        num_members=sum(len(task.members) for task in attacker.tasks),
        num_held_out=sum(len(task.held_out) for task in attacker.tasks),
        models=found,
        base=_leakage(attacker.selected(model), "base"),
        pair={} if before is None else dict(_of_pair(attacker, before, model, guidance)),
        tasks_between=None if before is None else _tasks_between(before, model),
    )


def _require_alike(models: Mapping[str, Any], guidance: float) -> str:
    """Check what the models are asked for, and that they are copies of one; return their kind of task."""
    if not math.isfinite(guidance) or guidance <= 0:
        raise RecipeError(f"guidance must be a positive number, such as 2, found {guidance!r}.")
    for name, other in models.items():
        _require_copy(models["model"], other, name)
    return str(models["model"].merged.checkpoint.task_spec.kind)


def _require_copy(model: Any, other: Any, name: str) -> None:
    ours, theirs = model.merged.checkpoint, other.merged.checkpoint
    if (ours.base.digest, ours.config.architecture) != (theirs.base.digest, theirs.config.architecture):
        raise IncompatibleBaseError(
            f"Both models must have the same base model to be compared, but the one given as {name} is a "
            f"{theirs.config.architecture} of base {theirs.base.digest[:16]}… and the attacked one a "
            f"{ours.config.architecture} of base {ours.base.digest[:16]}…. Give a copy of the same model (--{name} "
            "DIR)."
        )
    if ours.task_spec != theirs.task_spec:
        raise RecipeError(
            f"The model given as {name} reads rows with other settings (data section of its recipe) than the attacked "
            f"one, so rows mean something else to it. Give a copy of the same model (--{name} DIR)."
        )


def _tasks_between(before: Any, after: Any) -> dict[str, int]:
    old, new = set(before.merged.state.records), set(after.merged.state.records)
    return {"left": len(old - new), "joined": len(new - old)}


def _of_model(attacker: Attacker, model: Any, name: str, progress: Progress) -> dict[str, Leakage]:
    found = {"served": _leakage(attacker.served(model), "served")}
    numbers = range(len(model.clusters))
    if numbers and model.merged.checkpoint.arguments.localization_method.makes_masks:
        scores = []
        for number in progress(numbers, f"attack {name}"):
            model.set_cluster(number)
            scores.append(attacker.selected(model))
        found["worst"] = _worst(scores)
    return found


def _worst(clusters: Sequence[RowScores]) -> Leakage:
    """Return for each attack what it finds under the cluster that suits it best; of equal ones the first."""
    level = 1 - (1 - LEVEL) / len(clusters)
    worst = Leakage()
    for attack in clusters[0].members:
        if attack == EXTRACTION:
            found = [math.fsum(scores.members[attack]) for scores in clusters]
        else:
            found = [auc_value(scores.members[attack], scores.held_out[attack]) for scores in clusters]
        number = found.index(max(found))
        worst = worst.with_attack(attack, _figures(attack, clusters[number], "worst", level, number))
    return worst


def _of_pair(attacker: Attacker, before: Any, after: Any, weight: float) -> Iterator[tuple[str, Leakage]]:
    if EXTRACTION in attacker.attacks:
        yield "guidance", _leakage(attacker.guided(before, after, weight), "guidance")
    with difference(before, after) as weights:
        if weights is not None:
            yield "difference", _leakage(attacker.selected(weights), "difference")


def _leakage(scores: RowScores, name: str) -> Leakage:
    found = Leakage()
    for attack in scores.members:
        found = found.with_attack(attack, _figures(attack, scores, name))
    return found


def _figures(
    attack: str, scores: RowScores, name: str, level: float = LEVEL, cluster: int | None = None
) -> Membership | Extraction:
    members, held_out = scores.members[attack], scores.held_out[attack]
    if attack == EXTRACTION:
        return Extraction(
            strength=mean(members, f"{name}/members", level),
            held_out=mean(held_out, f"{name}/held-out", level),
            whole=share(members.count(1.0), len(members), level),
            cluster=cluster,
        )
    rates = {rate: true_positive_rate(members, held_out, value, level) for rate, value in FALSE_POSITIVE_RATES.items()}
    return Membership(auc=auc(members, held_out, level), tpr=rates, cluster=cluster)
