"""Holding the CPU libraries to one instruction set, so that bits are the same on every x86-64 processor.

torch, MKL and oneDNN choose kernels by the processor, and each choice rounds sums in another order. Environment
variables hold them to one choice, but only if they are set before the libraries are loaded; so nothing here imports
torch.
"""

from __future__ import annotations

import os
import platform
import sys

from hf_clamu.errors import RecipeError

__all__ = ["PORTABLE_SETTINGS", "is_portable", "use_portable_kernels"]

# MKL_CBWR=COMPATIBLE is the one setting that MKL promises the same bits for on Intel's and on others' processors. For
# torch's own kernels and oneDNN, AVX2 is what every x86-64 server processor of the last ten years has.
PORTABLE_SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def use_portable_kernels() -> None:
    """Hold the CPU libraries to one instruction set, for settings with `portable=True`.

    Call it before torch is imported. The command line does it by itself for recipes and models that ask for it.

    Raises:
        RecipeError: if torch is loaded already, or the processor is of another kind.

    Example:

    ```python
    import hf_clamu

    hf_clamu.use_portable_kernels()  # and only then what needs torch
    ```
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise RecipeError(f"portable=True is for x86-64 processors, this one is {platform.machine()}: leave it out.")
    if is_portable():
        return
    if "torch" in sys.modules:
        raise RecipeError(
            "portable=True needs its settings before torch is loaded, and it is loaded already. Call "
            "hf_clamu.use_portable_kernels() first, or set "
            + ", ".join(f"{name}={value}" for name, value in PORTABLE_SETTINGS.items())
            + " in the environment."
        )
    os.environ.update(PORTABLE_SETTINGS)


def is_portable() -> bool:
    """Whether the environment holds the CPU libraries to one instruction set."""
    return all(os.environ.get(name) == value for name, value in PORTABLE_SETTINGS.items())
