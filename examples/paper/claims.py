"""The paper's orderings, asked of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from examples.paper.measured import LABELS, Measured, Value
from examples.paper.scale import Experiment

__all__ = ["Claim", "claims_of"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An ordering in one setting.

    Args:
        name (`str`): what a scale's `remarks` call it, together with the setting.
        statement (`str`): what the paper says.
        setting (`str`): where it is asked.
        higher, lower (*tuple* of `str` and `Value`): what should be above, and what below.
        is_percent (`bool`): whether they are scores; otherwise models of storage.
    """

    name: str
    statement: str
    setting: str
    higher: tuple[str, Value]
    lower: tuple[str, Value]
    is_percent: bool = True

    @property
    def holds(self) -> bool:
        """Whether the means over the seeds are in the paper's order."""
        return self.higher[1].mean > self.lower[1].mean

    @property
    def num_seeds(self) -> int:
        """Under how many seeds they are."""
        return sum(high > low for high, low in zip(self.higher[1].values, self.lower[1].values, strict=True))


def claims_of(name: str, experiment: Experiment, measured: Measured) -> list[Claim]:
    """Return the claims about an experiment that can be asked of what was measured."""
    found = _CLAIMS.get(name)
    return [] if found is None else list(found(experiment, measured))


def _most(experiment: Experiment) -> int:
    return max(experiment.num_tasks)


def _over_masks(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    """ClAMU's masks over the better of TALL's and EMR's."""
    for setting in experiment.settings:
        found = {
            method: measured.value(setting, _most(experiment), method, num_clusters=experiment.num_clusters[0])
            for method in ("clamu", "tall", "emr")
        }
        if None not in found.values():
            own = found.pop("clamu")
            yield _over_best("clamu_over_masks", "ClAMU over TALL and EMR", setting, own, found)


def _over_single(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    """ClAMU over the best merged model without masks."""
    singles = ("average", "task_arithmetic", "ties")
    for setting in experiment.settings:
        own = measured.value(setting, _most(experiment), "clamu", num_clusters=experiment.num_clusters[0])
        found = {method: measured.value(setting, _most(experiment), method) for method in singles}
        found = {method: value for method, value in found.items() if value is not None}
        if own is not None and found:
            yield _over_best("clamu_over_single", "ClAMU over one merged model", setting, own, found)


def _over_best(name: str, statement: str, setting: str, own: Value, others: dict[str, Value]) -> Claim:
    best = max(others, key=lambda method: others[method].mean)
    return Claim(
        name=name, statement=statement, setting=setting, higher=("ClAMU", own), lower=(LABELS[best], others[best])
    )


def _figure2(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    yield from _over_masks(experiment, measured)
    yield from _over_single(experiment, measured)
    for setting in experiment.settings:
        few = measured.value(setting, min(experiment.num_tasks), "task_arithmetic")
        many = measured.value(setting, _most(experiment), "task_arithmetic")
        if few is not None and many is not None:
            yield Claim(
                name="fewer_over_more",
                statement="one merged model gets worse with the number of tasks",
                setting=setting,
                higher=(f"{min(experiment.num_tasks)} tasks", few),
                lower=(f"{_most(experiment)} tasks", many),
            )
    # What merging loses against local models, where tasks are alike and where they are not.
    for alike, unlike in (("images_task", "images_label"), ("users_cls", "reddit_cls"), ("users_lm", "reddit_lm")):
        if alike in experiment.settings and unlike in experiment.settings:
            shares = [_share_of_local(measured, setting, _most(experiment)) for setting in (alike, unlike)]
            if shares[0] is not None and shares[1] is not None:
                yield Claim(
                    name="heterogeneity",
                    statement="one merged model keeps more of the local models' accuracy where tasks are alike",
                    setting=alike,
                    higher=(measured.scale.settings[alike].title, shares[0]),
                    lower=(measured.scale.settings[unlike].title, shares[1]),
                )


def _share_of_local(measured: Measured, setting: str, num_tasks: int) -> Value | None:
    merged = measured.value(setting, num_tasks, "task_arithmetic")
    local = measured.value(setting, num_tasks, "local")
    if merged is None or local is None:
        return None
    return Value(values=tuple(one / other for one, other in zip(merged.values, local.values, strict=True)))


def _figure4(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    """Feature clusters over random ones, for the masks at every K that is neither 1 nor T."""
    for setting in experiment.settings:
        for count in experiment.num_clusters:
            found = [
                measured.value(setting, _most(experiment), "clamu", num_clusters=count, clustering=clustering)
                for clustering in ("features", "random")
            ]
            if found[0] is not None and found[1] is not None:
                yield Claim(
                    name="features_over_random",
                    statement=f"feature clusters over random ones, K = {count}",
                    setting=setting,
                    higher=("features", found[0]),
                    lower=("random", found[1]),
                )


def _figure5(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    few, many = min(experiment.num_clusters), max(experiment.num_clusters)
    for setting in experiment.settings:
        for entry, statement in (("score", "accuracy up with K"), ("storage", "storage down with smaller K")):
            found = [
                measured.value(setting, _most(experiment), "clamu", num_clusters=count, entry=entry)
                for count in (many, few)
            ]
            if found[0] is not None and found[1] is not None:
                yield Claim(
                    name=f"{entry}_with_clusters",
                    statement=statement,
                    setting=setting,
                    higher=(f"K = {many}", found[0]),
                    lower=(f"K = {few}", found[1]),
                    is_percent=entry == "score",
                )
        for count in experiment.num_clusters:
            found = [
                measured.value(setting, _most(experiment), method, num_clusters=count)
                for method in ("clamu", "cluster_merged")
            ]
            if found[0] is not None and found[1] is not None:
                yield Claim(
                    name="masks_over_models",
                    statement=f"masks of one delta over a merged model per cluster, K = {count}",
                    setting=setting,
                    higher=("ClAMU", found[0]),
                    lower=(LABELS["cluster_merged"], found[1]),
                )


def _table1(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    yield from _over_masks(experiment, measured)
    yield from _over_single(experiment, measured)
    yield from _sift(experiment, measured)


def _sift(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    """SIFT's mask per task over ClAMU's per cluster: more storage, and cheaper requests."""
    for setting in experiment.settings:
        found = [
            measured.value(setting, _most(experiment), method, num_clusters=experiment.num_clusters[0])
            for method in ("sift", "clamu")
        ]
        if found[0] is not None and found[1] is not None:
            yield Claim(
                name="sift_over_clamu",
                statement="SIFT (mask per task) over ClAMU (mask per cluster)",
                setting=setting,
                higher=("SIFT", found[0]),
                lower=("ClAMU", found[1]),
            )


def _mask_per_task(experiment: Experiment, measured: Measured) -> Iterator[Claim]:
    """SIFT's masks over ClAMU's, a mask per task under both: the same storage."""
    for claim in _sift(experiment, measured):
        yield replace(
            claim, name="sift_over_clamu_per_task", statement="SIFT over ClAMU, where both have a mask for each task"
        )


_CLAIMS: dict[str, Callable[[Experiment, Measured], Iterator[Claim]]] = {
    "figure2": _figure2,
    "figure3": _sift,
    "figure4": _figure4,
    "figure5": _figure5,
    "table1": _table1,
    "mask_per_task": _mask_per_task,
    "table2": _over_masks,
    "table4": _over_masks,
    "table5": _over_masks,
    "banking77": _table1,
}
