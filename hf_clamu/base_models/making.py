"""One thread at a time makes or loads a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_clamu.exact import Guard

__all__ = ["making_models"]

# Always the last lock that a thread takes: nothing inside waits for another one.
_GUARD = Guard()


@contextmanager
def making_models() -> Iterator[None]:
    """Make or load models while no other thread does.

    While transformers makes a model, it replaces methods of its own classes (`PreTrainedModel.tie_weights`, functions
    of `torch.nn.init`) and the default type. Two threads that overlap restore each other's replacement: from then on
    no model of the process ties its weights. Hold this around the library's call alone.
    """
    with _GUARD.lock:
        yield
