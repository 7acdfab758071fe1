"""Figures, drawn with matplotlib (the extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_demo"]

# In the order of the bars; methods without a colour of their own come before the local models.
_COLORS = {
    "base": "#9e9e9e",
    "global": "#8fa8c8",
    "emr": "#6c93c4",
    "tall": "#3f73b3",
    "clamu": "#d1495b",
    "local": "#5c5c5c",
}
_OTHER = "#7a9e7e"


def draw_demo(folder: Path, result: dict[str, Any], model: Any) -> list[str]:
    """Draw accuracy by method, accuracy against storage, and the cluster map.

    Args:
        folder (`Path`): receives PNG files.
        result (*dict*): what `run_demo` returns.
        model (`ClamuModel`): for the map.

    Returns:
        *list* of `str`: the files, relative to the folder's parent.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "accuracy.png": _accuracy,
        "accuracy_storage.png": _storage,
        "clusters.png": _clusters,
    }
    for name, draw in drawings.items():
        # Not pyplot: it would keep a global state and choose a window system.
        figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, result, model)
        figure.savefig(folder / name)
    return [f"{folder.name}/{name}" for name in drawings]


def _order(name: str) -> tuple[bool, int]:
    names = list(_COLORS)
    return name == "local", names.index(name) if name in _COLORS else len(names)


def _label(name: str) -> str:
    from hf_clamu.merging import LOCALIZATIONS

    return LOCALIZATIONS[name].label or name if name in LOCALIZATIONS else name


def _accuracy(axes: Any, result: dict[str, Any], model: Any) -> None:
    accuracy = result["accuracy"]
    names = sorted(accuracy, key=_order)
    bars = axes.bar(
        [_label(name) for name in names],
        [100 * accuracy[name] for name in names],
        color=[_COLORS.get(name, _OTHER) for name in names],
    )
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_ylim(0, 105)
    axes.set_ylabel("held-out accuracy, mean over tasks (%)")
    axes.set_title(f"{result['num_tasks']} tasks, {result['num_clusters']} clusters", loc="left")


def _storage(axes: Any, result: dict[str, Any], model: Any) -> None:
    one = 4 * result["num_parameters"]
    for name in sorted(result["accuracy"], key=_order):
        x, y = result["storage_bytes"][name] / one, 100 * result["accuracy"][name]
        axes.scatter([x], [y], s=60, color=_COLORS.get(name, _OTHER), zorder=3)
        # One-model methods are labelled to the left, where the masked ones do not stand.
        left = name in ("base", "global")
        axes.annotate(
            _label(name),
            (x, y),
            xytext=(-8 if left else 8, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 105)
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    axes.set_xlabel("stored weights, in fp32 models (log scale)")
    axes.set_ylabel("held-out accuracy (%)")
    axes.set_title("Accuracy against storage", loc="left")


def _clusters(axes: Any, result: dict[str, Any], model: Any) -> None:
    import torch

    vectors = model.task_features
    centred = vectors - vectors.mean(0)
    _, _, axes_of_spread = torch.linalg.svd(centred.double(), full_matrices=False)
    points = (centred.double() @ axes_of_spread[:2].T).numpy()
    rows = {task_id: row for row, task_id in enumerate(model.tasks)}
    markers = "os^Dv<>P*X"
    for number, members in enumerate(model.clusters):
        chosen = points[[rows[task_id] for task_id in members]]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], label=f"cluster {number} ({len(members)})", marker=markers[number % 10], s=40
        )
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("first principal component of the tasks' features")
    axes.set_ylabel("second principal component")
    axes.set_title("Tasks by cluster", loc="left")
