"""What the demo starts from: the owners' rows, a pretrained base model and two recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_clamu.recipe import Recipe
from hf_clamu.tasks import digits, digits_public
from hf_clamu.training import derive_seed, deterministic, sample_batches, seeded

__all__ = ["CHOSEN", "RECIPES", "prepare", "pretrain", "write_data", "write_recipes"]

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
_LABELS = ("few", "many")
_BATCH = 64
# Steps and peak learning rate, first of all weights on ten digits, then of a new head on two labels.
_DIGIT_STEPS, _DIGIT_RATE = 160, 2e-3
_HEAD_STEPS, _HEAD_RATE = 60, 1e-2

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
  label_names: [few, many]
arguments:
{settings}
  finetune_steps: {steps}
  learning_rate: {rate}
  batch_size: 20
  num_threads: 1           # so small a model gains nothing from a second thread
"""
_PER_TASK = """\
  preset: per-task"""
_CLUSTERS = """\
  preset: clusters
  num_clusters: 6
  mask_steps: 40
  mask_batch_size: 64"""
# Steps per owner and learning rate of each way to finetune. Each was chosen from the same grid, on validation rows cut
# from the training rows: `python -m examples.demo_settings`. No held-out row had a part in it.
CHOSEN: dict[str, tuple[int, float]] = {
    "joint": (10, 5e-4),
    "local": (5, 1e-3),
    "lora": (5, 5e-3),
    "clusters": (10, 1e-3),
    "per-task": (10, 2e-3),
}
_SETTINGS = {
    "recipe.yaml": ("a mask per owner.", _PER_TASK, "per-task"),
    "recipe-clusters.yaml": ("six masks, one per group of similar owners.", _CLUSTERS, "clusters"),
}
# By the name of the file.
RECIPES = {
    name: _RECIPE.format(name=name, about=about, settings=settings, steps=CHOSEN[way][0], rate=f"{CHOSEN[way][1]:.1e}")
    for name, (about, settings, way) in _SETTINGS.items()
}


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
    say(f"Cutting scikit-learn's digits into {num_owners} data owners, each with two digits, a lower and a higher one")
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

    An owner has two of the ten digits and calls the lower one "few" and the higher one "many". So owners differ in how
    they label, as people do who rate, sort or rank: for one owner five is many and for another few, and no image says
    whose it is.
    """
    folder.mkdir()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in digits(num_tasks=num_owners, seed=seed):
        rows.setdefault(row["task"], []).append(row)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for task_id in sorted(rows):
        lower = min(row["label"] for row in rows[task_id])
        named = [{**row, "label": _LABELS[row["label"] > lower]} for row in rows[task_id]]
        ranked = sorted(named, key=lambda row: hashlib.sha256(f"{row['task']}/{row['id']}".encode()).digest())
        cut = round(_HELD_OUT * len(ranked))
        parts["test"] += ranked[:cut]
        parts["train"] += ranked[cut:]
    for name, part in parts.items():
        lines = [json.dumps(row) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def pretrain(folder: Path, run_seed: int) -> None:
    """Pretrain a small ViT on the public half of the digits and save it with a head of two labels.

    It learns to tell ten digits apart, then gets a new head for what the public calls few (0 to 4) and many (5 to
    9), trained over features that stay.
    """
    import transformers

    images, digit_of = digits_public()
    pixels, targets = torch.from_numpy(images)[:, None], torch.from_numpy(digit_of)
    seed = derive_seed(run_seed, "demo-pretrain")
    with deterministic(1), seeded(seed):
        config: Any = transformers.AutoConfig.for_model("vit", **_VIT, num_labels=10)
        model = transformers.ViTForImageClassification(config).train()
        _train(model, pixels, targets, steps=_DIGIT_STEPS, rate=_DIGIT_RATE, seed=seed)
        model.requires_grad_(False)
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(_LABELS))
        model.num_labels = len(_LABELS)
        model.config.id2label = dict(enumerate(_LABELS))
        model.config.label2id = {name: number for number, name in enumerate(_LABELS)}
        _train(model, pixels, (targets >= 5).long(), steps=_HEAD_STEPS, rate=_HEAD_RATE, seed=seed)
    model.save_pretrained(folder)


def _train(model: Any, pixels: torch.Tensor, targets: torch.Tensor, *, steps: int, rate: float, seed: int) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for batch in sample_batches(range(len(pixels)), _BATCH, steps, seed):
        rows = torch.tensor(list(batch))
        model(pixel_values=pixels[rows], labels=targets[rows]).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        decay.step()
