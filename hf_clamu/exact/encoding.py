"""Weights to a task vector, in one pass over memory and with the digest computed beside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from hf_clamu.exact.accumulator import TaskVector, narrowed
from hf_clamu.exact.digest import TensorsDigest
from hf_clamu.exact.fixed_point import FixedPoint

__all__ = ["encode_vector"]

# Entries from which on a change of the number of threads costs less than it gains.
_WORTH_IT = 1 << 18


def encode_vector(
    codec: FixedPoint,
    weights: Iterable[tuple[str, torch.Tensor]],
    theta_0: Mapping[str, torch.Tensor],
    *,
    room: dict[str, torch.Tensor] | None = None,
) -> TaskVector:
    """Round weights' distance from the base model to the grid, and bound and digest it.

    Args:
        codec (`FixedPoint`): the integer grid.
        weights (*iterable* of *tuple* of `str` and `torch.Tensor`): every parameter that takes part, in any order;
            each is read before the next one is asked for.
        theta_0 (*mapping* of `str` to `torch.Tensor`): the base model's parameters.
        room (*dict* of `str` to `torch.Tensor`, *optional*): memory of an earlier vector, which is overwritten; it
            keeps what this one takes.

    Raises:
        FixedPointOverflowError: if a value is NaN, infinite or too far away; the message names the parameter.

    Example:

    ```python
    >>> theta_0 = {"w": torch.zeros(2)}
    >>> vector = encode_vector(FixedPoint(fraction_bits=2), [("w", torch.tensor([1.0, -0.5]))], theta_0)
    >>> vector.steps["w"], vector.bounds
    (tensor([ 4, -2], dtype=torch.int32), {'w': 4})

    ```
    """
    steps: dict[str, torch.Tensor] = {}
    bounds: dict[str, int] = {}
    with TensorsDigest() as digest:
        for name, theta in weights:
            with _one_thread(theta.numel()):
                n, bounds[name] = _encode(codec, name, theta, theta_0[name], None if room is None else room.get(name))
            if room is not None and n.dtype == torch.int32:
                room[name] = n
            steps[name] = n.cpu()
            digest.put(name, steps[name])
        order = sorted(steps)
        return TaskVector(
            steps={name: steps[name] for name in order},
            digest=digest.hexdigest(),
            bounds={name: bounds[name] for name in order},
        )


@contextmanager
def _one_thread(size: int) -> Iterator[None]:
    """Leave the other threads' cores to the digest, which takes longer than the encoding.

    Each entry is computed by itself, so threads cannot show in the bits here.
    """
    num_threads = torch.get_num_threads()
    if size < _WORTH_IT:
        yield
        return
    torch.set_num_threads(1)  # noqa: TID251 - for a moment in which nothing is computed whose bits depend on it
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)  # noqa: TID251


def _encode(
    codec: FixedPoint, name: str, theta: torch.Tensor, theta_0: torch.Tensor, room: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    theta_0 = theta_0.to(theta.device)
    if room is not None and (room.shape != theta.shape or room.device != theta.device):
        room = None
    if theta.shape == theta_0.shape:
        found = codec.encode_int32(theta, theta_0, out=room)
        if found is not None:
            return found
    return narrowed(codec.encode(name, theta, theta_0))
