"""Factors, their covering selection, and the recipe and rows of a cell."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["FACTORS", "Cell", "cells", "write_rows", "write_work"]

FACTORS: dict[str, tuple[Any, ...]] = {
    "kind": ("text", "lm", "image", "words", "seq2seq"),
    "localization": ("clamu", "sift", "tall", "emr", "global"),
    "clustering": ("features", "task_vectors", "random", "column", "none"),
    "space": ("all", "frozen_a", "product", "parameters"),
    "place": ("folder", "hub", "archive", "hub archive"),
    "scaling": ("default", "auto", "sum"),
    "keyed": (False, True),
}
_LABELS = ("bad", "good", "mixed")
_WORDS = {"bad": "poor dull broken", "good": "great bright whole", "mixed": "fair grey partly"}
_GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 48}
_T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 257}
_T5 = {"model_type": "t5", **_T5_SIZES, "pad_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 256}
_VIT_SIZES = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
_VIT = {"model_type": "vit", "num_hidden_layers": 1, "num_attention_heads": 2, **_VIT_SIZES}
_TARGETS = {"image": ["q_proj", "v_proj"], "seq2seq": ["q", "v"]}
_COLUMNS: dict[str, dict[str, Any]] = {
    "text": {"text_column": "text", "label_column": "label", "label_names": list(_LABELS)},
    "lm": {"prompt_column": "text", "completion_column": "label", "template": "{prompt} is "},
    "image": {"image_column": "image", "label_column": "label", "label_names": list(_LABELS)},
    "words": {"tokens_column": "words", "tags_column": "tags", "label_names": ["number", "word"]},
    "seq2seq": {"prompt_column": "text", "completion_column": "label", "kind": "seq2seq-lm"},
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of each factor."""

    kind: str = "text"
    localization: str = "clamu"
    clustering: str = "features"
    space: str = "all"
    place: str = "folder"
    scaling: str = "default"
    keyed: bool = False

    @property
    def name(self) -> str:
        """Its values, as part of a file's name."""
        extra = ["keyed"] if self.keyed else []
        parts = [self.kind, self.localization, self.clustering, self.space, self.place, self.scaling, *extra]
        return "-".join(parts).replace(" ", "_")

    @property
    def columns(self) -> dict[str, Any]:
        """What `TaskDataset.from_dataset` takes."""
        return {"task_column": "user", "cluster_column": "group", "validation_fraction": 0.3, **_COLUMNS[self.kind]}

    @property
    def base(self) -> dict[str, Any]:
        """The base model's configuration."""
        return {"image": _VIT, "seq2seq": _T5}.get(self.kind, _GPT2)

    @property
    def arguments(self) -> dict[str, Any]:
        """Settings; batches are smaller than a task, so that shuffles take part; one thread, so that cores do not."""
        training = {"finetune_steps": 2, "learning_rate": 0.01, "batch_size": 3, "mask_steps": 2, "mask_batch_size": 4}
        scaling = {} if self.scaling == "default" else {"scaling": self.scaling}
        methods = {"localization": self.localization, "clustering": self.clustering, "num_clusters": 2, **scaling}
        return {**training, **methods, "num_threads": 1}

    @property
    def peft(self) -> dict[str, Any]:
        """The adapter, as a recipe has it."""
        if self.space == "all":
            return {}
        lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": _TARGETS.get(self.kind, ["c_attn"])}
        return {"peft_config": lora, "peft_merging": self.space}

    @property
    def recipe(self) -> dict[str, Any]:
        """What `clamu train` reads; JSON is YAML."""
        tokenizer = {} if self.kind == "image" else {"tokenizer": "bytes"}
        data = {"files": "rows.jsonl", **self.columns}
        return {"base_model": self.base, **tokenizer, "data": data, "arguments": self.arguments, **self.peft}


def cells(*, quick: bool = False) -> list[Cell]:
    """Return cells that have each pair of values together at least once; quick, each value at least once."""
    names = list(FACTORS)
    pairs = [(("localization", "sift"), ("space", "product"))]  # refused
    wanted = {
        frozenset(((one, value), (other, second)))
        for one, other in itertools.combinations(names, 2)
        for value, second in itertools.product(FACTORS[one], FACTORS[other])
    }
    refused = {frozenset(pair) for pair in pairs}
    wanted -= refused
    if quick:
        wanted = {frozenset(((name, value),)) for name in names for value in FACTORS[name]}
    chance = random.Random("cells")
    found: list[Cell] = []
    while wanted:
        start = dict(min(wanted, key=lambda pair: sorted(map(str, pair))))
        best, covered = None, frozenset()
        for _ in range(60):
            drawn = {name: start.get(name, chance.choice(FACTORS[name])) for name in names}
            items = set(drawn.items())
            if any(pair <= items for pair in refused):
                continue
            new = frozenset(pair for pair in wanted if pair <= items)
            if len(new) > len(covered):
                best, covered = drawn, new
        assert best is not None
        found.append(Cell(**best))
        wanted -= covered
    return found


def rows(kind: str, users: range, *, revision: int = 0, count: int = 5) -> list[dict[str, Any]]:
    """Return rows of some users; a later revision has others."""
    made = []
    for user in users:
        for number in range(revision, revision + count):
            label = _LABELS[(user + number * number) % 3]
            word = _WORDS[label].split()[user * number % 3]
            row: dict[str, Any] = {"user": f"user_{user}", "group": "AB"[user % 2], "label": label}
            if kind == "image":
                row["image"] = [[(user * 40 + number * 9 + x * y * 3) % 256 for x in range(8)] for y in range(8)]
            elif kind == "words":
                words = [word, str(number), "of", str(user)]
                tags = ["number" if part.isdigit() else "word" for part in words]
                row = {"user": row["user"], "group": row["group"], "words": words, "tags": tags}
            else:
                row["text"] = f"{word} {number} of {user}"
            made.append(row)
    return made


def write_rows(path: Path, values: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")


def write_work(cell: Cell, folder: Path) -> None:
    """Write a cell's recipe, and rows: of four users, of a fifth, other ones of the third, and what holds last."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(cell.recipe, indent=1), encoding="utf-8")
    (folder / "cell.json").write_text(json.dumps(asdict(cell), indent=1), encoding="utf-8")
    first, fifth = rows(cell.kind, range(4)), rows(cell.kind, range(4, 5))
    changed = rows(cell.kind, range(2, 3), revision=2)
    write_rows(folder / "rows.jsonl", first)
    write_rows(folder / "new.jsonl", fifth)
    write_rows(folder / "changed.jsonl", changed)
    write_rows(folder / "all.jsonl", [*first, *fifth])
    write_rows(folder / "now.jsonl", [row for row in [*first, *fifth] if row["user"] != "user_2"] + changed)
