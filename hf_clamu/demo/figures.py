"""Drawings of the demo's results, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw_demo"]

# Okabe and Ito's colours, which colour-blind people tell apart; each way has a marker of its own as well.
_STYLES = {
    "joint": ("#000000", "s"),
    "sisa": ("#000000", "D"),
    "local": ("#CC79A7", "^"),
    "lora": ("#CC79A7", "v"),
    "global": ("#999999", "X"),
    "tall": ("#E69F00", "P"),
    "emr": ("#E69F00", "*"),
    "clamu": ("#0072B2", "h"),
    "clamu_per_task": ("#56B4E9", "h"),
    "sift": ("#D55E00", "o"),
}
_FORGETTING = ("joint", "clamu", "sift")


def draw_demo(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Draw forgetting per owner, the cost of a request by number of owners, and accuracy against storage.

    Args:
        folder (`Path`): receives PNG files.
        result (*mapping*): what `run_demo` returns, or its JSON.

    Returns:
        *list* of `str`: the files, relative to the folder's parent.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"forgetting.png": _forgetting, "requests.png": _requests, "storage.png": _storage}
    for name, draw in drawings.items():
        # Not pyplot: it would keep a global state and choose a window system.
        figure = Figure(figsize=(7.2, 4.2), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, result)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name)
    return [f"{folder.name}/{name}" for name in drawings]


def _plain(label: str) -> str:
    return label.replace("`", "")


def _forgetting(figure: Any, result: Mapping[str, Any]) -> None:
    """Draw, for each way, every owner's accuracy before and after all requests, lowest owner first."""
    names = [name for name in _FORGETTING if name in result["approaches"]]
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        way = result["approaches"][name]
        color, _ = _STYLES[name]
        owners = sorted(way["after"], key=lambda owner: (way["before"][owner], owner))
        before = [100 * way["before"][owner] for owner in owners]
        after = [100 * way["after"][owner] for owner in owners]
        axes.vlines(range(len(owners)), before, after, color=color, linewidth=1.5)
        axes.scatter(range(len(owners)), before, s=26, facecolors="none", edgecolors="#555555", label="before")
        axes.scatter(range(len(owners)), after, s=10, color=color, label="after", zorder=3)
        requests = f"{way['num_requests']} request{'s' if way['num_requests'] > 1 else ''}"
        axes.set_title(f"{_plain(way['label'])}: {requests}", loc="left", fontsize=9)
        axes.set_ylim(-5, 108)
        axes.grid(axis="y", alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
    panels[-1].set_xticks([])
    panels[-1].set_xlabel("owners that stay, sorted by their accuracy before")
    figure.supylabel("held-out accuracy (%)", fontsize=9)


def _requests(figure: Any, result: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes = figure.add_subplot()
    for name, growth in result["growth"].items():
        color, marker = _STYLES[name]
        label = _plain(result["approaches"][name]["label"])
        axes.plot(growth["owners"], growth["seconds"], color=color, marker=marker, label=label)
        axes.set_xticks(growth["owners"])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_xlabel("owners")
    axes.set_ylabel("seconds of one request (log scale)")
    axes.set_title("What a request costs, by number of owners", loc="left")


def _storage(figure: Any, result: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    for name, way in result["approaches"].items():
        color, marker = _STYLES[name]
        x, y = result["storage_bytes"][name] / 1e6, 100 * result["accuracy"][name]
        axes.scatter([x], [y], s=70, color=color, marker=marker, label=_plain(way["label"]), zorder=3)
    base = 100 * result["accuracy"]["base"]
    axes.axhline(base, color="#555555", linestyle="--", linewidth=1, label="base model, not trained")
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("stored (MB, log scale)")
    axes.set_ylabel("held-out accuracy, mean over owners (%)")
    axes.set_title("Accuracy against storage", loc="left")
