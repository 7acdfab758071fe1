"""The merged delta: a sum of integer task vectors with a proven range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from hf_clamu.errors import FixedPointOverflowError
from hf_clamu.exact.digest import digest_tensors

__all__ = ["DeltaAccumulator", "TaskVector", "narrowest_dtype"]

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskVector:
    """One task's vector `n_t` on the integer grid, and what the ledger keeps of it.

    Args:
        steps (*dict* of `str` to `torch.Tensor`, int32 or int64):
            One tensor per trained parameter, in grid steps, in the narrowest type that holds it.
        digest (`str`): SHA-256 of `steps`.
        bounds (*dict* of `str` to `int`): `max |n_t|` per parameter.
    """

    steps: dict[str, torch.Tensor]
    digest: str
    bounds: dict[str, int]

    @classmethod
    def of(cls, steps: dict[str, torch.Tensor]) -> TaskVector:
        """Bound, narrow and digest integer tensors."""
        bounds = {name: max(int(n.max()), -int(n.min())) if n.numel() else 0 for name, n in steps.items()}
        steps = {name: n.to(narrowest_dtype(bounds[name])) for name, n in steps.items()}
        return cls(steps=steps, digest=digest_tensors(steps), bounds=bounds)


def narrowest_dtype(bound: int) -> torch.dtype:
    """Return int32 if every value up to `bound` fits, else int64.

    The choice looks at the bound (a sum over tasks), never at the values: the bound is a function of the set of
    tasks, whatever the order in which they came and went.
    """
    return torch.int32 if bound <= _INT32_MAX else torch.int64


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
    """Sum of task vectors in int64, with a bound per parameter that proves that nothing wrapped around.

    Args:
        shapes (*mapping* of `str` to `torch.Size`): the parameters that take part.

    Example:

    ```python
    >>> total = DeltaAccumulator({"w": torch.Size([2])})
    >>> vector = TaskVector.of({"w": torch.tensor([3, -4])})
    >>> total.add(vector)
    >>> total.narrowed()["w"], total.bounds
    (tensor([ 3, -4], dtype=torch.int32), {'w': 4})
    >>> total.subtract(vector)
    >>> total.narrowed()["w"], total.bounds
    (tensor([0, 0], dtype=torch.int32), {'w': 0})

    ```
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self._total = {name: torch.zeros(shapes[name], dtype=torch.int64) for name in sorted(shapes)}
        self._bounds = dict.fromkeys(self._total, 0)

    @classmethod
    def restore(cls, total: Mapping[str, torch.Tensor], bounds: Iterable[Mapping[str, int]]) -> DeltaAccumulator:
        """Go on with a saved sum.

        Args:
            total (*mapping* of `str` to `torch.Tensor`, integer): the saved sum.
            bounds (*iterable* of *mapping* of `str` to `int`): the bounds of each task in it.

        Raises:
            FixedPointOverflowError: if the sum could have left int64.
        """
        return cls.adopt({name: n.to(torch.int64, copy=True) for name, n in total.items()}, bounds)

    @classmethod
    def adopt(cls, total: Mapping[str, torch.Tensor], bounds: Iterable[Mapping[str, int]]) -> DeltaAccumulator:
        """Go on with a sum that is the accumulator's own from now on; as `restore`, without a copy.

        Args:
            total (*mapping* of `str` to `torch.Tensor`, int64): the sum.
            bounds (*iterable* of *mapping* of `str` to `int`): the bounds of each task in it.

        Raises:
            FixedPointOverflowError: if the sum could have left int64.
        """
        accumulator = cls({})
        accumulator._total = {name: total[name] for name in sorted(total)}
        accumulator._bounds = dict.fromkeys(accumulator._total, 0)
        for task_bounds in bounds:
            for name, bound in task_bounds.items():
                accumulator._bounds[name] += bound
        for name, bound in accumulator._bounds.items():
            _require_range(name, bound)
        return accumulator

    @property
    def bounds(self) -> dict[str, int]:
        """Per parameter, the sum of the tasks' `max |n_t|`: no entry of the sum can be larger."""
        return dict(self._bounds)

    @property
    def steps(self) -> dict[str, torch.Tensor]:
        """The sum itself, int64 per parameter; not a copy."""
        return self._total

    def add(self, vector: IntegerSum) -> None:
        """Add a task vector, or a sum of them.

        Raises:
            FixedPointOverflowError: if the sum could leave int64; nothing is added then.
        """
        self._check_fit(vector)
        for name, bound in vector.bounds.items():
            _require_range(name, self._bounds[name] + bound)
        for name, n in vector.steps.items():
            self._total[name].add_(n.to(self._total[name].device))
            self._bounds[name] += vector.bounds[name]

    def subtract(self, vector: IntegerSum) -> None:
        """Take a task vector, or a sum of them, out again; the exact inverse of `add`."""
        self._check_fit(vector)
        for name, n in vector.steps.items():
            self._total[name].sub_(n.to(self._total[name].device))
            self._bounds[name] -= vector.bounds[name]

    def narrowed(self) -> dict[str, torch.Tensor]:
        """Return a copy of the sum in the narrowest integer type that the bounds allow.

        Returns:
            *dict* of `str` to `torch.Tensor`, int32 or int64 per parameter.
        """
        return {name: n.to(narrowest_dtype(self._bounds[name]), copy=True) for name, n in self._total.items()}

    def _check_fit(self, vector: IntegerSum) -> None:
        if vector.steps.keys() != self._total.keys():
            odd = sorted(vector.steps.keys() ^ self._total.keys())
            raise ValueError(f"The task vector and the sum differ in parameters: {odd[:5]}.")
        for name, n in vector.steps.items():
            # Before anything is added: add_ would broadcast a smaller tensor, or stop halfway.
            if n.shape != self._total[name].shape:
                raise ValueError(
                    f"The task vector of {name!r} has shape {tuple(n.shape)}, the sum has "
                    f"{tuple(self._total[name].shape)}."
                )


def _require_range(name: str, bound: int) -> None:
    if bound > _INT64_MAX:
        raise FixedPointOverflowError(
            f"The merged delta of {name!r} could reach {bound} grid steps, but int64 holds {_INT64_MAX}. Choose fewer "
            "fraction_bits."
        )
