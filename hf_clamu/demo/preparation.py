"""What the demo starts from: the owners' rows, a pretrained base model and two recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_clamu.recipe import Recipe
from hf_clamu.tasks import digits, digits_public
from hf_clamu.training import derive_seed, deterministic, sample_batches, seeded

__all__ = ["RECIPES", "prepare", "pretrain", "write_data", "write_recipes"]

_HELD_OUT = 0.3
_VIT: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LABELS = tuple(str(digit) for digit in range(10))
_PRETRAIN_STEPS = 80
_PRETRAIN_BATCH = 64
_PRETRAIN_LEARNING_RATE = 2e-3

_RECIPE = """\
# What `clamu demo` trains: {about}
# Try other settings: clamu train {{folder}}/{name} --output {{folder}}/again
base_model: base
data:
  files: data/train.jsonl
  task_column: task
  image_column: image
  label_column: label
  id_column: id
  label_names: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
arguments:
{settings}
  finetune_steps: 20
  learning_rate: {rate}
  batch_size: 20
  num_threads: 1           # so small a model gains nothing from a second thread
"""
_PER_TASK = """\
  preset: per-task"""
_CLUSTERS = """\
  preset: clusters
  num_clusters: 6
  mask_steps: 30
  mask_batch_size: 64"""
# The learning rates were chosen on validation rows that were cut from the training rows. Under fixed signs half of the
# directions are closed, and what is left wants longer steps.
_SETTINGS = {
    "recipe.yaml": {"about": "a mask per owner.", "settings": _PER_TASK, "rate": "4.0e-3"},
    "recipe-clusters.yaml": {
        "about": "six masks, one per group of similar owners.",
        "settings": _CLUSTERS,
        "rate": "1.0e-3",
    },
}
# By the name of the file.
RECIPES = {name: _RECIPE.format(name=name, **values) for name, values in _SETTINGS.items()}


def prepare(
    folder: Path, num_owners: int = 48, seed: int = 0, *, say: Callable[[str], None] = lambda text: None
) -> Recipe:
    """Write rows, base model and recipes; return the recipe of a mask per owner.

    Args:
        folder (`Path`): gets `data/train.jsonl`, `data/test.jsonl`, `base/`, `recipe.yaml` and `recipe-clusters.yaml`.
        num_owners (`int`, defaults to 48): among whom the private half of the digits is cut.
        seed (`int`, defaults to 0): of the cut and of the pretraining.
        say (*callable*, *optional*): receives a line about each stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Cutting scikit-learn's digits into {num_owners} data owners with two digits and a scanner each")
    write_data(folder / "data", num_owners, seed)
    say("Pretraining a small ViT on the public half")
    pretrain(folder / "base", seed)
    write_recipes(folder)
    return Recipe.load(folder / "recipe.yaml")


def write_recipes(folder: Path) -> None:
    """Write the recipes of both modes."""
    for name, text in RECIPES.items():
        (folder / name).write_text(text.format(folder=folder.name), encoding="utf-8")


def write_data(folder: Path, num_owners: int, seed: int) -> None:
    """Write each owner's rows, 30 % of them (by a hash of the row's id) held out.

    Owner n's scanner turns every image by n quarter turns, which no row says. So owners differ in more than their two
    digits, and one model for all must guess the turn: without a model or mask of the owner's own there is no way to
    know it.

    Source: Rotated MNIST with four groups of clients, as in "An Efficient Framework for Clustered Federated Learning"
    (Ghosh et al., 2020).
    """
    folder.mkdir()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in digits(num_tasks=num_owners, seed=seed):
        turns = int(row["task"].removeprefix("owner_")) % 4
        rows.setdefault(row["task"], []).append({**row, "image": np.rot90(row["image"], turns).tolist()})
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for task_id in sorted(rows):
        ranked = sorted(rows[task_id], key=lambda row: hashlib.sha256(f"{row['task']}/{row['id']}".encode()).digest())
        cut = round(_HELD_OUT * len(ranked))
        parts["test"] += ranked[:cut]
        parts["train"] += ranked[cut:]
    for name, part in parts.items():
        lines = [json.dumps({**row, "label": str(row["label"])}) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def pretrain(folder: Path, run_seed: int) -> None:
    """Pretrain a small ViT on the public half of the digits, upright, and save it with its head of ten labels."""
    import transformers

    images, labels = digits_public()
    pixels, targets = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    seed = derive_seed(run_seed, "demo-pretrain")
    with deterministic(1), seeded(seed):
        names: dict[str, Any] = {
            "id2label": dict(enumerate(_LABELS)),
            "label2id": {n: i for i, n in enumerate(_LABELS)},
        }
        config: Any = transformers.AutoConfig.for_model("vit", **_VIT, **names)
        model = transformers.ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_PRETRAIN_LEARNING_RATE, weight_decay=0.0, fused=True)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=_PRETRAIN_STEPS)
        for batch in sample_batches(range(len(pixels)), _PRETRAIN_BATCH, _PRETRAIN_STEPS, seed):
            rows = torch.tensor(list(batch))
            model(pixel_values=pixels[rows], labels=targets[rows]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warmup.step()
            decay.step()
    model.save_pretrained(folder)
