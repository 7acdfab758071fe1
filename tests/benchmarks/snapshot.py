"""What a request takes with original data, a snapshot, an archive or both, under SIFT with a mask per task.

python -m tests.benchmarks.snapshot                # writes docs/how-to/keep-and-destroy.md
python -m tests.benchmarks.snapshot --tasks 4 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import pages

BASE = {
    "model_type": "vit",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
}
KEPT = {
    "nothing but the data": (False, False),
    "snapshot": (True, False),
    "archive": (False, True),
    "snapshot and archive": (True, True),
}


def measure(folder: Path, num_tasks: int, *, snapshot: bool, archive: bool, requests: int) -> dict[str, Any]:
    """Build, then forget one task after the other, each in a model that was loaded again."""
    from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
    from hf_clamu.tasks import digits
    from hf_clamu.training import silent_progress

    columns = {"task_column": "task", "image_column": "image", "label_column": "label"}
    tasks = TaskDataset.from_dataset(digits(num_tasks=num_tasks), **columns)
    settings = {"localization": "sift", "clustering": "none", "scaling": 1.0, "num_threads": 1}
    arguments = ClamuArguments(**settings, finetune_steps=20, learning_rate=1e-3)
    vectors = folder / "vectors" if archive else None
    trainer = ClamuTrainer(BASE, tasks, arguments, snapshot=snapshot, archive_dir=vectors, progress=silent_progress)
    model = folder / "model"
    trainer.train().save_pretrained(model)
    sizes = {name: _size(path) for name, path in (("model", model), ("rows", folder / "model.snapshot"))}
    seconds, saving = [], []
    for task_id in tasks.task_ids[:requests]:
        changed = ClamuModel.from_pretrained(model)
        given = None if snapshot or archive else tasks
        changed.unmerge_task(task_id, data=given, archive=vectors)
        started = time.perf_counter()
        changed.save_pretrained(model)
        saving.append(time.perf_counter() - started)
        seconds.append(changed.receipts[-1]["seconds"]["total"])
    return {
        "request_seconds": statistics.median(seconds),
        "saving_seconds": statistics.median(saving),
        "model_bytes": sizes["model"],
        "rows_bytes": sizes["rows"],
        "vectors_bytes": _size(folder / "vectors") * num_tasks // max(1, num_tasks - requests),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--requests", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print, and leave the docs alone")
    options = parser.parse_args()
    found = {}
    for name, (snapshot, archive) in KEPT.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(
                Path(folder), options.tasks, snapshot=snapshot, archive=archive, requests=options.requests
            )
    if options.json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    rows = [
        (
            name, f"{1000 * row['request_seconds']:.0f}", f"{1000 * row['saving_seconds']:.0f}",
            *(f"{row[part] / 2**20:.1f}" for part in ("rows_bytes", "vectors_bytes", "model_bytes")),
        )
        for name, row in found.items()
    ]  # fmt: skip
    columns = ("kept", "request, ms", "saving, ms", "snapshot, MiB", "archive, MiB", "model, MiB")
    note = (
        f"Forgetting one of {options.tasks} owners of handwritten digits: a ViT with {BASE['num_hidden_layers']} "
        f"layers of width {BASE['hidden_size']}, 20 steps per owner, `localization: sift`, `clustering: none`. "
        f"Medians of {options.requests} requests: of the receipt's `seconds`, and of saving, which destroys what is "
        f"forgotten. `python -m tests.benchmarks.snapshot` on {pages.machine()}."
    )
    pages.write("how-to/keep-and-destroy.md", "snapshot", f"{pages.table(columns, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
