"""`clamu merge` of saved checkpoints, as a process; against mergekit `linear` and a plain loop over the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_clamu.exact import DeltaAccumulator, FixedPoint, digest_tensors
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.training import Workspace
from tests.benchmarks.rows import Peak, Row, Size, ratios, timed, times
from tests.benchmarks.training import gpt2

_LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
output, *folders = sys.argv[1:]
merged = {}
for folder in folders:
    with safe_open(f"{folder}/model.safetensors", framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if name in merged:
                merged[name].add_(tensor, alpha=1 / len(folders))
            else:
                merged[name] = tensor.mul(1 / len(folders))
save_file(merged, output)
"""
_IMPORTS = """
import hf_clamu.cli.commands.merge, hf_clamu.operations.local_merge, hf_clamu.models.saving, hf_clamu.trainer
import transformers
transformers.GPT2LMHeadModel
"""


# Of what the command says of itself.
_STAGES = {
    "load": "its `load`: the architecture's code, base model, looking at the checkpoints",
    "read": "its `read`: reading, rounding and digesting vectors",
    "add": "its `add`: adding them up in a mapped file, digest of the sum",
    "save": "its `save`: writing, proving, digesting and syncing base and delta",
}


def write_checkpoints(folder: Path, config: dict[str, Any], count: int) -> tuple[Path, list[Path]]:
    """Write a base model and local models that differ from it a little."""
    model = gpt2(config)
    model.save_pretrained(folder / "base")
    theta_0 = [parameter.detach().clone() for parameter in model.parameters()]
    found = []
    for number in range(count):
        with torch.no_grad():
            for parameter, theta in zip(model.parameters(), theta_0, strict=True):
                parameter.copy_(theta).add_(torch.randn_like(theta), alpha=1e-4)
        found.append(folder / "local" / f"user_{number:02d}")
        model.save_pretrained(found[-1])
    return folder / "base", found


def mergekit() -> str | None:
    """Return the path of mergekit's command: beside this Python, on the PATH, or in CLAMU_MERGEKIT."""
    beside = Path(sys.executable).with_name("mergekit-yaml")
    return os.environ.get("CLAMU_MERGEKIT") or (str(beside) if beside.is_file() else shutil.which("mergekit-yaml"))


def measure(size: Size, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, local = write_checkpoints(folder, size.gpt2, size.checkpoints)
        model_bytes = (base / "model.safetensors").stat().st_size
        loop = [sys.executable, "-c", _LOOP, str(folder / "loop.safetensors"), *map(str, local)]
        clamu = [sys.executable, "-m", "hf_clamu.cli", "merge", "--base", str(base), "--overwrite"]
        clamu += [
            "--output",
            str(folder / "merged"),
            "--json",
            "--set",
            "clustering=random",
            str(base.parent / "local"),
        ]
        commands = {"loop": loop, "global": [*clamu, "--set", "localization=global"]}
        commands["imports"] = [sys.executable, "-c", _IMPORTS]
        found = mergekit()
        if found is not None:
            models = [{"model": str(path), "parameters": {"weight": 1 / len(local)}} for path in local]
            recipe = {"models": models, "merge_method": "linear", "dtype": "float32"}
            (folder / "mergekit.yaml").write_text(json.dumps(recipe), encoding="utf-8")
            commands["mergekit"] = [found, str(folder / "mergekit.yaml"), str(folder / "mergekit"), "--quiet"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        memory: dict[str, float] = {}
        stages: dict[str, list[float]] = {stage: [] for stage in _STAGES}
        for number in range(rounds + 1):
            for name, command in commands.items():
                for old in ("merged", "mergekit"):
                    shutil.rmtree(folder / old, ignore_errors=True)
                said: list[str] = []
                taken = timed(lambda name=name, command=command, said=said: said.append(_run(command, name, memory)))
                if number:
                    seconds[name].append(taken)
                if number and name == "global":
                    for stage, found_seconds in stages.items():
                        found_seconds.append(json.loads(said[0])["seconds"][stage])
        parts = _parts(base, local, rounds)
    models = memory["global"] / model_bytes
    count = f"`clamu merge` of {len(local)} checkpoints"
    rows = [
        Row(what=f"{count}, one model", against="a plain loop over the files",
            values=ratios(seconds["global"], seconds["loop"]), target=2),
        Row(what="… importing torch, transformers and ourselves alone", against="a plain loop over the files",
            values=ratios(seconds["imports"], seconds["loop"])),
        *(Row(what=f"… {what}", against="a plain loop over the files", values=ratios(stages[stage], seconds["loop"]))
          for stage, what in _STAGES.items()),
        *(Row(what=f"… {what} alone", against="a plain loop over the files", values=ratios(found, seconds["loop"]))
          for what, found in parts.items()),
        Row(what="… all memory of its process", against="the model's size", values=[models], target=2.2),
    ]  # fmt: skip
    if found is not None:
        faster = ratios(seconds["mergekit"], seconds["global"])
        what = Row(what="mergekit `linear`", against=f"{count}, one model", values=faster, target=1.2, at_least=True)
        rows.insert(0, what)
    return rows


def _parts(base: Path, local: list[Path], rounds: int) -> dict[str, list[float]]:
    """Time what is done for each checkpoint."""
    import transformers

    workspace = Workspace(transformers.AutoModelForCausalLM.from_pretrained(base))
    total = DeltaAccumulator(workspace.shapes)
    vector = LocalModels({"one": local[0]}).read("one", workspace, FixedPoint(fraction_bits=20))

    def digest() -> None:
        for _ in local:
            digest_tensors(vector.steps)

    def add() -> None:
        for _ in local:
            total.add(vector)

    names = (f"SHA-256 of {len(local)} vectors", "adding them up in memory")
    return dict(zip(names, times([digest, add], rounds), strict=True))


def _run(command: list[str], name: str, memory: dict[str, float]) -> str:
    """Run a command; return what it says on stdout, and keep its most memory under its name."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = Peak(process.pid, every=0.02)
    answer, said = process.communicate()
    memory[name] = max(memory.get(name, 0), peak.first + peak.above_first())
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])} … ended with {process.returncode}: {said[-2000:]}")
    return answer
