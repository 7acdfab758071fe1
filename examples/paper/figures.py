"""The paper's figures, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.paper.measured import LABELS, Measured, Value
from examples.paper.scale import CLUSTERED, Experiment

__all__ = ["draw"]

_COLORS = {
    "zero_shot": "#9e9e9e",
    "local": "#5c5c5c",
    "central": "#b8860b",
    "sisa": "#c4a35a",
    "average": "#b7c9de",
    "task_arithmetic": "#8fa8c8",
    "ties": "#6f8fb5",
    "cluster_merged": "#7fb069",
    "emr": "#6c93c4",
    "tall": "#3f73b3",
    "clamu": "#d1495b",
    "clamu_tuned": "#e58a96",
    "lora_1": "#c9d27a",
    "lora_2": "#aab83c",
    "lora_5": "#7d8a1f",
    "sift": "#7b4ea3",
    "sift_union": "#b08bcf",
}
_LINES = {"stable_kmeans": "-", "features": "--", "task_vectors": "-.", "random": ":"}


def draw(folder: Path, name: str, experiment: Experiment, measured: Measured) -> str | None:
    """Draw the figure of an experiment, a panel for each setting; return its file's name, or None if it has none.

    Args:
        folder (`Path`): receives a PNG file.
        name (`str`): of the experiment.
        experiment (`Experiment`): its cells.
        measured (`Measured`): their results.
    """
    if name not in _PANELS:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(experiment.settings))
    rows = -(-len(experiment.settings) // columns)
    # Not pyplot: it would keep a global state and choose a window system.
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 0.7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(experiment.settings) :]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, setting in zip(panels, experiment.settings, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(measured.scale.settings[setting].title, loc="left", fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 105)
        axes.set_ylabel("score (%)")
        _PANELS[name](axes, setting, experiment, measured)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # As many columns as the longest name leaves room for.
    room = int(figure.get_figwidth() * 15 / (max(map(len, handles)) + 8))
    figure.legend(
        handles.values(), handles.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=max(1, room)
    )
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png")
    return f"{name}.png"


def _line(axes: Any, xs: list[float], values: list[Value], method: str, **style: Any) -> None:
    axes.errorbar(
        xs,
        [100 * value.mean for value in values],
        yerr=[100 * value.spread for value in values],
        **{"color": _COLORS[method], "label": LABELS[method], "marker": "o", "markersize": 4, "capsize": 2, **style},
    )


def _by_tasks(axes: Any, setting: str, experiment: Experiment, measured: Measured) -> None:
    for method in experiment.methods:
        points = {
            num_tasks: measured.value(setting, num_tasks, method, num_clusters=experiment.num_clusters[0])
            for num_tasks in experiment.num_tasks
        }
        found = {num_tasks: value for num_tasks, value in points.items() if value is not None}
        if found:
            _line(axes, list(found), list(found.values()), method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(experiment.num_tasks, map(str, experiment.num_tasks))
    axes.set_xlabel("merged tasks")


def _by_storage(axes: Any, setting: str, experiment: Experiment, measured: Measured) -> None:
    num_tasks = max(experiment.num_tasks)
    for method in experiment.methods:
        counts = experiment.num_clusters if method in CLUSTERED else experiment.num_clusters[:1]
        points = []
        for count in counts:
            score = measured.value(setting, num_tasks, method, num_clusters=count)
            storage = measured.value(setting, num_tasks, method, num_clusters=count, entry="storage")
            if score is not None and storage is not None:
                points.append((storage.mean, score))
        if points:
            points.sort(key=lambda point: point[0])
            _line(axes, [x for x, _ in points], [score for _, score in points], method)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("stored weights, in fp32 models")


def _by_clustering(axes: Any, setting: str, experiment: Experiment, measured: Measured) -> None:
    for method in experiment.methods:
        for clustering in experiment.clusterings:
            points = {
                count: measured.value(
                    setting, max(experiment.num_tasks), method, num_clusters=count, clustering=clustering
                )
                for count in experiment.num_clusters
            }
            found = {count: value for count, value in points.items() if value is not None}
            if found:
                _line(
                    axes,
                    list(found),
                    list(found.values()),
                    method,
                    label=f"{LABELS[method]}, {clustering.replace('_', ' ')}",
                    linestyle=_LINES[clustering],
                )
    axes.set_xscale("log", base=2)
    axes.set_xticks(experiment.num_clusters, map(str, experiment.num_clusters))
    axes.set_xlabel("clusters K")


_PANELS: dict[str, Callable[[Any, str, Experiment, Measured], None]] = {
    "figure2": _by_tasks,
    "figure3": _by_storage,
    "figure4": _by_clustering,
    "figure5": _by_clustering,
    "table1": _by_tasks,
}
