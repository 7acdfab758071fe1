"""Audits without data: the linear digest of a vector, and an audit of a model of many tasks with adapters."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from hf_clamu import ClamuArguments, ClamuTrainer
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import digest_tensors
from hf_clamu.exact.linear_digest import linear_digest
from hf_clamu.proofs.audit import audit_model
from hf_clamu.training import silent_progress
from tests.benchmarks.rows import Row, Size, ratios, times
from tests.benchmarks.training import prompts

# The targets of a design decision: an audit is something that one waits for.
_MOST_SECONDS = 10
_LORA = {"peft_type": "LORA", "r": 256, "target_modules": "all-linear"}


def measure(size: Size, rounds: int) -> list[Row]:
    arguments = ClamuArguments(
        num_clusters=20,
        finetune_steps=1,
        batch_size=2,
        localization="global",
        clustering="features",
        num_threads=torch.get_num_threads(),
        score_validation=False,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        trainer = ClamuTrainer(
            {"model_type": "gpt2", **size.small},
            prompts(size.tasks),
            arguments,
            processing_class=byte_tokenizer(),
            peft_config=_LORA,
            peft_merging="parameters",
            progress=silent_progress,
        )
        trainer.train().save_pretrained(folder)
        delta = read_checkpoint(folder).state.delta
        read, audit, linear, plain = times(
            [
                lambda: read_checkpoint(folder, strict=True),
                lambda: audit_model(read_checkpoint(folder, strict=True)),
                lambda: linear_digest(delta),
                lambda: digest_tensors(delta),
            ],
            rounds,
        )
    weights = sum(steps.numel() for steps in delta.values())
    return [
        Row(
            what=f"`clamu audit` of {size.tasks} tasks through LoRA, in the process",
            against="",
            values=audit,
            target=_MOST_SECONDS,
            unit=" s",
            note=f"{weights:,} weights a task; starting the program is left out",
        ),
        Row(what="…", against="reading the same model, every byte hashed", values=ratios(audit, read)),
        Row(what="linear digest of one vector", against="its SHA-256", values=ratios(linear, plain)),
    ]
