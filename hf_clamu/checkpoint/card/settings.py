"""What the model card shows besides what follows from the merged state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_clamu.checkpoint.base_reference import is_hub_id
from hf_clamu.errors import RecipeError
from hf_clamu.known_names import refuse_unknown_keys

__all__ = ["CardSettings"]


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """What the model card shows besides what the ledger says.

    Raises:
        RecipeError: if a value is of the wrong kind.
    """

    license: str | None = field(default=None, metadata={"help": "Licence of the merged model, as the Hub names it."})
    language: tuple[str, ...] = field(default=(), metadata={"help": "Languages of the data, such as en."})
    datasets: tuple[str, ...] = field(
        default=(), metadata={"help": "Data sets on the Hub; by default the one that the data section names."}
    )
    tags: tuple[str, ...] = field(default=(), metadata={"help": "More tags."})
    base_model: str | None = field(
        default=None,
        metadata={"help": "Hub id of the base model, where it was given as a folder or in memory. Nothing checks it."},
    )
    task_ids: bool = field(default=False, metadata={"help": "Name the tasks of each cluster."})

    def __post_init__(self) -> None:
        for name in ("language", "datasets", "tags"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) and entry for entry in value):
                raise RecipeError(f"card: {name} must be a list of strings, got {value!r}.")
            object.__setattr__(self, name, tuple(value))
        if not isinstance(self.license, (str, type(None))):
            raise RecipeError(f"card: license must be a string such as apache-2.0, got {self.license!r}.")
        base = self.base_model
        if base is not None and not (isinstance(base, str) and is_hub_id(base)):
            raise RecipeError(f"card: base_model must be the id of a model on the Hub such as org/name, got {base!r}.")
        if not isinstance(self.task_ids, bool):
            raise RecipeError(f"card: task_ids must be true or false, got {self.task_ids!r}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CardSettings:
        """Read settings from JSON or YAML values.

        Raises:
            RecipeError: if a name is unknown or a value is of the wrong kind.
        """
        refuse_unknown_keys(values, (setting.name for setting in fields(cls)), where="card")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values that `from_dict` reads."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.base_model is None:  # absent in configurations that are older than this setting
            del values["base_model"]
        return values
