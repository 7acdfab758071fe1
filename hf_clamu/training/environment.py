"""The environment of a run: what its bits depend on besides data and recipe."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hf_clamu.errors import EnvironmentMismatchError, RecipeError
from hf_clamu.portability import use_portable_kernels
from hf_clamu.training.determinism import CUBLAS_WORKSPACE

__all__ = ["Environment"]

# Libraries whose release can change bits: kernels, initialisation, tokenisation, clustering.
_LIBRARIES = ("accelerate", "datasets", "numpy", "peft", "safetensors", "scikit-learn", "scipy", "tokenizers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Fingerprint of what the bits of a training run depend on besides data and recipe.

    Args:
        framework (`str`): release and build of torch.
        models (`str`): release of transformers.
        libraries (*dict* of `str` to `str`): releases of the other libraries.
        python (`str`): implementation, minor version and machine architecture.
        device (`str`): kind and name of the device that trains.
        cpu_capability (`str`): instruction set that torch's CPU kernels use.
        num_threads (`int`): CPU threads of torch.
        kernels (`str`): which kernels are allowed: on a CPU `"native"` or `"portable"`, on a GPU how products and
            attention are computed.
    """

    framework: str
    models: str
    libraries: dict[str, str]
    python: str
    device: str
    cpu_capability: str
    num_threads: int
    kernels: str

    @classmethod
    def capture(
        cls,
        device: torch.device,
        num_threads: int | None = None,
        *,
        portable: bool = False,
        libraries: Sequence[str] = (),
    ) -> Environment:
        """Read the fingerprint of this process.

        Args:
            device (`torch.device`): the device that trains.
            num_threads (`int`, *optional*): the number that `deterministic` will set.
            portable (`bool`): the recipe asks for bits that do not depend on the processor.
            libraries (*sequence* of `str`): that take part besides those of every run.

        Raises:
            RecipeError: if it does, and the libraries are not held to one instruction set.
        """
        if portable:
            _require_portable(device)
        build = torch.version.git_version or "unknown"
        return cls(
            framework=f"torch {torch.__version__} ({build[:12]})",
            models=f"transformers {_release('transformers')}",
            libraries={name: _release(name) for name in (*_LIBRARIES, *libraries)},
            python=f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])} "
            f"{platform.system()} {platform.machine()}",
            device="cpu x86-64" if portable else _device_name(device),
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            kernels=_kernels(device, portable),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Environment:
        """Read what `to_dict` wrote."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Return the fingerprint as JSON-able values."""
        return asdict(self)

    def differences(self, recorded: Environment) -> list[str]:
        """Return in what this environment differs from the recorded one, with both values of each."""
        ours, theirs = _flat(self.to_dict()), _flat(recorded.to_dict())
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        return [
            f"{key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
            for key in keys
            if theirs.get(key) != ours.get(key)
        ]

    def require(self, recorded: Environment) -> None:
        """Check that this environment is the recorded one.

        Raises:
            EnvironmentMismatchError: naming every difference.
        """
        differing = self.differences(recorded)
        if differing:
            raise EnvironmentMismatchError(
                "The model was merged in another environment, where retraining gives other bits ("
                + "; ".join(differing)
                + "). Nothing was changed. Go back to the recorded environment, or rebuild from the retained tasks "
                "(on_mismatch='rebuild', --on-mismatch rebuild), which is exact under the new one."
            )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    libraries = {f"libraries.{name}": release for name, release in values["libraries"].items()}
    return {key: value for key, value in values.items() if key != "libraries"} | libraries


def _require_portable(device: torch.device) -> None:
    if device.type != "cpu":
        raise RecipeError(f"portable=True is for CPUs, but this machine trains on {device.type}: leave it out.")
    use_portable_kernels()
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX2":
        raise RecipeError(
            f"portable=True needs torch's AVX2 kernels, but torch uses {capability}: it was loaded before the "
            "settings, or the processor lacks AVX2."
        )


def _kernels(device: torch.device, portable: bool) -> str:
    if device.type == "cuda":
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
        return f"deterministic, no TF32, math attention, cuBLAS workspace {workspace}"
    return "portable" if portable else "native"


def _release(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    if device.type == "cpu":
        return f"cpu {_cpu_model()}"
    return device.type


def _cpu_model() -> str:
    # MKL and oneDNN choose kernels by the processor's model, not by its instruction set alone.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        entries: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), value.strip())
            if not line.strip():
                break
        parts = [entries.get("model name", ""), entries.get("cpu family", ""), entries.get("model", "")]
        if any(parts):
            return " ".join(part for part in parts if part)
    return platform.processor() or "unknown"
