"""Size and speed of an archive of task vectors, for full finetuning and for LoRA.

python -m tests.benchmarks.archive                 # writes docs/scaling.md
python -m tests.benchmarks.archive --layers 1 --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import pages

BASE = {"model_type": "gpt2", "n_embd": 512, "n_head": 8, "n_positions": 64}
LORA = {"peft_type": "LORA", "r": 16, "target_modules": ["c_attn"]}
SPACES: dict[str, tuple[Any, float]] = {
    "all weights, learning rate 5e-5": (None, 5e-5),
    "all weights, learning rate 1e-3": (None, 1e-3),
    "LoRA of rank 16, learning rate 1e-3": (LORA, 1e-3),
}
# Weights that take part, see the plans in docs/scaling.md.
GPT2 = {"all weights": 124.4e6, "LoRA of rank 16": 1.3e6}


def _seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the time of the fastest round: what the machine did beside it makes it no faster."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(peft_config: Any, learning_rate: float, layers: int, rounds: int) -> dict[str, Any]:
    """Finetune one task, write its vector to an archive and read it again."""
    from datasets import Dataset

    from hf_clamu import ClamuArguments, TaskDataset
    from hf_clamu.base_models.adapters.space import PeftSpace
    from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
    from hf_clamu.base_models.loading import load_base
    from hf_clamu.operations.context import open_trainer
    from hf_clamu.operations.resolution import resolved_arguments
    from hf_clamu.storage import Archive
    from hf_clamu.training import deterministic, silent_progress

    rows = [
        {"user": "user_0", "text": f"{'good' if n % 2 else 'bad'} {n} of {n * n}", "label": str(n % 2)}
        for n in range(64)
    ]
    columns = {"task_column": "user", "text_column": "text", "label_column": "label"}
    tasks = TaskDataset.from_dataset(Dataset.from_list(rows), **columns)
    tokenizer = byte_tokenizer()
    config = {**BASE, "n_layer": layers, "vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    space = PeftSpace.of(peft_config, None)
    base = load_base(config, tasks.spec, num_labels=2, processor=tokenizer, space=space)
    arguments = ClamuArguments(finetune_steps=20, learning_rate=learning_rate, num_threads=2)
    with deterministic(2), torch.enable_grad(), tempfile.TemporaryDirectory() as folder:
        arguments = resolved_arguments(arguments, base.model, base.space)
        trainer = open_trainer(base.model, base.processor, tasks, arguments, silent_progress, space=base.space)
        started = time.perf_counter()
        vector = trainer.finetune("user_0")
        finetune = time.perf_counter() - started
        archive, shapes = Archive(Path(folder)), trainer.workspace.shapes
        write = _seconds(lambda: archive.write("user_0", vector), rounds)
        read = _seconds(lambda: archive.read("user_0", vector.digest, vector.bounds, shapes), rounds)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    weights = sum(steps.numel() for steps in vector.steps.values())
    return {
        "weights": weights,
        "bytes_per_weight": size / weights,
        "write_weights_per_second": weights / write,
        "read_weights_per_second": weights / read,
        "finetune_seconds": finetune,
        "read_seconds": read,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print, and leave the docs alone")
    options = parser.parse_args()
    found = {}
    for name, (peft_config, learning_rate) in SPACES.items():
        found[name] = measure(peft_config, learning_rate, options.layers, options.rounds)
        print(name, found[name], file=sys.stderr)  # noqa: T201
    if options.json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    rows = []
    for name, row in found.items():
        gpt2 = next(weights for kind, weights in GPT2.items() if name.startswith(kind))
        rows.append(
            (
                name, f"{row['weights']:,}", f"{row['bytes_per_weight']:.2f}",
                f"{row['write_weights_per_second'] / 1e6:.0f} M", f"{row['read_weights_per_second'] / 1e6:.0f} M",
                f"{row['finetune_seconds']:.1f}", f"{row['read_seconds']:.3f}",
                f"{500 * gpt2 * row['bytes_per_weight'] / 2**30:.1f} GiB",
            )
        )  # fmt: skip
    columns = (
        "finetuned", "weights", "bytes per weight", "written per s", "read per s", "finetuning, s", "reading, s",
        "GPT-2 small, 500 tasks",
    )  # fmt: skip
    note = (
        f"A GPT-2 with {options.layers} layers of width {BASE['n_embd']}, 20 steps of 20 short texts; an uncompressed "
        "vector has one byte per weight, or two where its bound asks for them. "
        "Writing includes syncing, reading includes checking the digest. The last "
        f"column is computed from the bytes per weight. `python -m tests.benchmarks.archive` on {pages.machine()}."
    )
    pages.write("scaling.md", "archive", f"{pages.table(columns, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
