"""What was measured, as tables, figures and claims ask for it."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.paper.runner import Results, extra_digest
from examples.paper.scale import CLUSTERING, Cell, Experiment, Scale

__all__ = ["LABELS", "Measured", "Value"]

LABELS = {
    "zero_shot": "zero-shot",
    "local": "local models",
    "central": "central finetuning",
    "sisa": "SISA shards",
    "average": "average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "cluster_merged": "model per cluster",
    "emr": "EMR",
    "tall": "TALL",
    "clamu": "ClAMU",
    "clamu_tuned": "ClAMU, alpha tuned",
    "lora_1": "LoRA per cluster, rank 1",
    "lora_2": "LoRA per cluster, rank 2",
    "lora_5": "LoRA per cluster, rank 5",
    "sift": "SIFT, mask per task",
    "sift_union": "SIFT, mask per cluster",
}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number under each seed.

    Args:
        values (*tuple* of `float`): by seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.pstdev(self.values)

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 of a single seed."""
        count = len(self.values)
        return statistics.stdev(self.values) / count**0.5 if count > 1 else 0.0

    def percent(self) -> str:
        """Return mean and spread in percent."""
        spread = f" ± {100 * self.spread:.1f}" if len(self.values) > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"


class Measured:
    """All measured cells of a scale.

    Args:
        scale (`Scale`): its recipe.
        folder (`Path`): its results.
    """

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale = scale
        self.folder = folder
        results = Results(folder)
        self._found = {
            (name, seed): results.read(name, setting, seed)
            for name, setting in scale.settings.items()
            for seed in scale.seeds_of(name)
        }

    def environments(self) -> list[dict[str, Any]]:
        """Return the environments that the cells were measured in, each once."""
        found: list[dict[str, Any]] = []
        for name, seed in self._found:
            path = Results(self.folder).path(name, seed)
            if path.is_file():
                environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
                if environment not in found:
                    found.append(environment)
        return found

    def effort(self) -> tuple[int, float]:
        """Return how many cells were measured, and the seconds that they took one after the other."""
        cells = [cell for found in self._found.values() for cell in found.values()]
        return len(cells), sum(cell["seconds"] for cell in cells)

    def is_done(self, name: str, experiment: Experiment) -> bool:
        """Whether all that an experiment needs was measured."""
        if name in ("cost", "table6"):
            return set(experiment.settings) <= self.extra(name).keys()
        return not self.missing(experiment)

    def extra(self, name: str) -> dict[str, Any]:
        """Return the results of an experiment that has no cells, by setting; those of another recipe are left out."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            setting: one["result"]
            for setting, one in found.items()
            if setting in self.scale.settings
            and one.get("digest") == extra_digest(self.scale.settings[setting], self.scale.experiments[name])
        }

    def missing(self, experiment: Experiment) -> list[Cell]:
        """Return cells that an experiment needs and that are not measured."""
        cells = self.scale.cells(experiment)
        return [cell for cell in cells if cell.key not in self._found[cell.setting, cell.seed]]

    def value(
        self,
        setting: str,
        num_tasks: int,
        method: str,
        *,
        num_clusters: int = 0,
        clustering: str = CLUSTERING,
        entry: str = "score",
    ) -> Value | None:
        """Return a number of a cell under every seed; None if it was not measured under all of them.

        Args:
            setting, num_tasks, method, num_clusters, clustering: see `Cell`.
            entry (`str`): of its result.
        """
        found = []
        for seed in self.scale.seeds_of(setting):
            cell = Cell.of(setting, seed, num_tasks, clustering, num_clusters, method)
            result = self._found[setting, seed].get(cell.key)
            if result is None or result[entry] is None:
                return None
            found.append(float(result[entry]))
        return Value(values=tuple(found))
