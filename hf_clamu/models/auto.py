"""Makes transformers' Auto classes and pipelines load saved models."""

from __future__ import annotations

from typing import Any

import transformers

from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.models.configuration_clamu import ClamuConfig
from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["AUTO_NAMES", "register"]

AUTO_NAMES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)


def _entry(auto_name: str) -> type:
    """Return the class that one Auto class finds for `ClamuConfig`."""

    class Entry:
        config_class = ClamuConfig

        @classmethod
        def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("config", None)  # the Auto class's own, which says no more than the file does
            model = ClamuModel.from_pretrained(name, **kwargs)
            served = type(model).__mro__[2]
            mapping = getattr(transformers, auto_name)._model_mapping
            if auto_name != "AutoModel" and served not in _classes(mapping, model.config_class):
                raise IncompatibleBaseError(
                    f"{auto_name} was asked for, but {name!s} is a {served.__name__}. Load it with ClamuModel or the "
                    "Auto class of its task."
                )
            return model

    Entry.__name__ = Entry.__qualname__ = f"Clamu{auto_name.removeprefix('Auto')}"
    return Entry


def _classes(mapping: Any, config_class: Any) -> tuple[Any, ...]:
    found = mapping.get(config_class, ())
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def register() -> None:
    """Register `ClamuConfig` with the Auto classes; `AutoModel` gives the saved model with its head."""
    for name in AUTO_NAMES:
        getattr(transformers, name).register(ClamuConfig, _entry(name), exist_ok=True)


register()
