"""What the page says of a model: its clusters, a map of its tasks, and what each request changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.hub.pull import resolve_folder
from hf_clamu.operations.lifecycle.receipts import lineage, read_receipts
from hf_clamu.planning.units import size_text
from hf_clamu.resources import size_of_files

__all__ = ["CHANGE_COLUMNS", "CLUSTER_COLUMNS", "ModelView", "draw_map", "draw_scores", "view_model"]

CLUSTER_COLUMNS = ("cluster", "tasks", "score of the base", "of the global model", "of its mask", "mask")
CHANGE_COLUMNS = ("time (UTC)", "request", "tasks", "other weights", "other mates", "worst drop", "stored")
_KNOWN_SCORES = ("base", "global", "own")
_MOST_POINTS = 20_000
# Okabe and Ito's colours, which colour-blind people tell apart; each cluster has a marker of its own as well.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model as the page shows it.

    Args:
        checkpoint (`Checkpoint`): the model.
        facts (*dict* of `str` to `str`): lines about the whole.
        clusters (*list* of *tuple* of `str`): a row for each cluster, see `CLUSTER_COLUMNS`.
        receipts (*list* of *mapping*): receipts that led to it, the first ones first.
        changes (*list* of *tuple* of `str`): a row for each of them, see `CHANGE_COLUMNS`.
    """

    checkpoint: Checkpoint
    facts: dict[str, str]
    clusters: list[tuple[str, ...]]
    receipts: list[Mapping[str, Any]]
    changes: list[tuple[str, ...]]


def view_model(source: str, receipts: Path) -> ModelView:
    """Read what the page shows of a model.

    Args:
        source (`str`): folder or Hub id.
        receipts (`Path`): folder of its receipts.
    """
    folder = resolve_folder(source)
    checkpoint = read_checkpoint(folder)
    found = list(reversed(lineage(read_receipts(receipts), checkpoint.state_digest).values()))
    state = checkpoint.state
    facts = {
        "base model": _base_text(checkpoint),
        "tasks": f"{len(state.records):,}",
        "clusters": f"{len(state.clusters):,}",
        "weights": f"{sum(steps.numel() for steps in state.delta.values()):,}",
        "stored": size_text(size_of_files(folder)),
        "localization": checkpoint.arguments.localization,
        "requests carried out": f"{len(found):,}",
        "state": checkpoint.state_digest,
    }
    return ModelView(
        checkpoint=checkpoint,
        facts=facts,
        clusters=_cluster_rows(checkpoint),
        receipts=found,
        changes=list(map(_change_row, reversed(found))),
    )


def _base_text(checkpoint: Checkpoint) -> str:
    base, kind = checkpoint.base, checkpoint.config.architecture
    if not base.name_or_path:
        return f"{kind}, inside the model"
    return f"{base.name_or_path}{f' at {base.revision}' if base.revision else ''} ({kind})"


def _cluster_rows(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    state = checkpoint.state
    scores = [{}] * len(state.clusters) if state.scores is None else state.scores["clusters"]
    rows = []
    for number, (name, members) in enumerate(zip(state.cluster_names, state.clusters, strict=True)):
        mask = state.masks[number] if state.masks else {}
        size = sum(packed.numel() * packed.element_size() for packed in mask.values())
        shown = [_percent(scores[number].get(key)) for key in _KNOWN_SCORES]
        rows.append((str(name), f"{len(members):,}", *shown, size_text(size) if size else "-"))
    return rows


def _change_row(receipt: Mapping[str, Any]) -> tuple[str, ...]:
    effect, count = receipt.get("effect"), receipt["num_tasks"]
    name = receipt.get("id") or receipt["request"]
    row = (receipt["time"][:19].replace("T", " "), str(name), f"{count['before']} to {count['after']}")
    if effect is None:
        return (*row, "-", "-", "-", "-")
    kept = effect["num_retained"]
    sizes = effect["num_bytes"]
    return (
        *row,
        f"{effect['num_changed']} of {kept}",
        f"{effect['num_moved']} of {kept}",
        _points(effect.get("worst_drop")),
        f"{size_text(sizes['before'])} to {size_text(sizes['after'])}",
    )


def _percent(score: Any) -> str:
    return f"{100 * score:.1f} %" if isinstance(score, (int, float)) else "-"


def _points(drop: Any) -> str:
    return f"{100 * drop:.1f} points" if isinstance(drop, (int, float)) else "-"


def draw_map(checkpoint: Checkpoint) -> tuple[Any, str]:
    """Draw the tasks of a model in the plane, near ones near: the first two principal components of their features.

    Args:
        checkpoint (`Checkpoint`): the model.

    Returns:
        *tuple* of `matplotlib.figure.Figure` and `str`: the drawing, `None` if there is nothing to draw; and a
        sentence about it.
    """
    state = checkpoint.state
    rows = next((one for one in (state.task_features, state.base_features) if one is not None), None)
    count = len(state.records)
    if rows is None or len(rows) != count:
        return None, "This model stores no features of its tasks, so there is no map (a mask per task needs none)."
    if count < 3 or count > _MOST_POINTS:
        return None, f"A map is drawn of 3 to {_MOST_POINTS:,} tasks; this model has {count:,}."
    points, share = _principal_components(rows)
    figure, axes = _figure((7.2, 4.6))
    number_of = {task_id: number for number, members in enumerate(state.clusters) for task_id in members}
    numbers = torch.tensor([number_of[task_id] for task_id in state.records])
    for number, name in enumerate(state.cluster_names):
        own = points[numbers == number]
        style = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}
        label = str(name).replace("$", r"\$") if len(state.cluster_names) <= 12 else None
        axes.scatter(own[:, 0], own[:, 1], s=34, alpha=0.85, label=label, **style)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    axes.set_title(f"{count} tasks by their features, {100 * share:.0f} % of the variance", loc="left", fontsize=10)
    if len(state.cluster_names) <= 12:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, "Each point is a task. Clusters are made in all dimensions, and the map shows two of them."


def _principal_components(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return (tasks, 2) coordinates, and the share of the variance that they hold."""
    values = rows.to(torch.float64)
    values = values - values.mean(dim=0)
    left, sizes, _ = torch.linalg.svd(values, full_matrices=False)
    total = float((sizes**2).sum()) or 1.0
    return left[:, :2] * sizes[:2], float((sizes[:2] ** 2).sum()) / total


def draw_scores(receipts: Sequence[Mapping[str, Any]]) -> tuple[Any, str]:
    """Draw the mean score of the tasks that stay, after each request.

    Args:
        receipts (*sequence* of *mapping*): that led to a model, the first ones first.

    Returns:
        *tuple* of `matplotlib.figure.Figure` and `str`: the drawing, `None` if there is nothing to draw; and a
        sentence about it.
    """
    # Requests that were carried out together have led to one state.
    states = {one["digests"]["after"]: one["effect"] for one in receipts if one.get("effect")}
    found = [effect for effect in states.values() if effect["mean"]["after"] is not None]
    if not found:
        return None, "No receipt has scores yet: they are of validation rows (validation_fraction) and of requests."
    mean = [found[0]["mean"]["before"], *(effect["mean"]["after"] for effect in found)]
    figure, axes = _figure((7.2, 3.2))
    axes.plot(range(len(mean)), [100 * one for one in mean], marker="o", color=_COLORS[0], label="own cluster")
    shared = [found[0]["global"]["before"], *(effect["global"]["after"] for effect in found)]
    if all(one is not None for one in shared):
        axes.plot(
            range(len(shared)), [100 * one for one in shared], marker="s", color=_COLORS[1], label="global model"
        )
    axes.set_xticks(range(len(mean)), ["before", *map(str, range(1, len(mean)))])
    axes.set_xlabel("after request (those that came together count once)")
    axes.set_ylabel(f"{found[-1]['metric'].replace('_', ' ')} (%)")
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("Tasks that stay, mean over their validation rows", loc="left", fontsize=10)
    return figure, "The mean is over the tasks that had validation rows at each request."


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    # Not pyplot: it would keep a global state and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
