"""Adapters that learn nothing: refused where freezing alone makes it so, and named where a build shows it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping

from torch import nn

from hf_clamu.errors import RecipeError

__all__ = ["idle_parts", "require_learning", "warn_of_idle_parts"]

_logger = logging.getLogger(__name__)

# The factors of LoRA's product: while one is zero, the gradient of the other is.
_FACTORS = {
    "lora_A": "lora_B",
    "lora_B": "lora_A",
    "lora_embedding_A": "lora_embedding_B",
    "lora_embedding_B": "lora_embedding_A",
}


def require_learning(model: nn.Module, trained: Collection[str]) -> None:
    """Check that freezing leaves an adapter something to learn.

    Args:
        model (`transformers.PreTrainedModel`): with the adapter inside, at its first values.
        trained (*collection* of `str`): names of the parameters that take part.

    Raises:
        RecipeError: if none of them is the adapter's, or if each is a factor of a product whose other factor is zero
            and stays so.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if _is_adapter(name)}
    for name in own.keys() & set(trained):
        partner = re.sub(r"\b(lora(?:_embedding)?_[AB])\b", lambda found: _FACTORS[found[1]], name)
        other = own.get(partner)
        if partner in trained or other is None or other.is_meta or bool(other.any()):
            return
    raise RecipeError(
        "freeze leaves the adapter nothing to learn: every part of it is frozen, or is multiplied by a frozen "
        "part that starts at zero (lora_B). Leave those parts out of freeze."
    )


def idle_parts(moved: Mapping[str, bool]) -> list[str]:
    """Return the modules whose adapter no task has changed, nor a weight of their own that takes part.

    Args:
        moved (*mapping* of `str` to `bool`): by each parameter that takes part, whether a task has changed it.

    Example:

    ```python
    >>> idle_parts({"q.lora_A.default.weight": False, "q.lora_B.default.weight": True, "v.weight": False})
    ['v']

    ```
    """
    parts: dict[tuple[str, bool], bool] = {}
    for name, has_moved in moved.items():
        key = _module_of(name), _is_adapter(name)
        parts[key] = parts.get(key, False) or has_moved
    return sorted({module for (module, _), has_moved in parts.items() if not has_moved})


def warn_of_idle_parts(bounds: Collection[Mapping[str, int]]) -> None:
    """Log one warning that names what a build trained in vain.

    Args:
        bounds (*collection* of *mapping* of `str` to `int`): of each task's vector, by parameter.
    """
    moved: dict[str, bool] = {}
    for one in bounds:
        moved |= {name: bool(bound) or moved.get(name, False) for name, bound in one.items()}
    idle = idle_parts(moved)
    if not idle:
        return
    named = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
    _logger.warning(
        f"No task has changed anything at {named}, which the adapter trains: the model may not use it for such data, "
        "or freeze holds a part of it. If that is not meant, name other modules in target_modules, or freeze less."
    )


def _is_adapter(name: str) -> bool:
    return re.search(r"\.default(\.|$)", name) is not None


def _module_of(name: str) -> str:
    """Return the module that a parameter, or the adapter that it is a part of, belongs to."""
    if _is_adapter(name):
        name = re.sub(r"\.default(\..*)?$", "", name)
    return name.replace(".base_layer.", ".").rpartition(".")[0] or name
