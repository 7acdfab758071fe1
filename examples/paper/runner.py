"""Measures cells and keeps what was measured, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from examples.paper.scale import Cell, Experiment, Scale, Setting
from hf_clamu.exact import canonical_json, digest_json
from hf_clamu.storage import write_atomically

__all__ = ["Results", "extra_digest", "measure_cells", "measure_extra", "say", "write_json"]

# Rises when results without cells get other entries.
_EXTRA_FORMAT = 2


class Results:
    """Measured cells, a JSON file for each setting and seed.

    Args:
        folder (`Path`): of one scale.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, setting: str, seed: int) -> Path:
        """Return the file of a setting and seed."""
        return self.folder / "cells" / f"{setting}-{seed}.json"

    def read(self, name: str, setting: Setting, seed: int) -> dict[str, dict[str, Any]]:
        """Return what was measured under exactly this recipe, by the keys of the cells."""
        path = self.path(name, seed)
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["cells"]) if found["setting_digest"] == setting.digest else {}

    def write(self, name: str, setting: Setting, seed: int, cells: Mapping[str, Any]) -> None:
        """Keep what was measured, with everything that it depends on."""
        import torch

        from hf_clamu.training import Environment

        threads = setting.settings(seed).num_threads
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        write_json(
            self.path(name, seed),
            {
                "setting": asdict(setting),
                "setting_digest": setting.digest,
                "seed": seed,
                "environment": Environment.capture(device, threads).to_dict(),
                "cells": dict(sorted(cells.items())),
            },
        )


def write_json(path: Path, values: Any) -> None:
    """Write JSON as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(canonical_json(values)), indent=1, sort_keys=True)
    write_atomically(path, text.encode())


def measure_cells(scale: Scale, cells: Iterable[Cell], folder: Path, paths: dict[str, str], jobs: int) -> None:
    """Measure the cells that are not measured yet, a process for each setting and seed.

    Args:
        scale (`Scale`): has the settings.
        cells (*iterable* of `Cell`): what is wanted.
        folder (`Path`): keeps results and task vectors.
        paths (*dict* of `str` to `str`): local files of sources.
        jobs (`int`): processes at a time; each sees one of the GPUs, if there are any.
    """
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.setting, cell.seed), []).append(cell)
    results, left = Results(folder), []
    for (name, seed), wanted in groups.items():
        done = results.read(name, scale.settings[name], seed)
        missing = sorted({cell for cell in wanted if cell.key not in done})
        if missing:
            left.append((name, scale.settings[name], seed, missing, folder, paths))
    if jobs == 1 or len(left) <= 1:
        for group in left:
            _measure_group(*group)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_settle, initargs=(jobs,)) as pool:
        futures = [pool.submit(_measure_group, *group) for group in left]
        for future in as_completed(futures):
            future.result()


def measure_extra(name: str, scale: Scale, folder: Path, paths: dict[str, str]) -> None:
    """Run an experiment that has no cells: `table6` counts, `cost` times requests (alone, so that times count)."""
    from examples.paper.bases import load_setting_base
    from examples.paper.data import statistics
    from examples.paper.requests import time_requests
    from examples.paper.sources import load_setting_tasks

    if name not in ("cost", "table6"):
        return
    experiment, path = scale.experiments[name], folder / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for setting_name in experiment.settings:
        setting = scale.settings[setting_name]
        digest = extra_digest(setting, experiment)
        if found.get(setting_name, {}).get("digest") == digest:
            continue
        if name == "table6":
            tasks = load_setting_tasks(setting.data, scale.seeds[0], paths)
            base = load_setting_base(setting, tasks, folder / "work" / "bases", scale.seeds[0], paths)
            result: Any = asdict(statistics(tasks, base.processor))
        else:
            result = [
                time_requests(
                    setting,
                    seed,
                    folder / "work",
                    paths,
                    num_requests=experiment.requests,
                    num_clusters=experiment.num_clusters[0],
                )
                for seed in scale.seeds
            ]
        found[setting_name] = {"digest": digest, "result": result}
        write_json(path, found)
        say(f"{name}: {setting_name}")


def extra_digest(setting: Setting, experiment: Experiment) -> str:
    """Return the SHA-256 of everything that a result without cells depends on."""
    return digest_json([_EXTRA_FORMAT, setting.digest, list(experiment.num_clusters), experiment.requests])


def _settle(jobs: int) -> None:
    """Give a process its GPU, in turn; without GPUs nothing happens."""
    from multiprocessing import current_process

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(jobs)]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[(current_process()._identity[0] - 1) % len(devices)]


def _measure_group(
    name: str, setting: Setting, seed: int, cells: Sequence[Cell], folder: Path, paths: dict[str, str]
) -> None:
    from examples.paper.methods import run_cell
    from examples.paper.study import Study
    from hf_clamu.cli.output import quieten
    from hf_clamu.training import deterministic, silent_progress

    quieten()
    results = Results(folder)
    found = results.read(name, setting, seed)
    with deterministic(setting.settings(seed).num_threads):
        work = folder / "work" / f"{name}-{seed}-{setting.digest[:12]}"
        study = Study(setting, seed, work, paths, silent_progress)
        for cell in cells:
            started = time.perf_counter()
            found[cell.key] = {**run_cell(study, cell).to_dict(), "seconds": time.perf_counter() - started}
            results.write(name, setting, seed, found)
            say(f"{name} seed {seed}: {cell.key} {found[cell.key]['score']:.3f} ({found[cell.key]['seconds']:.0f} s)")


def say(text: str) -> None:
    """Print a line at once, whichever process it comes from."""
    print(text, flush=True)
