"""The only owner of seeds, threads and deterministic switches.

Whatever the bits of a training run depend on is set here and recorded here. Seeds come from names (a purpose and task
ids), never from positions, so a task that leaves changes nobody else's randomness.
"""

from __future__ import annotations

import hashlib
import os
import platform
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hf_clamu.errors import EnvironmentMismatchError, RecipeError
from hf_clamu.exact import Guard
from hf_clamu.portability import use_portable_kernels

__all__ = ["Environment", "derive_seed", "deterministic", "seeded", "undisturbed"]

T = TypeVar("T")

# Generators, thread counts and switches belong to the whole process, so its threads take turns. A child that was
# forked meanwhile has a lock that nobody holds.
_GUARD = Guard()

_CUBLAS_WORKSPACE = ":4096:8"

# Libraries whose release can change bits: kernels, initialisation, tokenisation, clustering.
_LIBRARIES = ("accelerate", "datasets", "numpy", "peft", "safetensors", "scikit-learn", "scipy", "tokenizers")


def derive_seed(run_seed: int, purpose: str, *ids: str) -> int:
    """Derive a seed from names.

    Args:
        run_seed (`int`): the seed of the recipe.
        purpose (`str`): what the randomness is for, such as `"finetune"`.
        ids (`str`): task ids or parameter names.

    Returns:
        `int`: 63 bits of a SHA-256.

    Example:

    ```python
    >>> derive_seed(0, "finetune", "user_17") == derive_seed(0, "finetune", "user_17")
    True
    >>> derive_seed(0, "finetune", "user_17") == derive_seed(0, "finetune", "user_18")
    False

    ```
    """
    digest = hashlib.sha256()
    for part in (str(run_seed), purpose, *ids):
        data = part.encode("utf-8")
        # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a seed and give every generator its former state back.

    Blocks of several threads run one after the other.

    Args:
        seed (`int`): for Python's, numpy's and torch's generators (all devices).
    """
    with _GUARD.lock:
        python_state, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)


@contextmanager
def deterministic(num_threads: int | None = None) -> Iterator[None]:
    """Run a block with deterministic kernels and a fixed number of threads, then restore what was there.

    TF32 and the non-deterministic attention kernels of CUDA are off inside; cuBLAS gets a fixed workspace. What the
    caller has set around it (see `undisturbed`) does not reach inside, and gradients are on. Blocks of several threads
    run one after the other.

    Args:
        num_threads (`int`, *optional*): CPU threads of torch; `None` keeps their present number. Sums are split
            among the threads, so their number shows in the bits.
    """
    with _GUARD.lock:
        threads = torch.get_num_threads()
        switch = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        kept_cudnn = (cudnn.deterministic, cudnn.benchmark)
        kept_cuda = (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        )
        # Read by cuBLAS when its first handle is made; a value the user has set already is deterministic or theirs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
        try:
            if num_threads is not None:
                torch.set_num_threads(num_threads)
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
            cuda.enable_flash_sdp(False)
            cuda.enable_mem_efficient_sdp(False)
            cuda.enable_cudnn_sdp(False)
            with undisturbed(), _usual_kernels(), _full_precision(), torch.enable_grad():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(switch[0], warn_only=switch[1])
            cudnn.deterministic, cudnn.benchmark = kept_cudnn
            cuda.enable_flash_sdp(kept_cuda[0])
            cuda.enable_mem_efficient_sdp(kept_cuda[1])
            cuda.enable_cudnn_sdp(kept_cuda[2])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a block, or as a decorator a function, outside of what the caller has set for code around it.

    That is autocast, inference mode, the default type and the default device of new tensors. Models are loaded, made
    and trained in here; whether the caller wants gradients is left alone.
    """
    with ExitStack() as stack:
        # Tensors that are made in inference mode can never be trained.
        if torch.is_inference_mode_enabled():
            wants_gradients = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(wants_gradients))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # Asked first: a mode for devices costs time in every call of torch.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _usual_kernels() -> Iterator[None]:
    """Choose kernels as a torch does that nobody has set anything in."""
    backends = torch.backends
    usual = (
        (backends.mkldnn, "enabled", True),
        (backends.cudnn, "enabled", True),
        (backends.opt_einsum, "enabled", backends.opt_einsum.is_available()),
        (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        (backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    )
    with ExitStack() as stack:
        for owner, name, value in usual:
            before = getattr(owner, name, None)
            if before is not None and before != value:
                stack.callback(setattr, owner, name, before)
                setattr(owner, name, value)
        if not backends.cuda.math_sdp_enabled():
            stack.callback(backends.cuda.enable_math_sdp, False)
            backends.cuda.enable_math_sdp(True)
        # torch has no word for whether the processor rounds its smallest numbers to 0.
        if float(torch.tensor(1e-40) * 1) == 0:
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep fp32 products in fp32, on the CPU too, where `set_float32_matmul_precision` also lowers them.

    torch has two sets of switches: one for all and, since 2.9, one per backend and operation. It refuses to read the
    first where they disagree, so each is restored as far as it could be read.
    """
    backends = torch.backends
    owners: list[Any] = [
        getattr(getattr(backends, backend, None), operation, None)
        for backend, operations in (
            ("cuda", ("matmul",)),
            ("cudnn", ("conv", "rnn")),
            ("mkldnn", ("matmul", "conv", "rnn")),
        )
        for operation in operations
    ]
    kept = [(owner, owner.fp32_precision) for owner in owners if _has_precision(owner)]
    precision = _readable(torch.get_float32_matmul_precision)
    cudnn_tf32 = _readable(lambda: backends.cudnn.allow_tf32)
    try:
        if precision is not None:
            torch.set_float32_matmul_precision("highest")
        if cudnn_tf32 is not None:
            backends.cudnn.allow_tf32 = False
        for owner, _ in kept:
            owner.fp32_precision = "ieee"
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if cudnn_tf32 is not None:
            backends.cudnn.allow_tf32 = cudnn_tf32
        for owner, value in kept:
            owner.fp32_precision = value


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except RuntimeError:
        return None


def _has_precision(owner: Any) -> bool:
    # An older torch refuses the unknown attribute with an AttributeError of its own making.
    try:
        return isinstance(owner.fp32_precision, str)
    except AttributeError:
        return False


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
    def capture(cls, device: torch.device, num_threads: int | None = None, *, portable: bool = False) -> Environment:
        """Read the fingerprint of this process.

        Args:
            device (`torch.device`): the device that trains.
            num_threads (`int`, *optional*): the number that `deterministic` will set.
            portable (`bool`): the recipe asks for bits that do not depend on the processor.

        Raises:
            RecipeError: if it does, and the libraries are not held to one instruction set.
        """
        if portable:
            _require_portable(device)
        build = torch.version.git_version or "unknown"
        return cls(
            framework=f"torch {torch.__version__} ({build[:12]})",
            models=f"transformers {_release('transformers')}",
            libraries={name: _release(name) for name in _LIBRARIES},
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

    def require(self, recorded: Environment) -> None:
        """Check that this environment is the recorded one.

        Raises:
            EnvironmentMismatchError: naming every difference.
        """
        ours, theirs = _flat(self.to_dict()), _flat(recorded.to_dict())
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        odd = [
            f"{key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
            for key in keys
            if theirs.get(key) != ours.get(key)
        ]
        if odd:
            raise EnvironmentMismatchError(
                "The model was merged in another environment, where retraining gives other bits ("
                + "; ".join(odd)
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
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX2":
        raise RecipeError(
            f"portable=True needs torch's AVX2 kernels, but torch uses {found}: it was loaded before the settings, or "
            "the processor lacks AVX2."
        )


def _kernels(device: torch.device, portable: bool) -> str:
    if device.type == "cuda":
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
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
        found: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
            if not line.strip():
                break
        parts = [found.get("model name", ""), found.get("cpu family", ""), found.get("model", "")]
        if any(parts):
            return " ".join(part for part in parts if part)
    return platform.processor() or "unknown"
