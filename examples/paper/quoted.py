"""What the papers state in numbers, beside what was measured or counted here."""

from __future__ import annotations

from collections.abc import Iterator

from examples.paper.costs import mean_retained, unlearning_cost
from examples.paper.measured import Measured
from examples.paper.scale import CLUSTERING

__all__ = ["quoted_rows"]


def quoted_rows(measured: Measured) -> Iterator[list[str]]:
    """Yield the rows of a table: the statement, the paper's number, and the number here.

    Source: ClAMU, section 4; SIFT-Masks (arXiv 2504.04626), abstract and its results on TOFU.
    """
    yield [
        "finetuning again at each of 250 requests of 500 tasks, against one task each (ClAMU, 4.4)",
        "374.5x",
        f"{mean_retained(500, 250):.1f}x, counted",
    ]
    experiments = measured.scale.experiments
    yield from _gains_of_clamu(measured)
    gains = [
        100 * (sift.mean - average.mean)
        for name in ("figure2", "table1")
        if name in experiments
        for setting in experiments[name].settings
        if (sift := measured.value(setting, max(experiments[name].num_tasks), "sift")) is not None
        and (average := measured.value(setting, max(experiments[name].num_tasks), "average")) is not None
    ]
    if gains:
        yield [
            f"SIFT-Masks over the average, in points of the score, {len(gains)} settings",
            "5 to 80",
            f"{min(gains):.1f} to {max(gains):.1f}",
        ]
    if "table3" in experiments:
        most = max(experiments["table3"].num_tasks)
        arguments = measured.scale.settings[experiments["table3"].settings[0]].settings(0)
        tall, sift = (
            unlearning_cost(
                method,
                finetune_steps=arguments.finetune_steps,
                mask_steps=arguments.mask_steps,
                num_tasks=most,
                retained=most - 1,
                num_clusters=most,
            ).gradient
            for method in ("tall", "sift")
        )
        yield [
            "compute of a request under other localizations, against SIFT-Masks",
            "up to 250x (500 tasks)",
            f"{tall / sift:.0f}x, counted (TALL and EMR, {most} tasks)",
        ]
    if "table1" in experiments:
        setting, most = experiments["table1"].settings[0], max(experiments["table1"].num_tasks)
        value = measured.value(setting, most, "sift")
        if value is not None:
            yield [
                f"SIFT-Masks on {measured.scale.settings[setting].title}, answer probability in %",
                "99 or more (200 tasks)",
                f"{value.percent()} ({most} tasks)",
            ]


def _gains_of_clamu(measured: Measured) -> Iterator[list[str]]:
    """Yield what ClAMU gains by clusters of features, and over the other masks; in whole points, as the paper has it.

    Source: ClAMU, sections 4.1 to 4.3.
    """
    experiments = measured.scale.experiments
    if "figure4" in experiments:
        figure4 = experiments["figure4"]
        of_clusters = [
            _difference(measured, setting, max(figure4.num_tasks), ("clamu", "features"), ("clamu", "random"), count)
            for setting in figure4.settings
            for count in figure4.num_clusters
        ]
        yield from _range_row("ClAMU with clusters of features over random ones, in points", "12 to 30", of_clusters)
    over_masks = [
        _difference(measured, setting, most, ("clamu", CLUSTERING), (method, CLUSTERING), experiment.num_clusters[0])
        for experiment in (experiments[name] for name in ("figure2", "table1") if name in experiments)
        for setting, most in ((setting, max(experiment.num_tasks)) for setting in experiment.settings)
        for method in ("tall", "emr")
    ]
    yield from _range_row("ClAMU over TALL and EMR, in points", "5 to 20", over_masks)


def _difference(
    measured: Measured,
    setting: str,
    num_tasks: int,
    higher: tuple[str, str],
    lower: tuple[str, str],
    num_clusters: int,
) -> float | None:
    """Return by how many points one method under a clustering is above another; None if one was not measured."""
    found = [
        measured.value(setting, num_tasks, method, num_clusters=num_clusters, clustering=clustering)
        for method, clustering in (higher, lower)
    ]
    return None if found[0] is None or found[1] is None else 100 * (found[0].mean - found[1].mean)


def _range_row(statement: str, paper: str, points: list[float | None]) -> Iterator[list[str]]:
    known = [point for point in points if point is not None]
    if known:
        yield [f"{statement} ({len(known)} comparisons)", paper, f"{round(min(known))} to {round(max(known))}"]
