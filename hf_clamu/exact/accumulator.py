"""The merged delta: a sum of integer task vectors with a proven range."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hf_clamu.errors import FixedPointOverflowError
from hf_clamu.exact.digest import digest_tensors
from hf_clamu.exact.threads import one_thread_each

__all__ = ["LEAST_BITS", "DeltaAccumulator", "IntegerSum", "TaskVector", "VectorSum", "narrowest_dtype"]

_INT64_MAX = 2**63 - 1
# The fewest bits that integers are kept in; models of formats 1 and 2 have 32.
LEAST_BITS = 8
_TYPES = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
# Entries per pass.
_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskVector:
    """One task's vector `n_t` on the integer grid, and what the ledger keeps of it.

    Args:
        steps (*dict* of `str` to `torch.Tensor`, int8 to int64):
            One tensor per trained parameter, in grid steps, in the narrowest type that holds it.
        digest (`str`): SHA-256 of `steps`.
        bounds (*dict* of `str` to `int`): `max |n_t|` per parameter.
    """

    steps: dict[str, torch.Tensor]
    digest: str
    bounds: dict[str, int]

    @classmethod
    def of(
        cls, steps: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]], least_bits: int = LEAST_BITS
    ) -> TaskVector:
        """Bound, narrow and digest integer tensors, one after the other.

        Args:
            steps (*mapping* of `str` to `torch.Tensor`, or *iterable* of pairs): integers by parameter.
            least_bits (`int`): as in `narrowest_dtype`.
        """
        pairs = steps.items() if isinstance(steps, Mapping) else steps
        bounds: dict[str, int] = {}
        narrow: dict[str, torch.Tensor] = {}
        for name, n in pairs:
            narrow[name], bounds[name] = narrowed(n, least_bits)
        return cls(steps=narrow, digest=digest_tensors(narrow), bounds=bounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSum:
    """A sum of task vectors that was computed before, such as one that is mapped from a file.

    Args:
        steps (*mapping* of `str` to `torch.Tensor`, integer): grid steps.
        bounds (*mapping* of `str` to `int`): no entry of a parameter is larger.
    """

    steps: Mapping[str, torch.Tensor]
    bounds: Mapping[str, int]

    @classmethod
    def of(cls, steps: Mapping[str, torch.Tensor], bounds: Iterable[Mapping[str, int]]) -> VectorSum:
        """Bound a sum by the bounds of each task in it."""
        total = dict.fromkeys(steps, 0)
        for task_bounds in bounds:
            for name, bound in task_bounds.items():
                total[name] += bound
        return cls(steps=steps, bounds=total)


def narrowest_dtype(bound: int, least_bits: int = LEAST_BITS) -> torch.dtype:
    """Return the narrowest integer type that holds every value up to `bound` and down to `-bound`.

    The choice looks at the bound (a sum over tasks), never at the values: the bound is a function of the set of
    tasks, whatever the order in which they came and went.

    Args:
        bound (`int`): at most 2**63 - 1.
        least_bits (`int`): the width of the narrowest type to choose from: 8, 16, 32 or 64.

    Example:

    ```python
    >>> narrowest_dtype(127), narrowest_dtype(128), narrowest_dtype(127, least_bits=32)
    (torch.int8, torch.int16, torch.int32)

    ```
    """
    return next((kind for bits, kind in _TYPES.items() if bits >= least_bits and bound < 2 ** (bits - 1)), torch.int64)


def narrowed(n: torch.Tensor, least_bits: int = LEAST_BITS) -> tuple[torch.Tensor, int]:
    """Return integers in the narrowest type that holds them, and the largest of them, `max |n|`."""
    bound = max(int(n.max()), -int(n.min())) if n.numel() else 0
    return n.to(narrowest_dtype(bound, least_bits)), bound


class IntegerSum(Protocol):
    """What can be added: integer tensors by parameter, each with a bound on its entries."""

    @property
    def steps(self) -> Mapping[str, torch.Tensor]:
        """Grid steps, one tensor per parameter."""
        ...

    @property
    def bounds(self) -> Mapping[str, int]:
        """No entry of a parameter is larger."""
        ...


class DeltaAccumulator:
    """Sum of task vectors with a bound per parameter that proves that nothing wrapped around.

    A parameter is summed in the narrowest type that its bound allows, and in wider ones as the bound grows. The width
    cannot show in the values.

    Args:
        shapes (*mapping* of `str` to `torch.Size`): the parameters that take part.
        folder (`Path`, *optional*): keep the sum in a file there instead of in memory. The file has no name and is
            deleted with the accumulator.
        least_bits (`int`): as in `narrowest_dtype`.

    Raises:
        OSError: if the disk is full.

    Example:

    ```python
    >>> total = DeltaAccumulator({"w": torch.Size([2])})
    >>> vector = TaskVector.of({"w": torch.tensor([3, -4])})
    >>> total.add(vector)
    >>> total.narrowed()["w"], total.bounds
    (tensor([ 3, -4], dtype=torch.int8), {'w': 4})
    >>> total.subtract(vector)
    >>> total.narrowed()["w"], total.bounds
    (tensor([0, 0], dtype=torch.int8), {'w': 0})

    ```
    """

    def __init__(
        self, shapes: Mapping[str, torch.Size], folder: Path | None = None, *, least_bits: int = LEAST_BITS
    ) -> None:
        self._folder = folder
        self._least_bits = least_bits
        self._total = _zeros(shapes, narrowest_dtype(0, least_bits), folder)
        self._bounds = dict.fromkeys(self._total, 0)

    @classmethod
    def restore(
        cls,
        total: Mapping[str, torch.Tensor],
        bounds: Iterable[Mapping[str, int]],
        folder: Path | None = None,
        *,
        least_bits: int = LEAST_BITS,
    ) -> DeltaAccumulator:
        """Continue a saved sum.

        Args:
            total (*mapping* of `str` to `torch.Tensor`, integer): the saved sum; it is copied.
            bounds (*iterable* of *mapping* of `str` to `int`): the bounds of each task in it.
            folder (`Path`, *optional*): keep the sum in a file there.
            least_bits (`int`): as in `narrowest_dtype`.

        Raises:
            FixedPointOverflowError: if the sum could have left int64.
            OSError: if the disk is full.
        """
        accumulator = cls({name: n.shape for name, n in total.items()}, folder, least_bits=least_bits)
        accumulator.add(VectorSum.of(total, bounds))
        return accumulator

    @property
    def bounds(self) -> dict[str, int]:
        """Per parameter, the sum of the tasks' `max |n_t|`: no entry of the sum can be larger."""
        return dict(self._bounds)

    @property
    def steps(self) -> dict[str, torch.Tensor]:
        """The sum itself, int8 to int64 per parameter; not a copy."""
        return self._total

    def add(self, vector: IntegerSum) -> None:
        """Add a task vector, or a sum of them.

        Raises:
            FixedPointOverflowError: if the sum could leave int64; nothing is added then.
        """
        self._check_fit(vector)
        self._reserve({name: self._bounds[name] + bound for name, bound in vector.bounds.items()})
        self._add_all(vector, 1)

    def subtract(self, vector: IntegerSum) -> None:
        """Take a task vector, or a sum of them, out again; the exact inverse of `add`."""
        self._check_fit(vector)
        self._add_all(vector, -1)

    def release(self) -> None:
        """Give the memory back; the sum is gone."""
        self._total, self._bounds = {}, {}

    def reduce(
        self, add_up: Callable[[Mapping[str, torch.Tensor]], None], bounds: Iterable[Mapping[str, int]]
    ) -> None:
        """Add the sums of other processes.

        Args:
            add_up (*callable*): adds integer tensors over all processes, in place.
            bounds (*iterable* of *mapping* of `str` to `int`): the bounds of each task of all processes.

        Raises:
            FixedPointOverflowError: if the sum could leave int64; nothing is added then.
        """
        total_bounds = VectorSum.of(self._total, bounds).bounds
        self._reserve(total_bounds)
        # The bounds of all are the same everywhere, so the types are. Libraries that add up over processes know no
        # integers of 16 bits.
        self._total = {
            name: total.to(narrowest_dtype(total_bounds[name], max(32, self._least_bits)))
            for name, total in self._total.items()
        }
        add_up(self._total)
        self._bounds = dict(total_bounds)

    def narrowed(self, *, copy: bool = True) -> dict[str, torch.Tensor]:
        """Return the sum in the narrowest integer type that the bounds allow.

        Args:
            copy (`bool`): without it, what is in that type already is the sum itself.

        Returns:
            *dict* of `str` to `torch.Tensor`, int8 to int64 per parameter.
        """
        return {
            name: n.to(narrowest_dtype(self._bounds[name], self._least_bits), copy=copy)
            for name, n in self._total.items()
        }

    def _add_all(self, vector: IntegerSum, sign: int) -> None:
        """Add `sign` times a vector, several parameters at a time."""
        with one_thread_each(n.nbytes for n in vector.steps.values()) as pool:
            # Large ones first, so that all threads end together.
            ends = [
                pool.submit(n.nbytes, _add, self._total[name], n, sign)
                for name, n in sorted(vector.steps.items(), key=lambda item: -item[1].nbytes)
            ]
            for end in ends:
                end()
        for name, bound in vector.bounds.items():
            self._bounds[name] += sign * bound

    def _reserve(self, bounds: Mapping[str, int]) -> None:
        """Make the sum wide enough for entries up to these bounds."""
        for name, bound in bounds.items():
            _require_range(name, bound)
        growing: dict[torch.dtype, dict[str, torch.Size]] = {}
        for name, bound in bounds.items():
            total, dtype = self._total[name], narrowest_dtype(bound, self._least_bits)
            if dtype.itemsize > total.dtype.itemsize:
                growing.setdefault(dtype, {})[name] = total.shape
        for dtype, shapes in growing.items():
            for name, wide in _zeros(shapes, dtype, self._folder).items():
                self._total[name] = wide.copy_(self._total[name])

    def _check_fit(self, vector: IntegerSum) -> None:
        if vector.steps.keys() != self._total.keys():
            unequal = sorted(vector.steps.keys() ^ self._total.keys())
            raise ValueError(f"The task vector and the sum differ in parameters: {unequal[:5]}.")
        for name, n in vector.steps.items():
            # Before anything is added: add_ would broadcast a smaller tensor, or stop halfway.
            if n.shape != self._total[name].shape:
                raise ValueError(
                    f"The task vector of {name!r} has shape {tuple(n.shape)}, the sum has "
                    f"{tuple(self._total[name].shape)}."
                )


def _add(total: torch.Tensor, n: torch.Tensor, sign: int = 1) -> None:
    if total.dtype == n.dtype:
        total.add_(n, alpha=sign)
        return
    # In passes that stay in the cache: torch would widen a whole tensor first, in memory that is new each time.
    flat, flat_n = total.view(-1), n.reshape(-1)
    wide = torch.empty(min(flat.numel(), _CHUNK), dtype=total.dtype, device=total.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.add_(wide[: part.numel()].copy_(flat_n[start : start + _CHUNK]), alpha=sign)


def _zeros(shapes: Mapping[str, torch.Size], dtype: torch.dtype, folder: Path | None) -> dict[str, torch.Tensor]:
    names = sorted(shapes)
    sizes = [shapes[name].numel() for name in names]
    # Elsewhere files cannot be reserved, or not without a name.
    if folder is None or sum(sizes) == 0 or sys.platform != "linux":
        return {name: torch.zeros(shapes[name], dtype=dtype) for name in names}
    parts = _mapped(sum(sizes), dtype, folder).split(sizes)
    return {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}


def _mapped(size: int, dtype: torch.dtype, folder: Path) -> torch.Tensor:
    handle, path = tempfile.mkstemp(prefix=".part.", dir=folder)
    try:
        # Reserved now: a disk that fills up later would end the process at some write to memory.
        os.posix_fallocate(handle, 0, dtype.itemsize * size)
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(handle)
        Path(path).unlink()


def _require_range(name: str, bound: int) -> None:
    if bound > _INT64_MAX:
        raise FixedPointOverflowError(
            f"The merged delta of {name!r} could reach {bound} grid steps, but int64 holds {_INT64_MAX}. Choose fewer "
            "fraction_bits."
        )
