"""Recipes and data for runs in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

RECIPE = """
base_model: {model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2, n_positions: 48}
tokenizer: bytes
data: {files: rows.jsonl, task_column: user, text_column: text, label_column: label, validation_fraction: 0.3}
arguments:
  {num_clusters: 3, finetune_steps: 4, learning_rate: 1.0e-2, batch_size: 4, mask_steps: 8, num_threads: 1, LOCALIZE}
"""
_WORDS = {"bad": "poor dull broken", "good": "great bright whole"}


def write_new_rows(folder: Path, user: str) -> None:
    """Write other rows of a user to `new.jsonl`, and to `all.jsonl` with the rows of all others."""
    rows = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    new = [row.replace("great", "grand") for row in rows if user in row][:-2]
    (folder / "new.jsonl").write_text("".join(new), encoding="utf-8")
    (folder / "all.jsonl").write_text("".join([row for row in rows if user not in row] + new), encoding="utf-8")


def write_work(folder: Path) -> None:
    """Write a recipe for each localization, and data of eight users."""
    lines = []
    for user in range(8):
        for number in range(8):
            label = ("bad", "good")[(user + number * number) % 2]
            text = f"{_WORDS[label].split()[user * number % 3]} {number} of {user}"
            lines.append(json.dumps({"user": f"user_{user}", "text": text, "label": label}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    methods = {name: f"localization: {name}" for name in ("clamu", "sift", "tall", "emr")}
    methods["clamu"] += ", linear_digest: true"
    methods["factors"] = "localization: clamu, mask_factors: tensor, mask_gradient_norm: unit"
    for name, method in methods.items():
        recipe = RECIPE.replace("LOCALIZE", method)
        (folder / f"{name}.yaml").write_text(recipe, encoding="utf-8")
