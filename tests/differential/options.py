"""Options of a LoRA adapter, how it is merged, what is frozen and what is tied: every combination."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu import ClamuArguments, ClamuError, ClamuTrainer, TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.loading import load_base
from hf_clamu.training import silent_progress
from tests.differential.bases import ARCHITECTURES, Architecture
from tests.differential.checks import compare, counted_steps, without_names
from tests.differential.data import Data
from tests.differential.space import draw

__all__ = ["FREEZES", "MERGINGS", "Cell", "cells", "outcome"]

MERGINGS = ("frozen_a", "parameters", "product")
FREEZES = ("nothing", "a target", "a target's weight", "the embeddings", "lora_A", "lora_B", "biases")
_NUM_TASKS = 3


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Args:
        architecture (`str`): of `ARCHITECTURES`.
        kind (`str`): of tasks.
        options (`str`): a name of `_lora`.
        merging (`str`): how tasks are added.
        freeze (`str`): one of `FREEZES`.
        tied (`bool`, *optional*): whether word embeddings are; None where that means nothing.
    """

    architecture: str
    kind: str
    options: str
    merging: str
    freeze: str
    tied: bool | None

    def __str__(self) -> str:
        tied = {True: "tied", False: "not tied", None: "-"}[self.tied]
        return ", ".join((self.architecture, self.kind, self.options, self.merging, self.freeze, tied))


def _lora(base: Architecture, kind: str) -> dict[str, dict[str, Any]]:
    targets = {"target_modules": list(base.attention)}
    head = [base.heads[kind]]
    first, last = base.attention[0], base.attention[-1]
    return {
        "plain": targets,
        "rslora": {**targets, "use_rslora": True},
        "dora": {**targets, "use_dora": True},
        "bias of all": {**targets, "bias": "all"},
        "bias of the targets": {**targets, "bias": "lora_only"},
        "lora_bias": {**targets, "lora_bias": True},
        "random B": {**targets, "init_lora_weights": False},
        "PiSSA": {**targets, "init_lora_weights": "pissa"},
        "head saved": {**targets, "modules_to_save": head},
        "nothing saved": {**targets, "modules_to_save": []},
        "embeddings saved": {**targets, "modules_to_save": list(base.embeddings)},
        "a target saved": {**targets, "modules_to_save": [first]},
        "embeddings": {"target_modules": list(base.embeddings)},
        "embeddings with DoRA": {"target_modules": [*base.attention, *base.embeddings], "use_dora": True},
        "attention and embeddings": {"target_modules": [*base.attention, *base.embeddings]},
        "head": {"target_modules": [*base.attention, *head]},
        "head and embeddings": {"target_modules": [*base.embeddings, *head]},
        "all-linear": {"target_modules": "all-linear"},
        "all-linear with biases": {"target_modules": "all-linear", "bias": "all"},
        "patterns": {**targets, "rank_pattern": {first: 3}, "alpha_pattern": {last: 1}},
        "dropout": {**targets, "lora_dropout": 0.3},
    }


def cells(architecture: str, kind: str) -> Iterator[Cell]:
    """Yield all combinations of an architecture and a kind of tasks."""
    base = ARCHITECTURES[architecture]
    tied = (True, False) if base.ties and kind in ("lm", "seq2seq") else (None,)
    for options, merging, freeze, tie in itertools.product(_lora(base, kind), MERGINGS, FREEZES, tied):
        yield Cell(architecture=architecture, kind=kind, options=options, merging=merging, freeze=freeze, tied=tie)


def outcome(cell: Cell, folder: Path) -> str:
    """Build, forget, and build without.

    Args:
        cell (`Cell`): the combination.
        folder (`Path`): an empty one.

    Returns:
        `str`: `"exact"`, or `"refused: "` and why.

    Raises:
        AssertionError: if it is neither.
    """
    configuration = draw(0, {**_DATA, "architecture": cell.architecture, "kind": cell.kind})
    data = Data(configuration, 0)
    everything = dict.fromkeys(data.task_ids, 0)
    tasks, gone = data.tasks(everything, 1), data.task_ids[1]
    refusal = None
    with counted_steps() as steps:
        try:
            trainer = _trainer(cell, tasks, journal_dir=folder / "journal")
            model = trainer.train()
        except ClamuError as error:
            refusal = f"{type(error).__name__}: {without_names(str(error))}"
    if refusal is not None:
        assert steps == [0], f"refused after training had begun: {refusal}"
        left = [path for path in (folder / "journal").rglob("*") if path.suffix in (".part", ".json")]
        assert not left, f"refused, and the journal holds {left}"
        return f"refused: {refusal}"
    assert steps[0] > 0
    _check_outside(cell, trainer, model, tasks)
    assert model.verify(), "verify says that the build is not exact"
    model.unmerge_task(gone, data=tasks).save_pretrained(folder / "unmerged")
    _check_outside(cell, trainer, model, tasks)
    built = _trainer(cell, data.tasks({one: 0 for one in everything if one != gone}, 2)).train()
    built.save_pretrained(folder / "built")
    count, odd = compare(folder / "unmerged", folder / "built")
    assert count > 5
    assert not odd, f"bytes that differ, by file: {odd}"
    return "exact"


_DATA = {
    "num_tasks": _NUM_TASKS,
    "num_spare": 0,
    "ids": "plain",
    "incomplete_rows": "error",
    "validation_fraction": 0.0,
    "clustering": "features",
    "spec": {"max_length": 12, "with_id_column": False, "with_cluster_column": False},
}


def _trainer(cell: Cell, tasks: TaskDataset, **places: Any) -> ClamuTrainer:
    base = ARCHITECTURES[cell.architecture]
    config = dict(base.config) if cell.tied is None else {**base.config, "tie_word_embeddings": cell.tied}
    patterns = {
        "nothing": (),
        "a target": (f"*.{base.attention[0]}.*",),
        "a target's weight": (f"*.{base.attention[0]}.weight",),
        "the embeddings": tuple(f"*.{name}.*" for name in base.embeddings),
        "lora_A": ("*lora_A*",),
        "lora_B": ("*lora_B*",),
        "biases": ("*.bias",),
    }
    arguments = ClamuArguments(
        finetune_steps=2,
        learning_rate=0.01,
        batch_size=3,
        mask_steps=2,
        num_clusters=2,
        freeze=patterns[cell.freeze],
        num_threads=1,
    )
    adapter = {"peft_type": "LORA", "r": 2, **_lora(base, cell.kind)[cell.options]}
    return ClamuTrainer(
        config,
        tasks,
        arguments,
        processing_class=byte_tokenizer(),
        peft_config=adapter,
        peft_merging=cell.merging,
        progress=silent_progress,
        **places,
    )


def _check_outside(cell: Cell, trainer: ClamuTrainer, model: Any, tasks: TaskDataset) -> None:
    """Check that everything but what is trained is as in a base model that nobody trained."""
    base = load_base(
        trainer.model,
        tasks.spec,
        num_labels=tasks.num_labels,
        processor=byte_tokenizer(),
        run_seed=trainer.args.seed,
        space=trainer.space,
    )
    trained = set(model.ledger["parameters"])
    fresh, own = _all(base.model), _all(model)
    assert fresh.keys() == own.keys()
    for name in fresh.keys() - trained:
        assert torch.equal(fresh[name], own[name]), f"{name} is not what it is in the base model"
    assert any(not torch.equal(fresh[name], own[name]) for name in trained), f"nothing moved with {cell}"


def _all(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
