"""Which base model a saved model was merged into, as its configuration names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["BaseReference", "is_hub_id"]

# What a Hub id looks like: never a path that leads elsewhere.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def is_hub_id(name: str) -> bool:
    """Whether a name is written as the id of a model on the Hub, and so is no path."""
    return _HUB_ID.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseReference:
    """The base model of a saved model.

    Args:
        name_or_path (`str`): Hub id; `""` for a model that no Hub has.
        revision (`str`, *optional*): commit of the Hub repo.
        digest (`str`): SHA-256 of all its weights.
        embedded (`bool`): whether the base model is inside the saved model, at `base_model/`.
        dtype (`str`): type of its weights, such as `"float32"`; where they are quantised, of the others and of what is
            quantised.
        quantization_config (*dict*, *optional*): how its linear layers are quantised at each load, in transformers'
            words. Those of files that are quantised already say so in their own configuration.
    """

    name_or_path: str
    revision: str | None
    digest: str
    embedded: bool
    dtype: str
    quantization_config: dict[str, Any] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of its weights."""
        return _DTYPES[self.dtype]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseReference:
        """Read the entry `base_model` of a configuration.

        Raises:
            ValueError: if it names no base model, neither on the Hub nor inside the folder.
        """
        if not all(isinstance(values.get(key), str) for key in ("name_or_path", "digest", "dtype")):
            raise ValueError("name_or_path, digest and dtype must be strings")
        if not isinstance(values.get("revision"), str | None) or values["dtype"] not in _DTYPES:
            raise ValueError(f"revision must be a commit and dtype one of {', '.join(_DTYPES)}")
        if not isinstance(values.get("quantization_config"), dict | None):
            raise ValueError("quantization_config must be a mapping")
        if values.get("embedded") is not True and not is_hub_id(values["name_or_path"]):
            raise ValueError("name_or_path is no Hub id")
        return cls(
            name_or_path=values["name_or_path"],
            revision=values.get("revision"),
            digest=values["digest"],
            embedded=bool(values.get("embedded")),
            dtype=values["dtype"],
            quantization_config=values.get("quantization_config"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values that `from_dict` reads."""
        values = asdict(self)
        if self.quantization_config is None:
            del values["quantization_config"]
        return values
