"""What the papers state in numbers, beside what was measured or counted here."""

from __future__ import annotations

from collections.abc import Iterator

from examples.paper.costs import mean_retained, unlearning_cost
from examples.paper.measured import Measured

__all__ = ["quoted_rows"]


def quoted_rows(measured: Measured) -> Iterator[list[str]]:
    """Yield the rows of a table: the statement, the paper's number, and the number here.

    Source: ClAMU, section 4.4; SIFT-Masks (arXiv 2504.04626), abstract and its results on TOFU.
    """
    yield [
        "finetuning again at each of 250 requests of 500 tasks, against one task each (ClAMU, 4.4)",
        "374.5x",
        f"{mean_retained(500, 250):.1f}x, counted",
    ]
    experiments = measured.scale.experiments
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
