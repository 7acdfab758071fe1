"""The cost of forgetting, run and timed with the library itself: requests for one task against training again."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.paper.bases import load_setting_base
from examples.paper.scale import Setting
from examples.paper.sources import load_setting_tasks
from hf_clamu import ClamuTrainer
from hf_clamu.checkpoint.comparison import compare_folders
from hf_clamu.training import derive_seed, silent_progress

__all__ = ["time_requests"]


def time_requests(
    setting: Setting, seed: int, folder: Path, paths: dict[str, str], *, num_requests: int, num_clusters: int
) -> dict[str, Any]:
    """Forget tasks one after the other; after each, build again without them, and compare every byte.

    Args:
        setting (`Setting`): data, base model and settings; scaling is fixed.
        seed (`int`): of the data's cut, the finetuning and the clusters.
        folder (`Path`): keeps base models.
        paths (*dict* of `str` to `str`): local files of sources.
        num_requests (`int`): tasks to forget.
        num_clusters (`int`): K, for ClAMU.

    Returns:
        *dict*: for each localization the seconds of each request and of each build, and whether all bytes were the
        same.
    """
    tasks = load_setting_tasks(setting.data, seed, paths)
    order = sorted(tasks, key=lambda one: derive_seed(seed, "paper-requests", one))
    ways: dict[str, dict[str, Any]] = {
        "global": {"localization": "global", "scaling": 1.0},
        "clamu": {"localization": "clamu", "scaling": 4.0, "num_clusters": num_clusters},
        "sift": {"localization": "sift", "scaling": 1.0, "clustering": "none"},
    }
    found: dict[str, Any] = {}
    for way, settings in ways.items():
        arguments: Any = replace(setting.settings(seed), **settings)
        requests, rebuilds, same = [], [], []

        def build(chosen: Any, arguments: Any = arguments) -> Any:
            base = load_setting_base(setting, tasks, folder / "bases", seed, paths)
            return ClamuTrainer(
                base.model, chosen, arguments, processing_class=base.processor, progress=silent_progress
            ).train()

        model = build(tasks)
        for number in range(num_requests):
            started = time.perf_counter()
            model.unmerge_task(order[number], progress=silent_progress)
            requests.append(time.perf_counter() - started)
            started = time.perf_counter()
            again = build(tasks.without(order[: number + 1]))
            rebuilds.append(time.perf_counter() - started)
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(Path(scratch) / "unmerged")
                again.save_pretrained(Path(scratch) / "rebuilt")
                same.append(compare_folders(Path(scratch) / "unmerged", Path(scratch) / "rebuilt").identical)
        found[way] = {"request_seconds": requests, "rebuild_seconds": rebuilds, "identical": all(same)}
    return {"num_tasks": len(tasks), "num_requests": num_requests, "num_clusters": num_clusters, "ways": found}
