"""All settings of a merged model in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields
from typing import Any, Literal

from hf_clamu.errors import RecipeError
from hf_clamu.exact import FixedPoint
from hf_clamu.known_names import refuse_unknown_keys
from hf_clamu.merging.clustering.arguments import ClusteringArguments
from hf_clamu.merging.clustering.base import ClusteringMethod
from hf_clamu.merging.clustering.registry import CLUSTERINGS
from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.merging.localization.base import LocalizationMethod
from hf_clamu.merging.localization.registry import LOCALIZATIONS
from hf_clamu.merging.settings.presets import PRESETS, PresetName, describe_presets, with_presets
from hf_clamu.training import FinetuningArguments

__all__ = ["WITHOUT_DATA", "ClamuArguments"]

# Settings that tasks without data can follow, where nothing else is said.
WITHOUT_DATA = {"clustering": "task_vectors", "localization": "emr"}

# Settings that may be left open, with the type of what else they are.
_OPTIONAL: dict[str, type] = {"num_threads": int, "mask_learning_rate": float, "global_scaling": float}
# Settings that are "auto" until the base model is known, with the type that they have then.
_AUTOMATIC: dict[str, type] = {"learning_rate": float, "fraction_bits": int, "linear_digest": bool}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


@with_presets
@dataclass(frozen=True, kw_only=True)
class ClamuArguments(FinetuningArguments, ClusteringArguments, LocalizationArguments):
    """Settings of a build. They are part of the recipe: an unmerge and a rebuild repeat them.

    The fields are those of the stages: finetuning (`finetune_steps`, `learning_rate`, `batch_size`, ...), clustering
    (`num_clusters`, `clustering`), localization (`localization`, `scaling`, `global_scaling`, `mask_steps`,
    `mask_batch_size`), the integer grid (`fraction_bits`), what can be audited (`linear_digest`) and what is measured
    for the card (`score_validation`).
    `ClamuArguments.describe()` returns each with its meaning; `integer_bits` besides belongs to the file format.
    `localization` and `clustering` may be any registered
    method (`register_localization`, `register_clustering`).

    A `preset` (`"per-task"`, `"clusters"`, `"adapters"`, `"one-model"`) gives the settings that are not given
    themselves. Without one it is `"clusters"`, but with clustering `"features"`, if `num_clusters`, `clustering` or
    `localization` is given, and `"per-task"` if none of them is. It is resolved at once: settings that are equal are
    equal, and saved alike, whichever way they came about.

    Args:
        preset (`str`, *optional*): see above; all other arguments are the fields.

    Raises:
        RecipeError: if a value is out of range, names no registered method, or is of an unknown setting.

    Example:

    ```python
    >>> arguments = ClamuArguments(preset="clusters", finetune_steps=20)
    >>> arguments.localization, arguments.scaling
    ('clamu', 4.0)
    >>> ClamuArguments() == ClamuArguments(localization="sift", clustering="none", scaling=1)
    True

    ```
    """

    fraction_bits: int | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Bits behind the binary point of the integer grid of task vectors, 0 to 52; 'auto' chooses by the "
            "learning rates of all steps (20 for checkpoints from elsewhere, 28 for products of adapters), and the "
            "saved model has the number."
        },
    )
    integer_bits: int = field(
        default=8,
        metadata={
            "help": "Width of the narrowest integers of task vectors and their sums; 32 in models of formats 1 and 2.",
            "of": "format",  # nobody has a reason to choose it
        },
    )
    linear_digest: bool | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Keep a digest of each task's vector that adds up (8 KiB a task), so that `clamu audit` can tell "
            "without data whether the merged delta is the sum of the tasks in the ledger; 'auto' keeps it where tasks "
            "are finetuned through an adapter. Experimental: see docs/linear-digest.md for what it rests on."
        },
    )
    score_validation: bool = field(
        default=True,
        metadata={
            "help": "Measure the validation examples, where there are any, after a build and after each request; the "
            "model card shows the means."
        },
    )

    preset: InitVar[PresetName | None] = None

    def __post_init__(self, preset: PresetName | None) -> None:
        # No field: it is neither saved nor compared. `replace` hands it on.
        object.__setattr__(self, "preset", preset)
        # Types come first: the stages compare numbers, which text from a YAML file would break.
        for setting in fields(self):
            value = _checked(setting.name, setting.default, getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
        FinetuningArguments.__post_init__(self)
        ClusteringArguments.__post_init__(self)
        CLUSTERINGS.require(self.clustering)
        LOCALIZATIONS.require(self.localization)
        if self.global_scaling is None and self.scaling != "auto" and not self.localization_method.makes_masks:
            object.__setattr__(self, "global_scaling", "same")  # then there is one model, and one coefficient
        LocalizationArguments.__post_init__(self)
        bits = 0 if self.fraction_bits == "auto" else self.fraction_bits
        FixedPoint(fraction_bits=bits, least_bits=self.integer_bits)  # refuses what is out of range

    @property
    def codec(self) -> FixedPoint:
        """The integer grid.

        Raises:
            RecipeError: if it is still to be chosen.
        """
        if self.fraction_bits == "auto":
            raise RecipeError(
                "fraction_bits is 'auto', which stands for a number that is chosen when a base model is loaded. Give "
                "a number here."
            )
        return FixedPoint(fraction_bits=self.fraction_bits, least_bits=self.integer_bits)

    @property
    def clustering_method(self) -> ClusteringMethod:
        """The clustering that the settings name."""
        return CLUSTERINGS[self.clustering]

    @property
    def localization_method(self) -> LocalizationMethod:
        """The localization that the settings name."""
        return LOCALIZATIONS[self.localization]

    @property
    def has_fixed_signs(self) -> bool:
        """Whether the vectors of all tasks keep to one sign per weight."""
        return self.localization_method.has_fixed_signs

    @property
    def default_peft_config(self) -> dict[str, Any] | None:
        """The adapter that the preset finetunes through where no `peft_config` is given."""
        preset = PRESETS.get(vars(self)["preset"])
        return None if preset is None or preset.peft_config is None else dict(preset.peft_config)

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Return the name of each setting to choose with what it means, `preset` first, with what each preset sets."""
        texts = {"preset": describe_presets()}
        texts |= {one.name: one.metadata["help"] for one in fields(cls) if one.metadata.get("of") != "format"}
        for registry in (CLUSTERINGS, LOCALIZATIONS):
            texts[registry.setting] += f": {registry.describe()}."
        return texts

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClamuArguments:
        """Read settings from JSON or YAML values.

        Raises:
            RecipeError: if a name is unknown; the message names the nearest known one.
        """
        known = sorted(["preset", *(setting.name for setting in fields(cls))])
        refuse_unknown_keys(values, known, where="arguments", noun="setting")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values that `from_dict` reads."""
        values = asdict(self)
        values["freeze"] = list(self.freeze)
        return values


def _checked(name: str, default: Any, value: Any) -> Any:
    """Return a setting in its own type, or refuse it."""
    if name == "freeze":
        if not isinstance(value, (list, tuple)) or not all(isinstance(pattern, str) for pattern in value):
            raise RecipeError(f"freeze must be a list of patterns of parameter names, got {value!r}.")
        return tuple(value)
    kind: Any = (_OPTIONAL | _AUTOMATIC).get(name, type(default))
    if kind is str or (name in _OPTIONAL and value is None) or (name in _AUTOMATIC and value == "auto"):
        return value
    if name in ("scaling", "global_scaling") and isinstance(value, str):
        return value
    # 1 is a fine number for 1.0, but true is no number.
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        hint = " Write it without quotes." if kind is not bool and _is_numeral(value) else ""
        raise RecipeError(f"{name} must be {_KINDS[kind]}, got {value!r}.{hint}")
    # 1 and 1.0 must be written the same way, or equal recipes would give unequal files.
    return kind(value)


def _is_numeral(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
