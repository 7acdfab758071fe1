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
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import pages
from tests.benchmarks.rows import Peak

# A GPT-2 of 13 million weights: small enough for 500 tasks on two cores, large beside the interpreter's own objects.
BASE = {"model_type": "gpt2", "n_layer": 4, "n_embd": 512, "n_head": 8, "n_positions": 64}
CLUSTERS = 20


def build(num_tasks: int, localization: str, clusters: int, base: dict[str, Any]) -> dict[str, Any]:
    """Build once in this process and measure it."""
    from datasets import Dataset

    from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
    from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
    from hf_clamu.base_models.loading import load_base
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
        num_clusters=clusters, finetune_steps=2, batch_size=4, mask_steps=2, mask_batch_size=8, num_threads=2,
        localization=localization, clustering="features",
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    base = {**base, "vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    model = load_base(base, tasks.spec, num_labels=2, processor=tokenizer).model
    weights = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClamuTrainer(
            model, tasks, arguments, processing_class=tokenizer, journal_dir=f"{folder}/journal",
            progress=silent_progress,
        )  # fmt: skip
        peak = Peak()
        started = time.perf_counter()
        merged = trainer.train()
        built = {"seconds": time.perf_counter() - started, "build": peak.above_first() / (4 * weights)}
        peak = Peak()
        merged.save_pretrained(f"{folder}/model")
        built["save"] = peak.above_first() / (4 * weights)
        size = sum(path.stat().st_size for path in Path(f"{folder}/model").rglob("*") if path.is_file())
        parts, ledger_bytes = dict(trainer.seconds), Path(f"{folder}/model/ledger.json").stat().st_size
        del merged, trainer, model
        peak = Peak()
        ClamuModel.from_pretrained(f"{folder}/model")
        built["load"] = peak.above_first() / (4 * weights)
        started = time.perf_counter()
        ClamuModel.from_pretrained(f"{folder}/model").unmerge_task("user_003", data=tasks)
        built["unmerge_seconds"] = time.perf_counter() - started
    built |= {"tasks": num_tasks, "clusters": clusters, "weights": weights, "method": localization}
    return {**built, "disk": size / (4 * weights), "parts": parts, "ledger": ledger_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--localization", nargs="+", default=["clamu"])
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--base", type=json.loads, default=BASE, help="the GPT-2's configuration, in JSON")
    parser.add_argument("--json", action="store_true", help="print, and leave the docs alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(options.tasks[0], options.localization[0], options.clusters, options.base)))  # noqa: T201
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
