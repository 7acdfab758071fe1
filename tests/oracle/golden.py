"""A small table of the quick record, for the repository."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["environment", "golden"]


def golden(record: dict[str, Any]) -> dict[str, Any]:
    """Return, for each step of each cell, its exit code and one digest over the digests of what it wrote.

    Args:
        record (*dict*): what `record` makes.
    """
    steps = {}
    for cell, files in record["files"].items():
        exits = record["exits"].get(cell, {})
        steps[cell] = {step: f"{_end(exits.get(step))} {_digest(found)}" for step, found in files.items()}
    return {
        "environment": environment(),
        "interface": record["interface"],
        "imports": record["imports"],
        "steps": steps,
    }


def environment() -> dict[str, str]:
    """Return what the bits depend on: elsewhere they are others, and the table says nothing."""
    import platform
    from importlib.metadata import version

    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    processor = _processor() or platform.processor() or platform.machine()
    libraries = {name: version(name) for name in ("transformers", "peft", "scikit-learn")}
    return {
        "torch": torch.__version__,
        "cpu": capability,
        "device": processor,
        "python": platform.python_version(),
        **libraries,
    }


def _processor() -> str:
    """Return vendor, family and model of the processor, which math libraries choose their kernels by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))


def _end(exit_code: Any) -> str:
    return exit_code[0] if isinstance(exit_code, list) else str(exit_code)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
