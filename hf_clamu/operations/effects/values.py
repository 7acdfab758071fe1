"""What a request changes for the tasks that stay: by which weights they are served, with whom, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hf_clamu.errors import RecipeError, ScoreDropError
from hf_clamu.operations.request import RequestKind

__all__ = ["ChangeEffect", "ClusterEffect", "TaskEffect", "check_max_drop", "mean_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEffect:
    """What a request changes for one task that stays.

    Args:
        cluster_before, cluster_after (`str`): names of the clusters that serve it.
        moved (`bool`): it shares its cluster with other retained tasks than before.
        changed (`bool`): it is served by other weights than before.
        num_validation (`int`): its validation examples, as the ledger has it.
        score_before, score_after (`float`, *optional* each): of its validation examples, in [0, 1]. `None` if it has
            none, or was not measured.
    """

    cluster_before: str
    cluster_after: str
    moved: bool
    changed: bool
    num_validation: int
    score_before: float | None
    score_after: float | None

    @property
    def drop(self) -> float | None:
        """By how much its score falls, from -1 to 1; `None` if it may fall and there is no score."""
        if not self.changed:
            return 0.0
        return None if self.score_before is None or self.score_after is None else self.score_before - self.score_after


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterEffect:
    """What a request changes for one cluster, by its name.

    Args:
        num_tasks_before, num_tasks_after (`int`): its tasks; 0 where there is no such cluster.
        score_before, score_after (`float`, *optional* each): means over its tasks that stay and have a score: over
            those that it has before, and those that it has after.
    """

    num_tasks_before: int
    num_tasks_after: int
    score_before: float | None
    score_after: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeEffect:
    """What a request changes, or would change.

    Args:
        request (`str`): `"unmerge"`, `"add"` or `"update"`.
        num_tasks_before, num_tasks_after (`int`): merged tasks.
        tasks (*dict* of `str` to `TaskEffect`): the tasks that stay and that the request does not name, by id.
        clusters (*dict* of `str` to `ClusterEffect`): the clusters before and after, by name.
        num_bytes_before, num_bytes_after (`int`): of delta, masks and features.
        global_score_before, global_score_after (`float`, *optional* each): mean of the global model over all tasks
            that are merged then, where the model has scores on record.
        metric (`str`): what scores are: `"accuracy"` or `"answer_probability"`.
        seconds (*dict* of `str` to `float`): durations by stage, `compare` among them, and their `total`.
    """

    request: RequestKind
    num_tasks_before: int
    num_tasks_after: int
    tasks: dict[str, TaskEffect]
    clusters: dict[str, ClusterEffect]
    num_bytes_before: int
    num_bytes_after: int
    global_score_before: float | None
    global_score_after: float | None
    metric: str
    seconds: dict[str, float]

    @property
    def changed(self) -> tuple[str, ...]:
        """The tasks that are served by other weights than before."""
        return tuple(task_id for task_id, task in self.tasks.items() if task.changed)

    @property
    def moved(self) -> tuple[str, ...]:
        """The tasks that share their cluster with other retained tasks than before."""
        return tuple(task_id for task_id, task in self.tasks.items() if task.moved)

    @property
    def unscored(self) -> tuple[str, ...]:
        """The tasks that are served by other weights, and of which no score says how well."""
        return tuple(task_id for task_id, task in self.tasks.items() if task.drop is None)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Those of `unscored` that have validation examples, which were not at hand."""
        return tuple(task_id for task_id in self.unscored if self.tasks[task_id].num_validation)

    @property
    def worst_drop(self) -> float | None:
        """The largest fall of a task's score, 0 if none falls; `None` if tasks change and none has a score."""
        if self.changed and len(self.unscored) == len(self.changed):
            return None
        return max([0.0, *self._drops().values()])

    def _drops(self) -> dict[str, float]:
        return {task_id: task.drop for task_id, task in self.tasks.items() if task.drop is not None}

    def require_drop_within(self, max_drop: float) -> None:
        """Refuse a change that takes more than this from a task that stays.

        Tasks without validation examples cannot be judged; they count if no other task that changes can be.

        Args:
            max_drop (`float`): points of a task's score, 0 to 1.

        Raises:
            ScoreDropError: if a task would lose more, or it cannot be judged whether one does.
        """
        drops = self._drops()
        above = [task_id for task_id, drop in drops.items() if drop > max_drop]
        if above:
            worst = max(above, key=lambda task_id: drops[task_id])
            more = f", and {len(above) - 1} more would lose too much" if len(above) > 1 else ""
            raise ScoreDropError(
                f"Nothing was changed: task {worst!r} would lose {drops[worst]:.3f} of its {_shown(self.metric)} on "
                f"{self.tasks[worst].num_validation} validation rows, and max_drop allows {max_drop:g}{more}. A dry "
                "run (dry_run=True, --dry-run) without max_drop lists them. Allow more, or keep to the model as it is."
            )
        unknown = self.unmeasured or (self.unscored if self.worst_drop is None else ())
        if unknown:
            raise ScoreDropError(
                f"Nothing was changed: {len(unknown)} tasks that stay, such as {unknown[0]!r}, would be served by "
                "other weights, and max_drop cannot be judged without their validation rows. Give the data as they "
                "were merged (data=, --data), build with validation_fraction, or leave max_drop (--max-drop) out."
            )

    def summary(self) -> dict[str, Any]:
        """Return counts, means, storage: what names no task."""
        scored = [task for task in self.tasks.values() if task.score_before is not None]
        mean = {side: mean_of(getattr(task, f"score_{side}") for task in scored) for side in ("before", "after")}
        return {
            "num_retained": len(self.tasks),
            "num_changed": len(self.changed),
            "num_moved": len(self.moved),
            "num_scored": len(scored),
            "num_unscored": len(self.unscored),
            "num_unmeasured": len(self.unmeasured),
            "metric": self.metric,
            "mean": mean,
            "global": {"before": self.global_score_before, "after": self.global_score_after},
            "worst_drop": self.worst_drop,
            "num_bytes": {"before": self.num_bytes_before, "after": self.num_bytes_after},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with ids and names."""
        return {
            **self.summary(),
            "request": self.request,
            "num_tasks": {"before": self.num_tasks_before, "after": self.num_tasks_after},
            "tasks": {task_id: asdict(task) for task_id, task in self.tasks.items()},
            "clusters": {name: asdict(cluster) for name, cluster in self.clusters.items()},
            "seconds": dict(self.seconds),
        }

    def for_receipt(self, commit: Callable[[str], str]) -> dict[str, Any]:
        """Return JSON-able values without ids and names, and of tasks only those for whom something changes.

        Args:
            commit (*callable*): id or name to what stands for it.
        """
        changes = [
            {
                "task": commit(task_id),
                "changed": task.changed,
                "moved": task.moved,
                "before": task.score_before,
                "after": task.score_after,
            }
            for task_id, task in self.tasks.items()
            if task.changed or task.moved
        ]
        clusters = [{"cluster": commit(name), **asdict(cluster)} for name, cluster in self.clusters.items()]
        return {
            **self.summary(),
            "tasks": sorted(changes, key=lambda entry: str(entry["task"])),
            "clusters": sorted(clusters, key=lambda entry: str(entry["cluster"])),
        }


def check_max_drop(max_drop: float | None) -> None:
    """Check what a task may lose of its score.

    Raises:
        RecipeError: if it is no number from 0 to 1.
    """
    if max_drop is None or (type(max_drop) in (int, float) and 0 <= max_drop <= 1):
        return
    raise RecipeError(
        f"max_drop (--max-drop) is what a task may lose of its score, a number from 0 to 1 (0.05 are five points of a "
        f"hundred), got {max_drop!r}."
    )


def _shown(metric: str) -> str:
    return metric.replace("_", " ")


def mean_of(scores: Iterable[float | None]) -> float | None:
    """Return the mean of the scores that are known; `None` of none."""
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None
