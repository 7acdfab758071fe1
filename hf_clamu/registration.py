"""Registers with transformers' Auto classes and with PEFT as soon as, and only if, they are imported.

`import hf_clamu` must cost nothing, yet `AutoModelFor...` and `pipeline` must know saved models after it, and PEFT
their masks, whichever of the packages comes first. So a finder waits for their registries and lets ours follow each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["register_when_imported"]

# Their module: ours that registers with it.
_FOLLOWERS = {
    "transformers.models.auto.configuration_auto": "hf_clamu.checkpoint.configuration_clamu",
    "transformers.models.auto.modeling_auto": "hf_clamu.models.auto",
    "peft": "hf_clamu.models.mask_adapter",
}


def register_when_imported() -> None:
    """Register now with what is imported already, and later with what is not."""
    waiting = {}
    for theirs, ours in _FOLLOWERS.items():
        if theirs in sys.modules:
            import_module(ours)
        else:
            waiting[theirs] = ours
    if waiting and not any(isinstance(finder, _Follow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Follow(waiting))


class _Follow(MetaPathFinder):
    """Finds nothing by itself; has our module imported right after theirs."""

    def __init__(self, waiting: dict[str, str]) -> None:
        self._waiting = waiting
        self._asked: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._waiting or fullname in self._asked:
            return None
        self._asked.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._asked.remove(fullname)
        # Who asks may only want to know whether there is such a module, so it stays on the list.
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self._waiting[fullname])
        return spec


class _Then(Loader):
    def __init__(self, loader: Any, ours: str) -> None:
        self._loader = loader
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        import_module(self._ours)
