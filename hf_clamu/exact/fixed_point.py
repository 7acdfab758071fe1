"""Task vectors as integers on a fixed grid, so that sums can be undone exactly.

Floating-point sums depend on their order and cannot be undone: after one of 500 fp32 vectors is subtracted, most
entries differ from a sum that never held it. Sums of integers are associative, commutative and invertible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hf_clamu.errors import FixedPointOverflowError, RecipeError
from hf_clamu.exact.passes import bits_dtype, entries_per_pass

__all__ = ["FixedPoint", "fraction_bits_for"]

# |n| < 2**62 leaves one bit of room, so that a single add can never wrap around before it is checked.
_LIMIT = float(2**62)
# Elements per pass: the float64 temporaries of a pass stay in the cache, and torch gives none of its operations to
# several threads (it does above 2**15), which wait for each other longer than one of them takes.
_CHUNK = 1 << 15
# Elements per pass of `encode_into`.
_NARROW_CHUNK = 1 << 18
_MOST_BITS = 52
# The largest movement has this many bits: it is 64 to 127 steps.
_BITS_OF_MOVEMENT = 7
# Added to a float64 below 2**51, or a float32 below 2**22, it leaves no bits behind the point: the sum is rounded to
# an integer, halves to even, which stands in its low bits.
_ROUNDERS = {torch.float64: 1.5 * 2.0**52, torch.float32: 1.5 * 2.0**23}
_LIMITS = {torch.float64: 2**31 - 1, torch.float32: 2**22 - 1}


def fraction_bits_for(movement: float) -> int:
    """Return the bits of a grid that suits weights which move by so much at most.

    The most bits with which `movement` is less than 128 steps, so that it is 64 steps or more: rounding errs by half a
    step, 1/128 of `movement` at most, and vectors of weights that keep to it fit int8.

    Args:
        movement (`float`): above 0, in weight units: for AdamW the sum of its learning rates.

    Example:

    ```python
    >>> fraction_bits_for(20 * 1e-3), 2**12 * 20 * 1e-3
    (12, 81.92)

    ```
    """
    _, exponent = math.frexp(movement)  # movement is below 2**exponent, and at least half of it
    return min(max(_BITS_OF_MOVEMENT - exponent, 0), _MOST_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedPoint:
    """The grid `q = 2**-fraction_bits` on which task vectors are rounded.

    The grid is fixed before the first task and never derived from data: a scale taken from data would carry a trace
    of every task that took part in choosing it.

    Args:
        fraction_bits (`int`, *optional*, defaults to 28):
            Bits behind the binary point, 0 to 52. With 28, one step is 3.7e-9 and sums up to 8 fit into int32.
        least_bits (`int`, *optional*, defaults to 8):
            Task vectors and their sums are kept and hashed in integers of at least so many bits: 8, or 32 as in models
            of formats 1 and 2, which also took all differences in float64.

    Raises:
        RecipeError: if a value is out of range.

    Example:

    ```python
    >>> codec = FixedPoint(fraction_bits=28)
    >>> n = codec.encode("weight", torch.tensor([1.5]), torch.tensor([1.0]))
    >>> n, codec.decode(n)
    (tensor([134217728]), tensor([0.5000], dtype=torch.float64))

    ```
    """

    fraction_bits: int = field(default=28, metadata={"help": "Bits behind the binary point of the integer grid."})
    least_bits: int = field(default=8, metadata={"help": "Width of the narrowest integers."})

    def __post_init__(self) -> None:
        if not isinstance(self.fraction_bits, int) or not 0 <= self.fraction_bits <= _MOST_BITS:
            raise RecipeError(
                f"fraction_bits must be a whole number from 0 to {_MOST_BITS}, got {self.fraction_bits!r}."
            )
        if self.least_bits not in (8, 32):
            raise RecipeError(f"integer_bits must be 8 or 32, got {self.least_bits!r}.")

    @property
    def step(self) -> float:
        """The distance `q` of two neighbouring grid points, in weight units."""
        return float(2.0**-self.fraction_bits)

    def encode(
        self, name: str, theta: torch.Tensor, theta_0: torch.Tensor, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round a task vector to the grid: `n = round((theta - theta_0) / q)`, halves to even.

        The difference is taken in float32, which holds narrower types exactly, and in float64 if one is float64.

        Args:
            name (`str`): the parameter's name, for the error message.
            theta (`torch.Tensor` of shape `(*)`, floating point): the finetuned parameter.
            theta_0 (`torch.Tensor` of shape `(*)`, floating point): the parameter of the base model.
            out (`torch.Tensor` of shape `(*)`, int64, *optional*): receives the result.

        Returns:
            `torch.Tensor` of shape `(*)`, int64: grid steps.

        Raises:
            FixedPointOverflowError: if a value is NaN, infinite, or reaches 2**62 steps.
        """
        if theta.shape != theta_0.shape:
            raise ValueError(f"{name}: theta has shape {tuple(theta.shape)}, theta_0 has {tuple(theta_0.shape)}.")
        if out is not None and (out.dtype != torch.int64 or out.shape != theta.shape):
            raise ValueError(
                f"{name}: out must be int64 of shape {tuple(theta.shape)}, found {out.dtype} of {tuple(out.shape)}."
            )
        n = torch.empty(theta.shape, dtype=torch.int64, device=theta.device) if out is None else out
        flat_n, flat, flat_0 = n.view(-1), theta.detach().reshape(-1), theta_0.detach().reshape(-1)
        size = entries_per_pass(theta.device, _CHUNK)
        for start in range(0, flat_n.numel(), size):
            part = slice(start, start + size)
            # Scaling by 2**k is exact.
            if self._subtracts_in_float32(theta, theta_0):
                moved = (flat[part].float() - flat_0[part].float()).to(torch.float64)
            else:
                moved = flat[part].to(torch.float64, copy=True).sub_(flat_0[part])
            steps = moved.mul_(2.0**self.fraction_bits).round_()
            largest = float(steps.abs().max())
            if not largest < _LIMIT:  # also true for NaN
                error = FixedPointOverflowError(
                    f"Parameter {name!r} moved by {largest * self.step:g} from the base model, but the grid of "
                    f"2**-{self.fraction_bits} holds less than {_LIMIT * self.step:g}. The finetuning diverged, or "
                    "fraction_bits is too large: lower the learning rate, or choose fewer fraction_bits."
                )
                error.parameter = name
                raise error
            flat_n[part] = steps.to(torch.int64)
        return n

    def encode_into(self, theta: torch.Tensor, theta_0: torch.Tensor, out: torch.Tensor) -> int | None:
        """As `encode`, in a fraction of the time and memory, for steps that fit int32.

        Args:
            theta (`torch.Tensor` of shape `(*)`, floating point): the finetuned parameter.
            theta_0 (`torch.Tensor` of shape `(*)`, floating point): the parameter of the base model.
            out (`torch.Tensor` of shape `(*)`, int8, int16 or int32, contiguous): receives the steps, if they fit;
                otherwise it holds nothing of use.

        Returns:
            `int`: the largest of the steps, `max |n|`. If it does not fit `out`, there may be larger ones: call again
            with wider integers. `None` if one is NaN or does not fit int32: call `encode` instead.
        """
        # float32 takes half the time, where its digits are enough.
        kinds = [torch.float32, torch.float64] if self._subtracts_in_float32(theta, theta_0) else [torch.float64]
        for kind in kinds:
            low, high = self._round_into(theta, theta_0, out, kind)
            if -_LIMITS[kind] <= low and high <= _LIMITS[kind]:  # not for NaN
                return max(int(high), -int(low))
        return None

    def _round_into(
        self, theta: torch.Tensor, theta_0: torch.Tensor, out: torch.Tensor, kind: torch.dtype
    ) -> tuple[float, float]:
        """Write the low bits of the steps, and return the least and the largest step.

        On a CPU it ends with the first pass whose steps do not fit; an accelerator would have to wait at each pass.
        """
        flat_n, flat, flat_0 = out.view(-1), theta.detach().reshape(-1), theta_0.detach().reshape(-1)
        if not flat_n.numel():
            return 0.0, 0.0
        size = min(flat_n.numel(), entries_per_pass(theta.device, _NARROW_CHUNK))
        work, origin = torch.empty(2, size, dtype=kind, device=theta.device)
        rounder, integer = torch.tensor(_ROUNDERS[kind], dtype=kind), bits_dtype(kind)
        in_float32 = self._subtracts_in_float32(theta, theta_0)
        room = min(_LIMITS[kind], torch.iinfo(out.dtype).max) if theta.device.type == "cpu" else None
        extremes = []
        for part, tuned, initial in zip(flat_n.split(size), flat.split(size), flat_0.split(size), strict=True):
            moved = work[: part.numel()]
            if not in_float32:
                moved.copy_(tuned).sub_(origin[: part.numel()].copy_(initial))
            elif kind == torch.float32:
                torch.sub(tuned.float(), initial.float(), out=moved)
            else:
                moved.copy_(tuned.float() - initial.float())
            # As in `encode`: scaling is exact, and the sum is rounded.
            torch.add(rounder, moved, alpha=2.0**self.fraction_bits, out=moved)
            least, largest = moved.aminmax()
            extremes.append(torch.stack([least, largest]))
            # Not for NaN either.
            if (
                room is not None
                and not -room <= float(least) - _ROUNDERS[kind] <= float(largest) - _ROUNDERS[kind] <= room
            ):
                break
            bits = moved.view(integer)
            # The lowest bits of the rounder's own are zeros: 22 of float32, and 51 of float64.
            part.copy_(bits.sub_(rounder.view(integer)) if part.dtype == integer else bits)
        lowest, highest = torch.stack(extremes).double().unbind(1)
        return float(lowest.min()) - _ROUNDERS[kind], float(highest.max()) - _ROUNDERS[kind]

    def _subtracts_in_float32(self, theta: torch.Tensor, theta_0: torch.Tensor) -> bool:
        """Whether `theta - theta_0` is rounded to float32, by 2**-24 of itself; models of formats 1 and 2 did not."""
        return self.least_bits == 8 and torch.float64 not in (theta.dtype, theta_0.dtype)

    def decode(self, n: torch.Tensor) -> torch.Tensor:
        """Return grid steps as weight units.

        Args:
            n (`torch.Tensor` of shape `(*)`, integer): grid steps.

        Returns:
            `torch.Tensor` of shape `(*)`, float64.
        """
        return n.to(torch.float64).mul_(self.step)

    def apply(self, theta_0: torch.Tensor, n: torch.Tensor, alpha: float, dtype: torch.dtype) -> torch.Tensor:
        """Return `theta_0 + alpha * n * q`, computed in float64 and then cast.

        Multiplication and addition are separate operations on purpose: a fused multiply-add rounds differently on
        processors that have it.

        Args:
            theta_0 (`torch.Tensor` of shape `(*)`, floating point): the base model's parameter.
            n (`torch.Tensor` of shape `(*)`, integer): the merged delta in grid steps.
            alpha (`float`): the scaling coefficient.
            dtype (`torch.dtype`): of the result.

        Returns:
            `torch.Tensor` of shape `(*)` and dtype `dtype`.
        """
        if theta_0.shape != n.shape:
            raise ValueError(f"theta_0 has shape {tuple(theta_0.shape)}, the delta has {tuple(n.shape)}.")
        result = torch.empty(theta_0.shape, dtype=dtype, device=theta_0.device)
        flat, flat_0, flat_n = result.view(-1), theta_0.detach().reshape(-1), n.reshape(-1)
        if not flat.numel():
            return result
        scale, size = alpha * self.step, min(flat.numel(), entries_per_pass(theta_0.device, _CHUNK))
        steps, base = torch.empty(2, size, dtype=torch.float64, device=theta_0.device)
        for part, moved, initial in zip(flat.split(size), flat_n.split(size), flat_0.split(size), strict=True):
            scaled = steps[: part.numel()].copy_(moved).mul_(scale)
            part.copy_(scaled.add_(base[: part.numel()].copy_(initial)))
        return result
