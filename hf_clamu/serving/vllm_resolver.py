"""A plugin of vLLM: a request that names a task, or a cluster, as its model gets the adapter that `routes.json` says.

`register` is the entry point `clamu` of the group `vllm.general_plugins`; vLLM calls it in each of its processes. It
does nothing unless the environment names a folder of exported adapters:

    CLAMU_ADAPTERS=DIR VLLM_ALLOW_RUNTIME_LORA_UPDATING=true vllm serve BASE --enable-lora

Nothing here imports vLLM before that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskNotFoundError
from hf_clamu.models.exports.routes import Routes

__all__ = ["ADAPTERS_VARIABLE", "adapter_folder", "register"]

ADAPTERS_VARIABLE = "CLAMU_ADAPTERS"
_KEY_VARIABLE = "CLAMU_TASK_ID_KEY"


def adapter_folder(folder: Path, name: str, base_model: str | None = None) -> Path | None:
    """Return the folder of the adapter that answers for a task or has a name.

    The routes are read each time: an export that replaced them after a request to forget counts at once.

    Args:
        folder (`Path`): where `clamu export --adapters` wrote to.
        name (`str`): a task's id, or the name of an adapter.
        base_model (`str`, *optional*): what the engine serves; an adapter of another base model is no answer.

    Returns:
        `Path`: `None` if there is none.

    Raises:
        CheckpointFormatError: if the routes cannot be read.
    """
    routes = Routes.read(folder)
    # A folder may be a copy of the base model, whatever its path; an id is another model or the same.
    if base_model not in (None, routes.base_model) and not Path(str(base_model)).is_dir():
        return None
    try:
        found = routes.adapter_of(name, os.environ.get(_KEY_VARIABLE) or None)
    except TaskNotFoundError:
        return None
    return folder / routes.adapters[found]


def register() -> None:
    """Register the resolver with vLLM, if the environment names a folder of adapters."""
    where = os.environ.get(ADAPTERS_VARIABLE)
    if not where:
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    folder = Path(where)
    Routes.read(folder)  # a wrong folder should show at the start, not at the first request

    class ClamuResolver(LoRAResolver):  # type: ignore[misc,unused-ignore]
        """Answers task ids and names of adapters."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """Return vLLM's request for the adapter of a task, or None."""
            found = adapter_folder(folder, lora_name, base_model_name)
            if found is None:
                return None
            # vLLM numbers its adapters itself, and keeps one for each name that was asked for.
            return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(found))

    LoRAResolverRegistry.register_resolver("Clamu Resolver", ClamuResolver())
