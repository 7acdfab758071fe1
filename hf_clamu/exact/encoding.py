"""Weights to a task vector: rounded, bounded and digested several parameters at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from hf_clamu.exact.accumulator import TaskVector, narrowed
from hf_clamu.exact.digest import content_of, digest_tensors
from hf_clamu.exact.fixed_point import FixedPoint
from hf_clamu.exact.threads import WORTH_A_THREAD, Beside

__all__ = ["encode_vector"]


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
            they must stay as they are until this returns.
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
    old = {} if room is None else room
    with _one_thread_each(theta_0), Beside() as beside:
        begun = {
            name: beside.run(theta.nbytes, _encode, codec, name, theta, theta_0[name], old.get(name))
            # Large ones first, so that all threads end together.
            for name, theta in sorted(weights, key=lambda item: -item[1].numel())
        }
        assert begun.keys() == theta_0.keys(), "every parameter came"
        found = {name: begun[name]() for name in sorted(begun)}
    if room is not None:
        room.update((name, one.steps) for name, one in found.items() if one.steps.dtype == torch.int32)
    steps = {name: one.host for name, one in found.items()}
    return TaskVector(
        steps=steps,
        digest=digest_tensors(steps, {name: one.content for name, one in found.items()}),
        bounds={name: one.bound for name, one in found.items()},
    )


class _Encoded(NamedTuple):
    steps: torch.Tensor
    host: torch.Tensor
    bound: int
    content: bytes


@contextmanager
def _one_thread_each(theta_0: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let torch use one thread per parameter: as many parameters as there are cores are worked on at a time.

    Each entry is computed by itself, so threads cannot show in the bits here.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or all(theta.nbytes < WORTH_A_THREAD for theta in theta_0.values()):
        yield
        return
    torch.set_num_threads(1)  # noqa: TID251 - for a moment in which nothing is computed whose bits depend on it
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)  # noqa: TID251


def _encode(
    codec: FixedPoint, name: str, theta: torch.Tensor, theta_0: torch.Tensor, room: torch.Tensor | None
) -> _Encoded:
    theta_0 = theta_0.to(theta.device)
    if room is not None and (room.shape != theta.shape or room.device != theta.device):
        room = None
    found = codec.encode_int32(theta, theta_0, out=room) if theta.shape == theta_0.shape else None
    n, bound = found or narrowed(codec.encode(name, theta, theta_0))
    host = n.cpu()
    return _Encoded(steps=n, host=host, bound=bound, content=content_of(host))
