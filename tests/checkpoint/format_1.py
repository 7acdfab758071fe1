"""Models of format 1: one that its own release wrote, and the way to write any model in that format.

`format_1/` is what the last commit of format 1 wrote for `LOCAL_MODELS` and `SETTINGS`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import ViTForImageClassification

from hf_clamu import ClamuArguments
from hf_clamu.exact import canonical_json

FOLDER = Path(__file__).parent / "format_1"
BASE = FOLDER / "base_model"
# What a build of that release did, where today's settings say something else.
BEHAVIOUR = {
    "global_scaling": "same",
    "keep_features": False,
    "scaling_search": "full",
    "integer_bits": 32,
    "linear_digest": False,
}
SETTINGS = ClamuArguments(clustering="none", localization="emr", learning_rate=5e-5, fraction_bits=28, **BEHAVIOUR)
TASKS = tuple(f"task_{number}" for number in range(4))


def local_models(folder: Path) -> dict[str, Path]:
    """Write the checkpoints that were merged: the base model, moved by steps that are exact in float32."""
    found = {}
    for number, task_id in enumerate(TASKS):
        model = ViTForImageClassification.from_pretrained(BASE)
        with torch.no_grad():
            for parameter in model.parameters():
                steps = torch.arange(parameter.numel()).reshape(parameter.shape) * (2 * number + 3) % 11 - 5
                parameter += steps * 2.0**-9
        found[task_id] = folder / task_id
        model.save_pretrained(found[task_id])
    return found


def to_format_1(tiny, folder: Path) -> Path:
    """Turn a saved model into the files that format 1 had for it."""
    entries = json.loads((FOLDER / "config.json").read_bytes())
    config = json.loads((folder / "config.json").read_bytes())
    config = {key: value for key, value in config.items() if key in entries} | {"format_version": 1}
    config["arguments"] = {key: config["arguments"][key] for key in entries["arguments"]}
    config["base_config"].pop("transformers_weights", None)
    (folder / "config.json").write_bytes(canonical_json(config))
    for path in folder.glob("masks/*/adapter_config.json"):
        values = json.loads(path.read_bytes())
        del values["requires_import"], values["cluster_name"]
        if config["base_model"]["embedded"]:
            values["base_model_name_or_path"] = None
        path.write_bytes(canonical_json(values))
    (folder / "delta.safetensors").rename(folder / "model.safetensors")
    ledger = json.loads((folder / "ledger.json").read_bytes())
    ledger["files"]["model.safetensors"] = ledger["files"].pop("delta.safetensors")
    del ledger["tensors"]
    (folder / "ledger.json").write_bytes(canonical_json(ledger))
    tiny.reseal(folder, format_version=1)
    return folder


def copy(folder: Path) -> Path:
    """Copy the model of the old release."""
    return Path(shutil.copytree(FOLDER, folder))
