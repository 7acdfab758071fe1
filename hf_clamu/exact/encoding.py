"""Weights to a task vector: rounded, bounded and digested several parameters at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from hf_clamu.exact.accumulator import TaskVector, narrowed, narrowest_dtype
from hf_clamu.exact.digest import digest_tensors, value_digest
from hf_clamu.exact.fixed_point import FixedPoint
from hf_clamu.exact.threads import one_thread_each

__all__ = ["encode_vector"]


def encode_vector(
    codec: FixedPoint,
    weights: Iterable[tuple[str, torch.Tensor]],
    theta_0: Mapping[str, torch.Tensor],
    *,
    buffers: dict[str, torch.Tensor] | None = None,
) -> TaskVector:
    """Round weights' distance from the base model to the grid, and bound and digest it.

    Args:
        codec (`FixedPoint`): the integer grid.
        weights (*iterable* of *tuple* of `str` and `torch.Tensor`): every parameter that takes part, in any order;
            they must stay as they are until this returns.
        theta_0 (*mapping* of `str` to `torch.Tensor`): the base model's parameters.
        buffers (*dict* of `str` to `torch.Tensor`, *optional*): memory of an earlier vector, which is overwritten; it
            keeps the memory of this one.

    Raises:
        FixedPointOverflowError: if a value is NaN, infinite or too far away; the message names the parameter.

    Example:

    ```python
    >>> theta_0 = {"w": torch.zeros(2)}
    >>> vector = encode_vector(FixedPoint(fraction_bits=2), [("w", torch.tensor([1.0, -0.5]))], theta_0)
    >>> vector.steps["w"], vector.bounds
    (tensor([ 4, -2], dtype=torch.int8), {'w': 4})

    ```
    """
    old = {} if buffers is None else buffers
    with one_thread_each(theta.nbytes for theta in theta_0.values()) as pool:
        results = {
            name: pool.submit(theta.nbytes, _encode, codec, name, theta, theta_0[name], old.get(name))
            # Large ones first, so that all threads end together.
            for name, theta in sorted(weights, key=lambda item: -item[1].numel())
        }
        assert results.keys() == theta_0.keys(), "every parameter came"
        encoded = {name: results[name]() for name in sorted(results)}
    if buffers is not None:
        buffers.update((name, part.buffer) for name, part in encoded.items() if part.buffer is not None)
    steps = {name: part.host for name, part in encoded.items()}
    return TaskVector(
        steps=steps,
        digest=digest_tensors(steps, {name: part.digest for name, part in encoded.items()}),
        bounds={name: part.bound for name, part in encoded.items()},
    )


class _Encoded(NamedTuple):
    buffer: torch.Tensor | None
    host: torch.Tensor
    bound: int
    digest: bytes


def _encode(
    codec: FixedPoint, name: str, theta: torch.Tensor, theta_0: torch.Tensor, buffer: torch.Tensor | None
) -> _Encoded:
    theta_0, least = theta_0.to(theta.device), codec.least_bits
    if theta.shape != theta_0.shape:
        codec.encode(name, theta, theta_0)  # raises
    if buffer is None or buffer.shape != theta.shape or buffer.device != theta.device:
        buffer = torch.empty(theta.shape, dtype=narrowest_dtype(0, least), device=theta.device)
    # At most as often as there are types: what does not fit shows early.
    while True:
        bound = codec.encode_into(theta, theta_0, buffer)
        dtype = torch.int64 if bound is None else narrowest_dtype(bound, least)
        if dtype.itemsize <= buffer.dtype.itemsize or bound is None:
            break
        buffer = torch.empty(theta.shape, dtype=dtype, device=theta.device)
    if bound is None:
        n, bound = narrowed(codec.encode(name, theta, theta_0), least)
        buffer = None
    else:
        n = buffer.to(dtype)
    host = n.cpu()
    return _Encoded(buffer=buffer, host=host, bound=bound, digest=value_digest(host))
