"""Selecting what a live model serves, for one thread or many."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

from hf_clamu.errors import WeightsChangedError
from hf_clamu.exact import NO_WEIGHTS, PackedMask
from hf_clamu.models.mixins.inspection import InspectionMixin

__all__ = ["ServingMixin", "holds_model"]

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Served = TypeVar("_Served", bound="ServingMixin")


def holds_model(method: _Method) -> _Method:
    """Let a method hold the live model: no other thread switches it, serves from it or changes its state meanwhile."""

    @wraps(method)
    def held(self: ServingMixin, /, *args: Any, **kwargs: Any) -> Any:
        with self.merged.switch.guard.lock:
            return method(self, *args, **kwargs)

    return cast(_Method, held)


class ServingMixin(InspectionMixin):
    """Selection of clusters."""

    @holds_model
    def set_cluster(self: _Served, cluster: int | str | None = None, *, task: str | None = None) -> _Served:
        """Bring a cluster's weights into the live model, bit for bit, in place.

        Where several threads use the model, another one may select before this one runs the model: use `serving`.

        Args:
            cluster (`str` or `int`, *optional*): name or number of the cluster, as in `cluster_names` and `clusters`;
                `None` selects the global model. Requests may change both, numbers more often than names.
            task (`str`, *optional*): instead, the cluster that serves this task.

        Returns:
            `ClamuModel`: the model itself.

        Raises:
            TaskNotFoundError: if no such task is merged.
            ClusterNotFoundError: if there is no such cluster.
            WeightsChangedError: if a weight was changed since the last switch; nothing is touched then.
        """
        if task is not None:
            if cluster is not None:
                raise ValueError("set_cluster takes a cluster or a task, not both.")
            cluster = self.cluster_of(task)
        self._select(self.merged.mask_of(cluster))
        return self

    @holds_model
    def set_base(self: _Served) -> _Served:
        """Bring the base model's own weights back, bit for bit; returns the model itself."""
        self._select(NO_WEIGHTS)
        return self

    @contextmanager
    def serving(self: _Served, cluster: int | str | None = None, *, task: str | None = None) -> Iterator[_Served]:
        """Select a cluster and hold the model, so that selecting and running it are one step for all threads.

        Other threads wait where they select, serve, save or make a request, until the block ends. Then what was
        selected before is selected again.

        Args:
            cluster (`str` or `int`, *optional*): name or number of the cluster, as in `cluster_names` and `clusters`;
                `None` selects the global model. Requests may change both, numbers more often than names.
            task (`str`, *optional*): instead, the cluster that serves this task.

        Yields:
            `ClamuModel`: the model itself.

        Raises:
            TaskNotFoundError, ClusterNotFoundError, WeightsChangedError: as `set_cluster`.

        Example:

        ```python
        with model.serving(task="user_17"):
            logits = model(**inputs).logits
        ```
        """
        with self.held():
            self.set_cluster(cluster, task=task)
            yield self

    @contextmanager
    def held(self: _Served, *, restores: bool = True) -> Iterator[_Served]:
        """Hold the model, as `serving` does, and leave to the block what is selected in it.

        Args:
            restores (`bool`): select again, after the block, what was selected before it; unless a request came in
                between, after which the global model is selected.

        Yields:
            `ClamuModel`: the model itself.
        """
        with self.merged.switch.guard.lock:
            merged = self.merged
            selected = merged.switch.selected
            try:
                yield self
            finally:
                if restores and self.merged is merged:
                    self._select(selected)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, unless a switch broke off in between."""
        if not self.merged.switch.is_consistent:
            raise WeightsChangedError(
                "A switch of clusters was interrupted, and the live weights are of no cluster now. Select one again "
                "with set_cluster; it finds out where they are."
            )
        live: Any = super()
        return live.__call__(*args, **kwargs)

    def __deepcopy__(self: _Served, memo: dict[int, Any]) -> _Served:
        live: Any = self
        with self.merged.switch.guard.lock:  # no thread may switch the weights meanwhile
            made: Any = type(self).__new__(type(self))
            memo[id(self)] = made
            made.__setstate__(copy.deepcopy(live.__getstate__(), memo))
        return made  # type: ignore[no-any-return]

    def _select(self, mask: PackedMask) -> None:
        context, live = self._live.context, self.__dict__
        # PEFT writes this name into adapters that are trained on top: it must not be that of other weights.
        cluster = "the global model" if mask.cluster is None else f"cluster {mask.cluster}"
        live["name_or_path"] = f"({cluster} of {context.name}: export it and name that folder)"
        self.merged.switch.select(self._parameters_by_name(), mask)
        if mask is NO_WEIGHTS:
            live["name_or_path"] = context.base_name

    def _serve_globally(self: _Served) -> _Served:
        """Select the global model, in evaluation mode."""
        live: Any = self.set_cluster(None)
        live.eval()
        return self

    def _parameters_by_name(self) -> dict[str, torch.nn.Parameter]:
        model: Any = self
        return dict(model.named_parameters())
