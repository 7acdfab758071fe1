"""Forgetting one of many tasks, by parts; against building again without it."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.storage import Archive
from hf_clamu.training import silent_progress
from tests.benchmarks.rows import Row, Size, timed
from tests.benchmarks.training import gpt2, prompts

_WAYS = {
    "global": {"localization": "global", "clustering": "random"},
    "sift": {"localization": "sift", "clustering": "none"},
    "clamu": {"localization": "clamu", "clustering": "random"},
}


def measure(size: Size, rounds: int) -> list[Row]:
    tokenizer, tasks = byte_tokenizer(), prompts(size.merged)
    rows = []
    for way, settings in _WAYS.items():
        arguments = ClamuArguments(
            num_clusters=20, finetune_steps=10, batch_size=8, mask_steps=20, num_threads=torch.get_num_threads(),
            scaling=1.0, **settings,
        )  # fmt: skip
        found: list[float] = []
        parts: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as archive:
            built = _build(size, tasks, arguments, tokenizer, archive if way == "global" else None)
            built.save_pretrained(folder)
            if way == "global":
                rows += [*_sizes(built, Path(archive)), _entropy(built, Path(archive))]
            for number in range(rounds):
                leaving = tasks.task_ids[number * len(tasks) // rounds]
                left = partial(_build, size, tasks.without(leaving), arguments, tokenizer)
                rebuild = timed(left)
                model = ClamuModel.from_pretrained(folder)
                # What the method itself asks for: without masks to learn, the rows of the forgotten task are enough.
                given = tasks if way == "clamu" else tasks.select(leaving)
                taken = timed(partial(model.unmerge_task, leaving, data=given))
                found.append(taken / rebuild)
                for part, seconds in model.receipts[-1]["seconds"].items():
                    parts.setdefault(part, []).append(seconds / rebuild)
        note = ", ".join(f"{part} {statistics.median(values):.3f}" for part, values in parts.items())
        limit = None if way == "clamu" else 2 / size.merged
        rows.append(
            Row(
                what=f"`unmerge_task` of one of {size.merged}, `{way}`",
                against="building again without it",
                values=found,
                target=limit,
                note=note,
            )
        )
    return rows


def _sizes(model: ClamuModel, archive: Path) -> list[Row]:
    """Return the bytes per weight that a model of all weights takes, and a task in its archive."""
    delta = model.merged.state.delta
    weights = sum(steps.numel() for steps in delta.values())
    archived = sum(path.stat().st_size for path in archive.iterdir()) / len(model.tasks)
    saved = sum(steps.nbytes for steps in delta.values())
    bits = f"{model.clamu_config.arguments['fraction_bits']} fraction bits, chosen by the recipe"
    return [
        Row(
            what="a task in an archive, per weight",
            against="",
            values=[archived / weights],
            target=0.8,
            unit=" bytes",
            note=bits,
        ),
        Row(
            what=f"saved delta of {len(model.tasks)} tasks, per weight",
            against="",
            values=[saved / weights],
            target=2,
            unit=" bytes",
        ),
    ]


def _entropy(model: ClamuModel, archive: Path) -> Row:
    """Return what the integers of archived vectors take at least, if each is encoded by how frequent its value is."""
    state = model.merged.state
    shapes = {name: steps.shape for name, steps in state.delta.items()}
    found = []
    for task_id, record in state.records.items():
        vector = Archive(archive).read(task_id, record.vector_digest, record.bounds, shapes)
        counts = [steps.unique(return_counts=True)[1].double() for steps in vector.steps.values()]
        bits = sum(float(-(count * (count / count.sum()).log2()).sum()) for count in counts)
        found.append(bits / 8 / sum(shape.numel() for shape in shapes.values()))
    note = "order 0, in each parameter; a coder of single values needs so much on this grid, whatever the coder"
    return Row(what="… entropy of its integers alone", against="", values=found, unit=" bytes", note=note)


def _build(
    size: Size, tasks: TaskDataset, arguments: ClamuArguments, tokenizer: Any, archive: str | None = None
) -> ClamuModel:
    model = gpt2({**size.small, "vocab_size": len(tokenizer)})
    return ClamuTrainer(
        model, tasks, arguments, processing_class=tokenizer, archive_dir=archive, progress=silent_progress
    ).train()
