"""The demo from the first row to the last figure."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.comparison import compare_folders
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.demo.figures import draw_demo
from hf_clamu.demo.preparation import CHOSEN, prepare
from hf_clamu.demo.ways import WAYS, Setting, Way
from hf_clamu.errors import RecipeError
from hf_clamu.evaluation import Measured, label_probabilities, labels_of_examples, measure_approach
from hf_clamu.proofs.audit import audit_change
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import load_tasks
from hf_clamu.trainer import progress_bars
from hf_clamu.training import Progress, deterministic

__all__ = ["FORGOTTEN", "compare_ways", "measure_growth", "open_setting", "run_demo"]

FORGOTTEN = ("owner_07", "owner_19", "owner_33")
# For how many owners the cost of a request is measured, beside all of them, and of which ways.
_FEWER_OWNERS = (12, 24)
_GROWING = ("joint", "clamu", "sift")


def run_demo(
    output: str | Path, *, progress: Progress = progress_bars, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run the demo and leave everything it made in a folder.

    Args:
        output (`str` or `Path`): a new or empty folder. Gets `recipe.yaml`, `recipe-clusters.yaml`, `data/`, `base/`,
            `model/` (a mask per owner, as trained), `clusters/` (six masks), `unmerged/`, `rebuilt/`, `receipts/` and
            `figures/`.
        progress (`Progress`, *optional*): shows how far it is.
        say (*callable*, *optional*): receives a line about each stage.

    Returns:
        *dict*: `num_tasks`, `num_clusters`, `num_parameters`, `accuracy` and `storage_bytes` (by way), `approaches`
        (by way: label and what `Measured` holds), `unmerged_tasks`, `retained_accuracy` (`before` and `after` the
        forgetting, under the preset `per-task`), `growth` (seconds of a request by way and number of owners),
        `identical`, `files_compared`, `audit` (of one request, see `AuditReport`), `seconds`, `figures`.

    Raises:
        RecipeError: if the folder is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} already exists and is not empty. Give a new folder (--output).")
    started = time.perf_counter()
    setting = open_setting(output, prepare(output, say=say), progress)

    say(f"Preset per-task: finetuning each owner, merging, then forgetting {', '.join(FORGOTTEN)} one by one")
    trainer, model = setting.train(setting.per_task, output / "model")
    sizes = {"num_tasks": len(model.tasks), "num_parameters": model.num_parameters()}
    shutil.copytree(output / "model", output / "unmerged")
    measured = {"sift": _measure(setting, setting.saved(output / "unmerged", output / "receipts"), FORGOTTEN)}
    seconds = {"finetune": trainer.seconds["finetune"], "unmerge": measured["sift"].request_seconds}

    say("Building again without them, and comparing every byte")
    rebuilding = time.perf_counter()
    left = [task_id for task_id in setting.tasks if task_id not in FORGOTTEN]
    setting.of_owners(left).train(setting.per_task, output / "rebuilt")
    seconds["rebuild"] = time.perf_counter() - rebuilding
    report = compare_folders(output / "unmerged", output / "rebuilt")

    audit = _audit_of_a_request(setting, output, say)
    say("Preset clusters: the same owners under six masks")
    trainer, model = setting.train(setting.clusters, output / "clusters")
    seconds["localize"] = trainer.seconds["localize"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(output / "clusters", work / "clusters")
        measured["clamu"] = _measure(setting, setting.saved(work / "clusters"), FORGOTTEN[:1])
        others = [way for way in WAYS if way.name not in measured]
        measured |= compare_ways(setting, others, work, say)
        say("Measuring a request among fewer owners")
        growth = measure_growth(setting, work, measured)
    base = _base_accuracy(setting)

    result = sizes | {"num_clusters": len(model.clusters)} | _summary(measured, base)
    result |= {"growth": growth, "identical": report.identical, "files_compared": report.files_compared}
    result |= {"audit": audit, "seconds": seconds, "figures": draw_demo(output / "figures", result)}
    seconds["total"] = time.perf_counter() - started
    return result


def open_setting(folder: Path, recipe: Recipe, progress: Progress) -> Setting:
    """Read what `prepare` has written."""
    tasks = recipe.tasks()
    test = load_tasks({**recipe.data, "files": "data/test.jsonl"}, base_dir=folder)
    return Setting(
        base=folder / "base",
        tasks=tasks,
        per_task=recipe.clamu_arguments(),
        clusters=Recipe.load(folder / "recipe-clusters.yaml").clamu_arguments(),
        chosen=CHOSEN,
        held_out={task_id: test.encode(task_id, None).train for task_id in tasks},
        progress=progress,
    )


def compare_ways(
    setting: Setting, ways: Sequence[Way], folder: Path, say: Callable[[str], None] = lambda text: None
) -> dict[str, Measured]:
    """Build ways to serve and forget, and measure each.

    Args:
        setting (`Setting`): what they start from.
        ways (*sequence* of `Way`): what to build.
        folder (`Path`): gets a folder for each.
        say (*callable*, *optional*): receives a line about each.
    """
    measured = {}
    for way in ways:
        say(f"For comparison: {way.label}")
        requests = FORGOTTEN[:1] if way.is_slow else FORGOTTEN
        measured[way.name] = _measure(setting, way.build(setting, folder / way.name), requests)
    return measured


def measure_growth(
    setting: Setting, folder: Path, measured: Mapping[str, Measured], fewer: Sequence[int] = _FEWER_OWNERS
) -> dict[str, dict[str, list[float]]]:
    """Measure a request among fewer owners.

    Args:
        setting (`Setting`): of all owners.
        folder (`Path`): gets folders for the builds.
        measured (*mapping* of `str` to `Measured`): the ways among all owners.
        fewer (*sequence* of `int`, *optional*): numbers of owners, in their order.

    Returns:
        *dict*: by way, numbers of `owners` and the `seconds` of a request.
    """
    counts = [*fewer, len(setting.tasks)]
    growth: dict[str, dict[str, list[float]]] = {}
    for way in (way for way in WAYS if way.name in _GROWING):
        seconds = [_request_seconds(setting, way, folder, count) for count in fewer]
        growth[way.name] = {"owners": [*counts], "seconds": [*seconds, measured[way.name].request_seconds]}
    return growth


def _request_seconds(setting: Setting, way: Way, folder: Path, count: int) -> float:
    """Build with the first owners alone, and return how long it takes to forget one of them."""
    approach = way.build(setting.of_owners(setting.tasks.task_ids[:count]), folder / f"{way.name}-{count}")
    started = time.perf_counter()
    approach.forget(FORGOTTEN[0])
    return time.perf_counter() - started


def _audit_of_a_request(setting: Setting, output: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Forget one owner, and compare what left the merged delta with what the ledger says of that owner."""
    say(f"Auditing without data what left when {FORGOTTEN[0]} was forgotten")
    with tempfile.TemporaryDirectory() as folder:
        after = Path(shutil.copytree(output / "model", Path(folder) / "after"))
        setting.saved(after).forget(FORGOTTEN[0])
        report = audit_change(read_checkpoint(output / "model", strict=True), read_checkpoint(after, strict=True))
    return report.to_dict()


def _summary(measured: dict[str, Measured], base: float) -> dict[str, Any]:
    """Return what was measured as plain values, in the order of the table."""
    ways = [way for way in WAYS if way.name in measured]
    kept = measured["sift"].after
    return {
        "accuracy": {"base": base} | {way.name: measured[way.name].accuracy for way in ways},
        "storage_bytes": {way.name: measured[way.name].stored_bytes for way in ways},
        "approaches": {way.name: {"label": way.label, **asdict(measured[way.name])} for way in ways},
        "unmerged_tasks": list(FORGOTTEN),
        "retained_accuracy": {
            "before": statistics.fmean(measured["sift"].before[task_id] for task_id in kept),
            "after": statistics.fmean(measured["sift"].after.values()),
        },
    }


def _measure(setting: Setting, approach: Any, requests: Sequence[str]) -> Measured:
    labels = {task_id: labels_of_examples(examples) for task_id, examples in setting.held_out.items()}
    # Threads that wait for each other would cost more than so small a model.
    with deterministic(setting.per_task.num_threads):
        return measure_approach(approach, labels, requests, progress=setting.progress)


def _base_accuracy(setting: Setting) -> float:
    live = setting.trainer(setting.clusters).workspace
    live.reset()
    scores = []
    for examples in setting.held_out.values():
        answers = label_probabilities(live, examples, setting.tasks.spec.kind).argmax(-1).tolist()
        scores.append(statistics.fmean(a == b for a, b in zip(answers, labels_of_examples(examples), strict=True)))
    return statistics.fmean(scores)
