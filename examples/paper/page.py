"""docs/paper.md, written from what was measured; nothing in it is typed by hand but the words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from examples.paper.claims import Claim, claims_of
from examples.paper.costs import mean_retained, unlearning_cost
from examples.paper.figures import draw
from examples.paper.measured import LABELS, Measured, Value
from examples.paper.quoted import quoted_rows
from examples.paper.scale import METHODS, Experiment, Scale

__all__ = ["write_page"]

_TITLES = {
    "figure2": "Figure 2: merging more and more models",
    "figure3": "Figure 3: accuracy against storage",
    "figure4": "Figure 4: how tasks are clustered",
    "figure5": "Figure 5: how many clusters, and masks against a model per cluster",
    "table1": "Table 1: TOFU",
    "mask_per_task": "SIFT-Masks beside a learned mask for each task",
    "table2": "Table 2: accuracy after forgetting",
    "table3": "Table 3: what forgetting costs",
    "table4": "Table 4: Sent140, classification head or language-model head",
    "table5": "Table 5: Reddit, classification head or language-model head",
    "table6": "Table 6: the data",
    "cost": "Section 4.4: forgetting against training again",
}
_BUDGET = (
    "**Tuning.** Every method takes its scaling coefficient from the same grid (1, 2, 4, 8 and 16 times 1/T, and the "
    "sum) by the mean score of the tuning examples of the retained tasks, and TALL beside it its lambda from 0.2 to "
    "0.6 per cluster. The average, local models, central finetuning and SISA have none to choose. Reported are other "
    "examples, that neither training nor tuning has seen (TOFU measures what is remembered: there both are halves of "
    "the training examples)."
)
_BESIDE = "Every method's alpha is from one grid of six, TALL's lambda from its own, by the tuning examples; {} seeds."


def write_page(path: Path, images: Path, scale: Scale, folder: Path) -> list[str]:
    """Write the page and its figures.

    Args:
        path (`Path`): of the page.
        images (`Path`): folder of the figures, beside or under the page's.
        scale (`Scale`): what was to be measured.
        folder (`Path`): the results.

    Returns:
        *list* of `str`: experiments that are left out because cells are missing.
    """
    measured = Measured(scale, folder)
    parts, claims, left_out = [], [], []
    for name, experiment in scale.experiments.items():
        if not measured.is_done(name, experiment):
            left_out.append(name)
            continue
        own = claims_of(name, experiment, measured)
        claims += own
        text = [f"## {_TITLES[name]}", f"`python -m examples.paper {name} --scale {scale.name}`"]
        figure = draw(images, name, experiment, measured)
        if figure is not None:
            text.append(f"![{_TITLES[name]}]({images.relative_to(path.parent).as_posix()}/{figure})")
        text += _SECTIONS[name](experiment, measured)
        text += _verdicts(own, scale)
        parts.append("\n\n".join(text))
    head = _head(scale, measured, claims)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([*head, *parts]) + "\n", encoding="utf-8")
    return left_out


def _head(scale: Scale, measured: Measured, claims: Sequence[Claim]) -> Iterator[str]:
    yield "# The paper's tables and figures"
    yield (
        "`examples/paper/` measures every table and figure of the ClAMU paper. What a scale runs is a recipe "
        f"(`examples/paper/scales/{scale.name}.yaml`), and this page is written by "
        f"`python -m examples.paper report --scale {scale.name}` from results in JSON."
    )
    yield f"**Scale `{scale.name}`.** {scale.about.strip()}"
    rows = [[f"`{name}`", one.title, one.of_paper or "–"] for name, one in scale.settings.items()]
    yield _table(["setting", "here", "in the paper"], rows)
    for environment in measured.environments():
        libraries = ", ".join([environment["framework"], environment["models"]])
        seeds = ", ".join(map(str, scale.seeds))
        yield f"Measured on {environment['device']} ({libraries}), {environment['num_threads']} thread, seeds {seeds}."
    count, seconds = measured.effort()
    yield f"{count} numbers, which took {seconds / 60:.0f} minutes one after the other, finetuning included."
    yield _BUDGET
    if claims:
        yield "## Do the paper's orderings hold?"
        statements = dict.fromkeys((claim.name, claim.statement.partition(", K = ")[0]) for claim in claims)
        rows = []
        for name, statement in statements:
            own = [claim for claim in claims if claim.name == name]
            unique = list({(claim.statement, claim.setting): claim for claim in own}.values())
            held = sum(claim.holds for claim in unique)
            answer = "yes" if held == len(unique) else "no" if held == 0 else "in part"
            rows.append([statement, answer, f"{held} of {len(unique)}"])
        yield _table(["ordering", "holds", "comparisons in its favour"], rows)
        yield (
            "By the means over the seeds; each comparison is below. The scores of the paper are of other and far "
            "larger models and data, so that only orderings can be compared. What the paper and its follow-up sum up "
            "in a number, and the same here:"
        )
        yield _table(["statement", "the paper's number", "here"], list(quoted_rows(measured)))
        yield from (scale.remarks[name].strip() for name in ("quoted",) if name in scale.remarks)


def _verdicts(claims: Sequence[Claim], scale: Scale) -> Iterator[str]:
    if not claims:
        return
    rows = [
        [
            claim.statement,
            scale.settings[claim.setting].title,
            f"{claim.higher[0]} {_shown(claim, claim.higher[1])}",
            f"{claim.lower[0]} {_shown(claim, claim.lower[1])}",
            "yes" if claim.holds else "**no**",
            f"{claim.num_seeds} of {len(claim.higher[1].values)}",
        ]
        for claim in claims
    ]
    yield _table(["the paper's ordering", "setting", "should be above", "should be below", "holds", "seeds"], rows)
    failed = dict.fromkeys(claim.name for claim in claims if not claim.holds)
    for name in failed:
        if name in scale.remarks:
            yield scale.remarks[name].strip()


def _shown(claim: Claim, value: Value) -> str:
    return value.percent() if claim.is_percent else f"{value.mean:.2f} models"


def _budget(measured: Measured) -> str:
    return _BESIDE.format(len(measured.scale.seeds))


def _by_tasks(experiment: Experiment, measured: Measured) -> Iterator[str]:
    yield from _scores(experiment, measured, ["merged tasks", *map(str, experiment.num_tasks)])


def _scores(experiment: Experiment, measured: Measured, columns: Sequence[str]) -> Iterator[str]:
    """A table for each setting: the methods by the number of tasks, which `columns` name."""
    for setting in experiment.settings:
        rows = [
            [LABELS[method]]
            + [
                _percent(measured.value(setting, count, method, num_clusters=experiment.num_clusters[0]))
                for count in experiment.num_tasks
            ]
            for method in experiment.methods
        ]
        yield f"{_named(measured, setting)}, K = {experiment.num_clusters[0]}:"
        yield _table(columns, rows)
    yield _budget(measured)


def _by_storage(experiment: Experiment, measured: Measured) -> Iterator[str]:
    num_tasks = max(experiment.num_tasks)
    for setting in experiment.settings:
        rows = []
        for method in experiment.methods:
            shown = set()
            for count in sorted(experiment.num_clusters):
                score = measured.value(setting, num_tasks, method, num_clusters=count)
                storage = measured.value(setting, num_tasks, method, num_clusters=count, entry="storage")
                if score is None or storage is None or (storage.mean, score) in shown:
                    continue
                shown.add((storage.mean, score))
                has_clusters = measured.value(setting, num_tasks, method, num_clusters=count, entry="num_clusters")
                clusters = f"{has_clusters.mean:g}" if has_clusters is not None and METHODS[method] else "–"
                rows.append([LABELS[method], clusters, f"{storage.mean:.2f}", score.percent()])
        yield f"{measured.scale.settings[setting].title}, {num_tasks} tasks:"
        yield _table(["method", "clusters", "stored, in fp32 models", _metric(measured, setting)], rows)
    yield _budget(measured)


def _by_clustering(experiment: Experiment, measured: Measured) -> Iterator[str]:
    num_tasks = max(experiment.num_tasks)
    for setting in experiment.settings:
        rows = [
            [LABELS[method], clustering.replace("_", " ")]
            + [
                _percent(measured.value(setting, num_tasks, method, num_clusters=count, clustering=clustering))
                for count in experiment.num_clusters
            ]
            for method in experiment.methods
            for clustering in experiment.clusterings
        ]
        yield f"{measured.scale.settings[setting].title}, {num_tasks} tasks, {_metric(measured, setting)}:"
        yield _table(["method", "clusters by", *(f"K = {count}" for count in experiment.num_clusters)], rows)
    yield _budget(measured)


def _after_forgetting(experiment: Experiment, measured: Measured) -> Iterator[str]:
    most = max(experiment.num_tasks)
    yield (
        "Unlearning is exact, so what a method gives after forgetting is what it gives on the tasks that are left, "
        "merged from the start. (That the bytes are the same the tests show, and the requests of section 4.4 below.)"
    )
    forgotten = [str(most - count) for count in experiment.num_tasks]
    yield from _scores(experiment, measured, [f"forgotten of {most}", *forgotten])


def _cost_table(experiment: Experiment, measured: Measured) -> Iterator[str]:
    most, count = max(experiment.num_tasks), experiment.num_clusters[0]
    yield (
        "Optimizer steps to forget tasks in one request at a fixed scaling coefficient, counted: all of them / those "
        "that have to come one after the other. Searching the coefficient again multiplies the mask steps by the size "
        "of the grid. Storage in fp32 models."
    )
    for setting in experiment.settings:
        arguments = measured.scale.settings[setting].settings(0)
        rows = []
        for method in experiment.methods:
            row = [LABELS[method]]
            for retained in experiment.num_tasks:
                cost = unlearning_cost(
                    method,
                    finetune_steps=arguments.finetune_steps,
                    mask_steps=arguments.mask_steps,
                    num_tasks=most,
                    retained=retained,
                    num_clusters=count,
                )
                storage = measured.value(setting, retained, method, num_clusters=count, entry="storage")
                stored = "" if storage is None else f" · {storage.mean:.2f}"
                row.append(f"{cost.gradient:.0f} / {cost.parallel:.0f}{stored}")
            rows.append(row)
        yield f"{measured.scale.settings[setting].title}, K = {count} (steps / parallel steps · storage):"
        yield _table([f"forgotten of {most}", *(str(most - retained) for retained in experiment.num_tasks)], rows)


def _statistics(experiment: Experiment, measured: Measured) -> Iterator[str]:
    rows = []
    for name in experiment.settings:
        found = measured.extra("table6")[name]
        share = found["single_label_share"]
        rows.append(
            [
                measured.scale.settings[name].title,
                str(found["num_tasks"]),
                " / ".join(f"{number:.4g}" for number in found["examples"]),
                " / ".join(f"{number:.4g}" for number in found["validation_examples"]),
                "–" if found["num_labels"] is None else str(found["num_labels"]),
                "–" if share is None else f"{100 * share:.0f} %",
                "–" if found["mean_tokens"] is None else f"{found['mean_tokens']:.1f}",
            ]
        )
    yield "Counted on the tokenised data under the first seed; examples as least / mean / most per task."
    columns = ["setting", "tasks", "training examples", "validation examples", "labels"]
    yield _table([*columns, "tasks with one label", "tokens per example"], rows)


def _cost(experiment: Experiment, measured: Measured) -> Iterator[str]:
    yield (
        "Counted: training every retained task again at each request, against the one task that leaves. "
        f"After 250 requests of 500 tasks that is {mean_retained(500, 250):.1f} times as much finetuning on average, "
        "which is the paper's 374.5x; mask training is not in it."
    )
    rows = []
    for setting in experiment.settings:
        runs = measured.extra("cost")[setting]
        for way in ("global", "clamu", "sift"):
            own = [run["ways"][way] for run in runs]
            requests = [seconds for run in own for seconds in run["request_seconds"]]
            rebuilds = [seconds for run in own for seconds in run["rebuild_seconds"]]
            same = "yes" if all(run["identical"] for run in own) else "**no**"
            counted = mean_retained(runs[0]["num_tasks"], runs[0]["num_requests"])
            rows.append(
                [
                    measured.scale.settings[setting].title,
                    {"global": "one model", "clamu": f"ClAMU, K = {runs[0]['num_clusters']}", "sift": LABELS["sift"]}[
                        way
                    ],
                    f"{counted:.1f}x",
                    f"{statistics.fmean(rebuilds) / statistics.fmean(requests):.1f}x",
                    f"{statistics.fmean(requests):.2f} s",
                    f"{len(requests)}, {same}",
                ]
            )
    yield "Run and timed with the library itself; every request is followed by a build without the task:"
    yield _table(
        ["setting", "method", "counted", "measured: build / request", "a request", "requests, all bytes the same"],
        rows,
    )
    yield (
        "The measured ratio is below the counted one where masks are learned anew (they cost the same in both), and "
        "where loading the model weighs against so little finetuning."
    )


def _named(measured: Measured, setting: str) -> str:
    return f"{measured.scale.settings[setting].title}, {_metric(measured, setting)}"


def _metric(measured: Measured, setting: str) -> str:
    return {
        "accuracy": "accuracy in %",
        "label_accuracy": "accuracy of the generated label in %",
        "answer_probability": "answer probability in %",
    }[measured.scale.settings[setting].metric]


def _percent(value: Value | None) -> str:
    return "–" if value is None else value.percent()


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SECTIONS: dict[str, Callable[[Experiment, Measured], Iterator[str]]] = {
    "figure2": _by_tasks,
    "figure3": _by_storage,
    "figure4": _by_clustering,
    "figure5": _by_clustering,
    "table1": _by_tasks,
    "mask_per_task": _by_storage,
    "table2": _after_forgetting,
    "table3": _cost_table,
    "table4": _by_tasks,
    "table5": _by_tasks,
    "table6": _statistics,
    "cost": _cost,
}
