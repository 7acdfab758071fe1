"""Ten thousand tasks: clustering, the ledger, the journal and the memory of a build."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.checkpoint.ledger import read_ledger, records_of, sealed
from hf_clamu.exact import canonical_json
from hf_clamu.merging import ClusteringArguments, cluster_tasks
from hf_clamu.training import silent_progress
from tests.benchmarks.rows import Peak, Row, Size, ratios, times

_BASE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 48, "vocab_size": 257}
_FEATURE = 384  # numbers of a feature: those of a small sentence encoder
_LEDGERS = {"a tiny model": 17, "a model of 150 tensors": 150}


def measure(size: Size, rounds: int) -> list[Row]:
    return [*_clustering(size, rounds), *_ledger(size, rounds), _journal(size, rounds), _memory(size)]


def _clustering(size: Size, rounds: int) -> list[Row]:
    def works(clustering: str, width: int, scale: float, dtype: torch.dtype) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        groups = torch.randint(0, 20, (size.many,), generator=generator)
        features = torch.randn(20, width, generator=generator)[groups]
        features = ((features + 1.5 * torch.randn(size.many, width, generator=generator)) * scale).to(dtype)
        arguments = ClusteringArguments(num_clusters=20, clustering=clustering)
        ids = tuple(f"owner_{number:06d}" for number in range(size.many))
        parts = [(ids[:count], features[:count]) for count in (size.many, size.many // 2)]
        return [partial(cluster_tasks, arguments, some, 0, task_features=rows) for some, rows in parts]

    rows = []
    for clustering, *feature in (
        ("features", _FEATURE, 1.0, torch.float32),
        ("stable_kmeans", 1024, 2.0**20, torch.int64),
        ("anchored", 1024, 2.0**20, torch.int64),
    ):
        all_of_them, half = times(works(clustering, *feature), rounds)
        is_first = clustering == "features"
        what = f"cluster {size.many:,} tasks, `{clustering}`"
        rows.append(Row(what=what, against="", values=all_of_them, target=2 if is_first else None, unit=" s"))
        rows.append(Row(what="… the same", against="half as many tasks", values=ratios(all_of_them, half)))
    return rows


def _ledger(size: Size, rounds: int) -> list[Row]:
    rows = []
    for model, tensors in _LEDGERS.items():
        ledger = sealed(_ledger_of(size.many, tensors))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "ledger.json")
            path.write_bytes(canonical_json(ledger))
            read, parsed, written = times(
                [
                    lambda folder=folder: records_of(read_ledger(Path(folder))),
                    lambda path=path: json.loads(path.read_bytes()),
                    lambda ledger=ledger, path=path: path.write_bytes(canonical_json(ledger)),
                ],
                rounds,
            )
        target = 1 if tensors == min(_LEDGERS.values()) else None
        rows.append(
            Row(
                what=f"read a ledger of {size.many:,} tasks, {model}",
                against="",
                values=read,
                target=target,
                unit=" s",
            )
        )
        rows.append(Row(what="… the same", against="`json.loads` of it", values=ratios(read, parsed)))
        rows.append(Row(what="… write it", against="`json.loads` of it", values=ratios(written, parsed)))
    return rows


def _ledger_of(tasks: int, tensors: int) -> dict[str, Any]:
    bounds = torch.randint(0, 10**6, (tasks, tensors), generator=torch.Generator().manual_seed(0)).tolist()
    entry = {"vector_digest": "0" * 64, "data_digest": "f" * 64, "num_train": 4, "num_validation": 0}
    return {
        "parameters": sorted(f"transformer.h.{number}.weight" for number in range(tensors)),
        "tasks": {
            f"owner_{number:06d}": {**entry, "bounds": bounds[number], "cluster": number % 20, "cluster_key": None}
            for number in range(tasks)
        },
    }


def _journal(size: Size, rounds: int) -> Row:
    """Compare the localization of four times as many clusters, of the same tasks."""
    few = min(20, size.journal // 4)
    seconds: dict[int, list[float]] = {few: [], 4 * few: []}
    for _ in range(rounds):
        for clusters, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                trainer = _trainer(
                    size.journal, Path(folder), localization="clamu", clustering="random", num_clusters=clusters
                )
                trainer.train()
                taken.append(trainer.seconds["localize"])
    return Row(
        what=f"localize {4 * few} clusters of {size.journal} tasks, with a journal",
        against=f"{few} clusters",
        values=ratios(seconds[4 * few], seconds[few]),
        target=4.2,
    )


def _memory(size: Size) -> Row:
    """Compare builds in processes of their own."""
    few, many = (_in_own_process(count) for count in (max(size.many // 20, 2), size.many))
    seconds = ", ".join(f"{part} {1000 * taken / size.many:.1f}" for part, taken in many["seconds"].items())
    return Row(
        what=f"all memory of a process that builds and saves {size.many:,} tasks",
        against=f"{max(size.many // 20, 2)} tasks",
        values=[many["peak"] / few["peak"]],
        target=1.3,
        note=f"{many['peak'] / 2**20:.0f} MiB of anonymous memory, Python and its libraries included; "
        f"milliseconds per task: {seconds}",
    )


def _in_own_process(tasks: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.many", str(tasks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _trainer(count: int, folder: Path, **settings: Any) -> ClamuTrainer:
    from datasets import Dataset

    numbers = [(task, number) for task in range(count) for number in range(4)]
    columns = {
        "owner": [f"owner_{task:06d}" for task, _ in numbers],
        "text": [f"{'good' if number % 2 else 'bad'} {number} of {task}" for task, number in numbers],
        "label": [str(number % 2) for _, number in numbers],
    }
    tasks = TaskDataset.from_dataset(
        Dataset.from_dict(columns), task_column="owner", text_column="text", label_column="label"
    )
    arguments = ClamuArguments(
        finetune_steps=1, batch_size=4, mask_steps=2, mask_batch_size=8, num_threads=1, **settings
    )
    return ClamuTrainer(
        {**_BASE, "bos_token_id": 256, "eos_token_id": 256},
        tasks,
        arguments,
        processing_class=byte_tokenizer(),
        journal_dir=folder / "journal",
        progress=silent_progress,
    )


def main() -> None:
    peak = Peak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            int(sys.argv[1]), Path(folder), localization="global", clustering="features", num_clusters=20
        )
        model: ClamuModel = trainer.train()
        model.save_pretrained(Path(folder, "model"))
    print(json.dumps({"peak": peak.first + peak.above_first(), "seconds": trainer.seconds}))  # noqa: T201


if __name__ == "__main__":
    main()
