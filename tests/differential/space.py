"""The space of configurations, and drawing one of it from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.merging import METHOD_SETTINGS, PRESETS
from tests.differential.bases import ARCHITECTURES, Architecture

__all__ = ["AXES", "Configuration", "draw"]

Configuration = dict[str, Any]
# What is counted of a configuration, and the values that it may have.
AXES: dict[str, tuple[Any, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "kind": ("text", "lm", "words", "seq2seq", "image"),
    "base": ("config", "folder", "memory"),
    "tied": ("default", True, False),
    "space": ("all", "frozen", "head", "peft", "peft frozen"),
    "peft_type": (
        *("LORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "HRA", "LN_TUNING", "FOURIERFT", "MISS", "SHIRA"),
        *("C3A", "ROAD", "RANDLORA", "VBLORA", "OSF", "DELORA", "GRALORA", "PROMPT_TUNING"),
    ),
    "peft_merging": (None, "frozen_a", "parameters", "product"),
    "targets": (
        *("attention", "other", "both", "embeddings", "attention and embeddings", "head", "embeddings and head"),
        *("all-linear", "pattern", "default"),
    ),
    "lora": (
        *("plain", "use_rslora", "use_dora", "lora_dropout", "bias", "init_lora_weights", "layers_to_transform"),
        *("rank_pattern", "lora_bias"),
    ),
    "modules_to_save": ("default", "none", "head", "embeddings"),
    "localization": ("clamu", "tall", "emr", "global", "sift"),
    "clustering": (
        *("features", "task_vectors", "anchored", "public_rows", "random", "column", "none", "stable_kmeans"),
    ),
    "num_clusters": (1, 2, 3, 20),
    "scaling": (4.0, 1.0, 2.5, "sum", "auto"),
    "precision": ("fp32", "bf16", "bfloat16", "bfloat16 and bf16"),
    "fraction_bits": ("auto", 20, 12, 28, 40),
    "validation_fraction": (0.0, 0.3),
    "score_validation": (True, False),
    "ids": ("plain", "odd", "long"),
    "keyed": (False, True),
    "archive": (False, True),
    "journal": (False, True),
    "data": ("rows", "file"),
    "num_tasks": (1, 2, 3, 4, 5, 6, 7),
    "preset": (None, "per-task", "clusters", "adapters", "one-model"),
    "global_scaling": (None, "auto", "same", "sum", 1.0, 2.5),
    "keep_features": (True, False),
    "snapshot": ("none", "plain", "encrypted"),
    "incomplete_rows": ("error", "skip"),
    "mask_factors": ("none", "tensor"),
    "mask_scaling_schedule": ("constant", "linear"),
    "mask_learning_rate": (None, 1.0, 300.0),
    "mask_gradient_norm": ("raw", "unit"),
    "max_shard_size": (None, 3000),
    "integer_bits": (8, 32),
    "linear_digest": ("auto", True, False),
    "conversations": (None, "messages", "assistant", "last", "prompts"),
    "quantization": (None, "nf4", "nf4 double", "int8"),
}
# What is drawn after all else, so that the seeds of before give the sequences of before.
_LAST = (
    *("preset", "global_scaling", "keep_features", "snapshot", "incomplete_rows"),
    *("mask_factors", "mask_scaling_schedule", "mask_learning_rate", "mask_gradient_norm"),
    *("max_shard_size", "integer_bits", "conversations", "linear_digest"),
    "quantization",
)
_SIZES: dict[str, dict[str, Any]] = {
    "IA3": {"feedforward_modules": []},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "OFT": {"oft_block_size": 4},
    "BOFT": {"boft_block_size": 4},
    "VERA": {"r": 4},
    "HRA": {"r": 2},
    "FOURIERFT": {"n_frequency": 10},
    "MISS": {"r": 2},
    "SHIRA": {"r": 2},
    "C3A": {"block_size": 4},
    "RANDLORA": {"r": 4},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 4},
    "OSF": {},
    "DELORA": {"r": 2},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "PROMPT_TUNING": {"num_virtual_tokens": 2},
}
# Their configurations name no modules.
_WITHOUT_TARGETS = ("LN_TUNING", "PROMPT_TUNING")
_WEIGHTS = {
    "architecture": (6, 4, 1, 1, 3, 1, 3, 1, 3, 4, 1, 1, 3),
    "base": (4, 2, 1),
    "tied": (2, 1, 1),
    "space": (8, 3, 2, 9, 3),
    "peft_type": (45, *(1 for _ in AXES["peft_type"][1:])),
    "targets": (6, 3, 4, 2, 2, 1, 1, 4, 2, 2),
    "modules_to_save": (4, 1, 1, 1),
    "peft_merging": (1, 3, 3, 5),
    "fraction_bits": (6, 1, 1, 1, 1),
    "precision": (6, 2, 2, 1),
    "localization": (4, 2, 2, 2, 3),
    "scaling": (5, 1, 1, 2, 2),
    "num_clusters": (1, 3, 2, 1),
    "ids": (2, 3, 1),
    "keyed": (3, 1),
    "archive": (2, 1),
    "num_tasks": (1, 1, 2, 3, 3, 2, 1),
    "preset": (8, 1, 1, 1, 1),
    "keep_features": (3, 1),
    "snapshot": (3, 2, 1),
    "incomplete_rows": (3, 1),
    "mask_scaling_schedule": (3, 1),
    "mask_learning_rate": (3, 1, 1),
    "max_shard_size": (3, 1),
    "integer_bits": (5, 1),
    "conversations": (4, 1, 1, 1, 1),
    "quantization": (12, 1, 1, 1),
}


def draw(seed: int, changes: Mapping[str, Any] | None = None) -> Configuration:
    """Return the configuration of a seed; its values are JSON, so that it can be printed and changed.

    Args:
        seed (`int`): of a random number generator that nothing else draws from.
        changes (*mapping*, *optional*): values that are not drawn but given.
    """
    given = dict(changes or {})
    chance = random.Random(f"configuration {seed}")

    def one(axis: str) -> Any:
        return chance.choices(AXES[axis], _WEIGHTS.get(axis))[0]

    # Every axis is drawn, whether it counts or not: one that comes later stays what it is.
    found: Configuration = {axis: one(axis) for axis in AXES if axis not in _LAST} | given
    architecture = ARCHITECTURES[found["architecture"]]
    kind = chance.choice(architecture.kinds)
    found["kind"] = given.get("kind", kind)
    if not architecture.ties:
        found["tied"] = "default"
    if found["kind"] == "image":
        found["data"] = "rows"
    found |= _peft(found, architecture, chance)
    found["freeze"] = _freeze(found, architecture, chance)
    found["training"] = {
        "finetune_steps": chance.choice((1, 2, 2, 3)),
        "learning_rate": chance.choice((0.01, 0.01, 0.001, 0.1)),
        "batch_size": chance.choice((1, 3, 3, 20)),
        "mask_steps": chance.choice((1, 2, 3)),
        "mask_batch_size": chance.choice((2, 4, 64)),
        "weight_decay": chance.choice((0.0, 0.0, 0.1)),
        "warmup_steps": chance.choice((0, 0, 1)),
        "lr_scheduler_type": chance.choice(("constant", "linear", "cosine")),
        "max_grad_norm": chance.choice((1.0, 0.0)),
        "seed": chance.choice((0, 7)),
    }
    found["spec"] = {
        "max_length": chance.choice((None, None, 12)),
        "with_id_column": chance.random() < 0.2,
        "with_cluster_column": found["clustering"] == "column" or chance.random() < 0.2,
    }
    if found["clustering"] == "column" and chance.random() < 0.1:
        found["spec"]["with_cluster_column"] = False
    found["num_spare"] = chance.choice((0, 0, 1, 2))
    found["num_requests"] = chance.choice((1, 2, 3, 4, 5))
    last = {axis: one(axis) for axis in _LAST}
    preset = last.pop("preset")
    found |= last | given
    found["preset"] = given.get("preset", None if given.keys() & METHOD_SETTINGS else preset)
    found |= _of_preset(found) | given
    return found | _of_quantization(found) | given


def _of_preset(found: Configuration) -> Configuration:
    """Return what a preset decides, beside which nothing of it is given."""
    if found["preset"] is None:
        return {}
    preset = PRESETS[found["preset"]]
    if preset.peft_config is None:
        # Products of factors know no fixed signs; such a refusal is drawn often enough without presets.
        merging = None if found["peft_merging"] == "product" else found["peft_merging"]
        return {**preset.settings, "peft_merging": merging}
    nothing = dict.fromkeys(("peft", "peft_type", "peft_merging", "targets", "lora", "modules_to_save"))
    return {**preset.settings, **nothing, "space": "all", "freeze": []}


def _of_quantization(found: Configuration) -> Configuration:
    """Return what a base model in few bits needs, where it is drawn and there is an adapter; otherwise whole weights.

    It is refused with most of what else is drawn, before any training, so that little would be compared.
    """
    if found["quantization"] is None or found["peft_type"] != "LORA" or found["preset"] is not None:
        return {"quantization": None}
    merging = found["peft_merging"] if found["peft_merging"] in ("frozen_a", "parameters") else "parameters"
    # It is quantised while it is loaded from files, and 8 bits do not go with autocast.
    return {"base": "folder", "peft_merging": merging, "precision": "fp32"}


def _peft(found: Configuration, architecture: Architecture, chance: random.Random) -> Configuration:
    options: dict[str, Any] = {}
    kind, lora, targets = found["peft_type"], found["lora"], found["targets"]
    rank = chance.choice((1, 2, 4))
    strength = chance.choice((2, 8, 0.5))
    head = [architecture.heads[found["kind"]]]
    named = {
        "attention": list(architecture.attention),
        "other": list(architecture.other),
        "both": [*architecture.attention, *architecture.other],
        "embeddings": list(architecture.embeddings),
        "attention and embeddings": [*architecture.attention, *architecture.embeddings],
        "head": head,
        "embeddings and head": [*architecture.embeddings, *head],
        "all-linear": "all-linear",
        "pattern": rf".*\.({'|'.join(architecture.attention)})",
    }
    saved = {"none": [], "head": head, "embeddings": list(architecture.embeddings)}
    first, last = architecture.attention[0], architecture.attention[-1]
    choices = {
        "use_rslora": {"use_rslora": True},
        "use_dora": {"use_dora": True},
        "lora_dropout": {"lora_dropout": chance.choice((0.1, 0.5))},
        "bias": {"bias": chance.choice(("all", "lora_only"))},
        "init_lora_weights": {
            "init_lora_weights": chance.choice((False, "gaussian", "pissa", "olora", "orthogonal", "eva"))
        },
        "layers_to_transform": {"layers_to_transform": [0]},
        "rank_pattern": {"rank_pattern": {first: 3}, "alpha_pattern": {last: 1}},
        "lora_bias": {"lora_bias": True},
    }
    if not found["space"].startswith("peft"):
        nothing = dict.fromkeys(("peft_type", "peft_merging", "targets", "lora", "modules_to_save"))
        return {**nothing, "peft": None}
    if kind == "LORA":
        options = {"r": rank, "lora_alpha": strength, **choices.get(lora, {})}
    else:
        options = dict(_SIZES.get(kind, {}))
        lora = None
        if found["peft_merging"] == "frozen_a" and chance.random() < 0.8:
            found = {**found, "peft_merging": None}
    if kind in _WITHOUT_TARGETS:
        targets = None
    elif targets != "default":
        options["target_modules"] = named[targets]
    if found["modules_to_save"] != "default":
        options["modules_to_save"] = saved[found["modules_to_save"]]
    return {
        "peft": {"peft_type": kind, **options},
        "peft_merging": found["peft_merging"],
        "lora": lora,
        "targets": targets,
    }


def _freeze(found: Configuration, architecture: Architecture, chance: random.Random) -> list[str]:
    embeddings = [f"*.{name}.*" for name in architecture.embeddings]
    modules: Sequence[str] = (*architecture.attention, *architecture.other)
    patterns = (
        embeddings,
        ["*.bias"],
        [f"*.{chance.choice(modules)}.*"],
        [f"*.{architecture.attention[0]}.*", "*norm*"],
        ["*lora_A*"],
        ["*lora_B*"],
        [f"{architecture.body[:-2]}.*.weight"],
        [f"{architecture.heads[found['kind']]}.*"],
    )
    chosen = chance.choice(patterns[:4] + patterns[6:] if found["space"] == "frozen" else patterns)
    if found["space"] in ("frozen", "peft frozen"):
        return chosen
    return [architecture.body] if found["space"] == "head" else []
