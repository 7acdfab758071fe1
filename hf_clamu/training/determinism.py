"""The only owner of seeds, threads and deterministic switches.

Whatever the bits of a training run depend on is set here, and recorded in `environment`. Seeds come from names (a
purpose and task ids), never from positions, so the randomness of a task does not depend on which others there are.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from hf_clamu.exact import Guard

__all__ = ["CUBLAS_WORKSPACE", "derive_seed", "derive_seeds", "deterministic", "seeded", "undisturbed"]

T = TypeVar("T")

# Generators, thread counts and switches belong to the whole process, so its threads take turns. A forked child gets a
# free lock.
_GUARD = Guard()

CUBLAS_WORKSPACE = ":4096:8"


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
    return _seed(_hashed(run_seed, purpose, *ids))


def derive_seeds(run_seed: int, purpose: str, *ids: str, each: Iterable[str]) -> list[int]:
    """Derive a seed for each of many last ids, whose common start is hashed once.

    Args:
        run_seed, purpose, ids: as in `derive_seed`.
        each (*iterable* of `str`): the last id of each.

    Example:

    ```python
    >>> derive_seeds(0, "centre", "3", each=["a", "b"])[1] == derive_seed(0, "centre", "3", "b")
    True

    ```
    """
    start = _hashed(run_seed, purpose, *ids)
    seeds = []
    for last in each:
        digest = start.copy()
        digest.update(_framed(last))
        seeds.append(_seed(digest))
    return seeds


def _hashed(run_seed: int, *names: str) -> Any:
    return hashlib.sha256(b"".join(map(_framed, (str(run_seed), *names))))


def _framed(name: str) -> bytes:
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    data = name.encode("utf-8")
    return len(data).to_bytes(8, "little") + data


def _seed(digest: Any) -> int:
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
        # Read by cuBLAS when its first handle is made; a value set by the user is respected.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
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
    and trained in here; whether gradients are on is up to the caller.
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
    """Choose kernels as torch does by default."""
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
        # torch does not tell whether the processor rounds its smallest numbers to 0.
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
    precision = _value_or_none(torch.get_float32_matmul_precision)
    cudnn_tf32 = _value_or_none(lambda: backends.cudnn.allow_tf32)
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


def _value_or_none(read: Callable[[], T]) -> T | None:
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
