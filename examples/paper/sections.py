"""The page's tables: what stands under each table and figure of the paper."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from examples.paper.costs import mean_retained, unlearning_cost
from examples.paper.measured import LABELS, Measured, Value
from examples.paper.paper_tables import (
    DATA_SETS,
    HEADS,
    NOTES,
    TOFU,
    Quoted,
    Table,
    accuracies_after_forgetting,
    costs,
    forgetting,
)
from examples.paper.scale import METHODS, Experiment

__all__ = ["SECTIONS", "TITLES", "markdown"]

TITLES = {
    "figure2": "Figure 2: merging more and more models",
    "figure3": "Figure 3: accuracy against storage",
    "figure4": "Figure 4: how tasks are clustered",
    "figure5": "Figure 5: how many clusters, and masks against a model per cluster",
    "table1": "Table 1: TOFU",
    "adapters": "Masks beside LoRA adapters: the same bits for each cluster",
    "mask_per_task": "SIFT-Masks beside a learned mask for each task",
    "table2": "Table 2: accuracy after forgetting",
    "table3": "Table 3: what forgetting costs",
    "table4": "Table 4: Reddit, classification head or language-model head",
    "table5": "Table 5: Sent140, classification head or language-model head",
    "table6": "Table 6: the data",
    "cost": "Section 4.4: forgetting against training again",
    "banking77": "Beyond the paper: customers' questions",
}
_BESIDE = (
    "ClAMU has the library's settings as they are; every other method's alpha is from one grid of six, TALL's lambda "
    "from its own, by the tuning examples; {}."
)


def _budget(experiment: Experiment, measured: Measured) -> str:
    count = len(measured.scale.seeds_of(experiment.settings[0]))
    return _BESIDE.format("1 seed" if count == 1 else f"{count} seeds")


def _by_tasks(experiment: Experiment, measured: Measured) -> Iterator[str]:
    yield from _scores(experiment, measured, ["merged tasks", *map(str, experiment.num_tasks)])


def _tofu(experiment: Experiment, measured: Measured) -> Iterator[str]:
    yield from _scores(experiment, measured, ["merged tasks", *map(str, experiment.num_tasks)], TOFU)
    yield NOTES["table1"]


def _scores(
    experiment: Experiment, measured: Measured, columns: Sequence[str], quoted: Quoted | None = None
) -> Iterator[str]:
    """A table for each setting: the methods by the number of tasks, which `columns` name; the paper's beside them."""
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
        yield markdown(_beside(quoted, (list(columns), rows), experiment))
    yield _budget(experiment, measured)


def _beside(quoted: Quoted | None, table: Table, experiment: Experiment) -> Table:
    return table if quoted is None else quoted.beside(table, experiment.methods)


def _by_heads(experiment: Experiment, measured: Measured) -> Iterator[str]:
    """A table for each setting: the methods by how the tasks are clustered; the paper's beside them."""
    num_tasks, num_clusters = max(experiment.num_tasks), experiment.num_clusters[0]
    for setting in experiment.settings:
        rows = [
            [LABELS[method]]
            + [
                _percent(measured.value(setting, num_tasks, method, num_clusters=num_clusters, clustering=clustering))
                for clustering in experiment.clusterings
            ]
            for method in experiment.methods
        ]
        columns = ["clusters by", *(one.replace("_", " ") for one in experiment.clusterings)]
        yield f"{_named(measured, setting)}, {num_tasks} tasks, K = {num_clusters}:"
        yield markdown(_beside(HEADS.get(setting), (columns, rows), experiment))
    yield NOTES["heads"]
    yield _budget(experiment, measured)


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
        yield markdown((["method", "clusters", "stored, in fp32 models", _metric(measured, setting)], rows))
    yield _budget(experiment, measured)


def _adapters(experiment: Experiment, measured: Measured) -> Iterator[str]:
    num_tasks, num_clusters = max(experiment.num_tasks), experiment.num_clusters[0]
    yield (
        "An adapter takes the place of a cluster's mask: it is trained on the same examples, for as many steps on "
        "batches as large. Its learning rate is one of three, by the tuning examples after a third of the steps. What "
        "a cluster keeps beside the merged model (for adapters, beside the base model) is counted in bits per weight "
        "of the model: a mask has one and its factors, an adapter 32 for each of its own weights."
    )
    for setting in experiment.settings:
        rows = []
        for method in experiment.methods:
            score = measured.value(setting, num_tasks, method, num_clusters=num_clusters)
            storage = measured.value(setting, num_tasks, method, num_clusters=num_clusters, entry="storage")
            if score is None or storage is None:
                continue
            bits = 32 * (storage.mean - 1) / num_clusters
            rows.append([LABELS[method], f"{bits:.2f}", f"{storage.mean:.2f}", score.percent()])
        yield f"{_named(measured, setting)}, {num_tasks} tasks, K = {num_clusters}:"
        columns = ["method", "bits per weight and cluster", "stored, in fp32 models", _metric(measured, setting)]
        yield markdown((columns, rows))
    yield _budget(experiment, measured)


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
        yield markdown((["method", "clusters by", *(f"K = {count}" for count in experiment.num_clusters)], rows))
    yield _budget(experiment, measured)


def _after_forgetting(experiment: Experiment, measured: Measured) -> Iterator[str]:
    most = max(experiment.num_tasks)
    yield (
        "Unlearning is exact, so what a method gives after forgetting is what it gives on the tasks that are left, "
        "merged from the start. (That the bytes are the same the tests show, and the requests of section 4.4.)"
    )
    forgotten = [str(most - count) for count in experiment.num_tasks]
    yield from _scores(experiment, measured, [f"forgotten of {most}", *forgotten])


def _table2(experiment: Experiment, measured: Measured) -> Iterator[str]:
    yield from _after_forgetting(experiment, measured)
    yield NOTES["table2"]
    yield markdown(forgetting(_by_forgotten(experiment, measured, ("clamu",))))


def _by_forgotten(experiment: Experiment, measured: Measured, methods: Sequence[str]) -> Table:
    """Return the scores of some methods by how much was forgotten: a row for each number."""
    most, num_clusters = max(experiment.num_tasks), experiment.num_clusters[0]
    wanted = [(setting, method) for setting in experiment.settings for method in methods]
    columns = [f"here: forgotten of {most}"]
    columns += [f"here: {LABELS[method]}, {measured.scale.settings[setting].title}" for setting, method in wanted]
    rows = [
        [str(most - count)]
        + [_percent(measured.value(setting, count, method, num_clusters=num_clusters)) for setting, method in wanted]
        for count in experiment.num_tasks
    ]
    return columns, rows


def _cost_table(experiment: Experiment, measured: Measured) -> Iterator[str]:
    most, count = max(experiment.num_tasks), experiment.num_clusters[0]
    yield (
        "Optimizer steps to forget tasks in one request at a fixed scaling coefficient, counted: all of them / those "
        "that have to come one after the other. Searching the coefficient again (`scaling: auto`) takes about twice "
        "as many mask steps. Storage in fp32 models."
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
        columns = [f"forgotten of {most}", *(str(most - retained) for retained in experiment.num_tasks)]
        yield f"{measured.scale.settings[setting].title}, K = {count} (steps / parallel steps · storage):"
        yield markdown((columns, rows))
    yield NOTES["table3"]
    yield markdown(costs())
    yield NOTES["table3_accuracy"]
    yield markdown(accuracies_after_forgetting(_by_forgotten(experiment, measured, ("tall", "clamu"))))


def _statistics(experiment: Experiment, measured: Measured) -> Iterator[str]:
    rows = []
    for name in experiment.settings:
        found = measured.extra("table6")[name]
        share, labels = found["single_label_share"], found["labels_per_task"]
        rows.append(
            [
                measured.scale.settings[name].title,
                str(found["num_tasks"]),
                _spread(found["examples"]),
                _spread(found["validation_examples"]),
                "–" if labels is None else _spread(labels),
                "–" if found["num_labels"] is None else str(found["num_labels"]),
                "–" if share is None else f"{100 * share:.0f} %",
                "–" if found["mean_tokens"] is None else f"{found['mean_tokens']:.1f}",
            ]
        )
    yield (
        "Counted on the tokenised data under the first seed; examples, and different labels of a task, as "
        "least / mean / most."
    )
    columns = ["setting", "tasks", "training examples", "validation examples", "labels per task", "labels"]
    table = ([*columns, "tasks with one label", "tokens per example"], rows)
    yield markdown(DATA_SETS.beside(table, experiment.settings))


def _spread(numbers: Sequence[float]) -> str:
    return " / ".join(f"{number:.4g}" for number in numbers)


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
    columns = ["setting", "method", "counted", "measured: build / request", "a request"]
    yield markdown(([*columns, "requests, all bytes the same"], rows))
    yield (
        "The measured ratio is below the counted one where masks are learned again (they cost the same in both), and "
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


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SECTIONS: dict[str, Callable[[Experiment, Measured], Iterator[str]]] = {
    "figure2": _by_tasks,
    "figure3": _by_storage,
    "figure4": _by_clustering,
    "figure5": _by_clustering,
    "table1": _tofu,
    "adapters": _adapters,
    "mask_per_task": _by_storage,
    "table2": _table2,
    "table3": _cost_table,
    "table4": _by_heads,
    "table5": _by_heads,
    "table6": _statistics,
    "cost": _cost,
    "banking77": _after_forgetting,
}
