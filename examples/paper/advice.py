"""Which method to take in each setting, by what was measured there."""

from __future__ import annotations

from collections.abc import Iterator

from examples.paper.measured import LABELS, Measured, Value
from examples.paper.scale import Experiment

__all__ = ["advice_rows", "advised"]

# Where the most tasks of a setting are merged; later ones win.
_EXPERIMENTS = ("figure2", "figure3", "table1", "table4", "table5")
_SINGLES = ("average", "task_arithmetic", "ties")
# By rising storage; presets of the library.
_PRESETS = ("one-model", "clusters", "per-task")


def advice_rows(measured: Measured) -> Iterator[list[str]]:
    """Yield a row for each setting: scores of the base, of local models and of what each preset serves, and a preset.

    Args:
        measured (`Measured`): all cells.
    """
    chosen: dict[str, Experiment] = {}
    for name in _EXPERIMENTS:
        experiment = measured.scale.experiments.get(name)
        if experiment is not None and measured.is_done(name, experiment):
            chosen |= dict.fromkeys(experiment.settings, experiment)
    for setting, experiment in chosen.items():
        most, num_clusters = max(experiment.num_tasks), experiment.num_clusters[0]
        found = {
            method: value
            for method in ("zero_shot", "local", *_SINGLES, "clamu", "sift")
            if (value := measured.value(setting, most, method, num_clusters=num_clusters)) is not None
        }
        singles = {method: found[method] for method in _SINGLES if method in found}
        if not singles or not {"zero_shot", "local", "clamu", "sift"} <= found.keys():
            continue
        single = max(singles, key=lambda method: singles[method].mean)
        served = {"one-model": found[single], "clusters": found["clamu"], "per-task": found["sift"]}
        yield [
            f"{measured.scale.settings[setting].title}, {most} tasks",
            found["zero_shot"].percent(),
            found["local"].percent(),
            f"{found[single].percent()} ({LABELS[single]})",
            f"{found['clamu'].percent()} (K = {num_clusters})",
            found["sift"].percent(),
            f"`{advised(found['zero_shot'], served)}`",
        ]


def advised(base: Value, served: dict[str, Value]) -> str:
    """Return the preset that stores least among those within one standard error of the best.

    Args:
        base (`Value`): the base model's score, which a preset has to exceed.
        served (*dict* of `str` to `Value`): the presets' scores.
    """
    best = max(served.values(), key=lambda value: value.mean)
    if best.mean <= base.mean:
        return "no merging"
    return next(preset for preset in _PRESETS if served[preset].mean >= best.mean - best.error)
