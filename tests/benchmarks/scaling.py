"""Memory and time of a build, at several numbers of tasks.

    python -m tests.benchmarks.scaling                 # 10, 100 and 500 tasks; writes docs/scaling.md
    python -m tests.benchmarks.scaling --tasks 4 8 --json

Each build runs in a process of its own. Memory is what the build needs beyond the loaded base model, in multiples of
the model's size: the peak of anonymous memory, which cannot be dropped and read again as mapped files can.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import pages

# A GPT-2 of 13 million weights: small enough for 500 tasks on two cores, large beside the interpreter's own objects.
BASE = {"model_type": "gpt2", "n_layer": 4, "n_embd": 512, "n_head": 8, "n_positions": 64}
CLUSTERS = 20


def _anonymous() -> int:
    """Bytes of memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("This needs Linux, whose /proc tells anonymous memory.")


class _Peak(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.bytes = _anonymous()
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.01):
            self.bytes = max(self.bytes, _anonymous())

    def above_start(self) -> int:
        self._stopped.set()
        self.join()
        return self.bytes - self.start_bytes


def build(num_tasks: int, localization: str) -> dict[str, Any]:
    """Build once in this process and measure it."""
    from datasets import Dataset

    from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
    from hf_clamu.models.base import load_base
    from hf_clamu.models.byte_tokenizer import byte_tokenizer
    from hf_clamu.training import silent_progress

    rows = [
        {"user": f"user_{task:03d}", "text": f"{'good' if n % 2 else 'bad'} {n} of {task}", "label": str(n % 2)}
        for task in range(num_tasks)
        for n in range(8)
    ]
    tasks = TaskDataset.from_dataset(
        Dataset.from_list(rows), task_column="user", text_column="text", label_column="label"
    )
    arguments = ClamuArguments(
        num_clusters=CLUSTERS, finetune_steps=2, batch_size=4, mask_steps=2, mask_batch_size=8, num_threads=2,
        localization=localization, clustering="features",
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    base = {**BASE, "vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    model = load_base(base, tasks.spec, num_labels=2, processor=tokenizer).model
    weights = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClamuTrainer(
            model, tasks, arguments, processing_class=tokenizer, journal_dir=f"{folder}/journal",
            progress=silent_progress,
        )  # fmt: skip
        peak = _Peak()
        started = time.perf_counter()
        merged = trainer.train()
        built = {"seconds": time.perf_counter() - started, "build": peak.above_start() / (4 * weights)}
        peak = _Peak()
        merged.save_pretrained(f"{folder}/model")
        built["save"] = peak.above_start() / (4 * weights)
        size = sum(path.stat().st_size for path in Path(f"{folder}/model").rglob("*") if path.is_file())
        del merged, trainer, model
        peak = _Peak()
        ClamuModel.from_pretrained(f"{folder}/model")
        built["load"] = peak.above_start() / (4 * weights)
        started = time.perf_counter()
        ClamuModel.from_pretrained(f"{folder}/model").unmerge_task("user_003", data=tasks)
        built["unmerge_seconds"] = time.perf_counter() - started
    return {**built, "tasks": num_tasks, "weights": weights, "disk": size / (4 * weights), "method": localization}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--localization", nargs="+", default=["clamu"])
    parser.add_argument("--json", action="store_true", help="print, and leave the docs alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(options.tasks[0], options.localization[0])))  # noqa: T201
        return
    found = []
    for method in options.localization:
        for count in options.tasks:
            command = [sys.executable, "-m", "tests.benchmarks.scaling", "--one", "--tasks", str(count)]
            done = subprocess.run([*command, "--localization", method], stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(found[-1], file=sys.stderr)  # noqa: T201
    if options.json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    rows = [
        (
            row["tasks"], f"{row['build']:.1f}", f"{row['save']:.1f}", f"{row['load']:.1f}", f"{row['disk']:.2f}",
            f"{row['seconds']:.0f}", f"{row['seconds'] / row['tasks']:.2f}", f"{row['unmerge_seconds']:.0f}",
        )
        for row in found
    ]  # fmt: skip
    columns = ("tasks", "build", "save", "load", "saved model", "build s", "s per task", "unmerge of one, s")
    weights = found[0]["weights"]
    note = (
        f"Memory and disk are in multiples of the model's size ({weights:,} weights in fp32, "
        f"{4 * weights / 2**20:.0f} MiB); memory is anonymous memory beyond the loaded base model. A GPT-2 with "
        f"{CLUSTERS} clusters, localization `{found[0]['method']}`, 2 steps per task and cluster, with a journal; the "
        f"unmerge includes loading. `python -m tests.benchmarks.scaling` on {pages.machine()}."
    )
    text = f"{pages.table(columns, rows)}\n\n{note}"
    pages.write("scaling.md", "memory", text)


if __name__ == "__main__":
    main()
