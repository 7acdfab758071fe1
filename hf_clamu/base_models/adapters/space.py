"""`PeftSpace`: the shape of the adapter that tasks are finetuned through, and how they are merged.

Three ways to merge, all of them exact unlearning:

- `"parameters"`: the adapter is part of the live model; its parameters are finetuned, merged and masked like any
  others. With LoRA the merged product is `(B_0 + sum B_t)(A_0 + sum A_t)`, which is no sum of products.
- `"frozen_a"` (LoRA): the same with `A` drawn once, frozen and shared by all tasks, so that the merged adapter
  `(sum B_t) A` is the sum of the tasks' products `B_t A`. Of an embedding it is `B` that is drawn and frozen.
- `"product"`: the adapter exists while a task is finetuned and is merged into the base weights then; the task vector
  is the materialised product (`scaling * B_t A_t`), and the merged model is a plain one without an adapter.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import RecipeError
from hf_clamu.exact import canonical_json
from hf_clamu.known_names import hint_for
from hf_clamu.merging import ClamuArguments

__all__ = ["PEFT_MERGING", "PeftSpace"]

PEFT_MERGING = ("frozen_a", "parameters", "product")

# Of a base model, a call or a release, not of the adapter's shape.
_VOLATILE = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode")
# They need steps of their own while training (a rank schedule, routing) or parameters that are added in another way.
_REFUSED_TYPES = ("ADALORA", "XLORA", "CLAMU_MASK")
_REFUSED_FIELDS = ("target_parameters", "trainable_token_indices", "layer_replication", "megatron_config")
# They train with hooks and starting values that no state dict has, so a saved model could not train on.
_PRODUCT_ALONE = ("OSF",)
_HEADS = ("classifier", "score", "head", "fc")


@dataclass(frozen=True, kw_only=True)
class PeftSpace:
    """An adapter's shape and how its tasks are merged.

    Make one with `PeftSpace.of`.

    Args:
        peft_type (`str`): PEFT's name of the method, such as `"LORA"`.
        options (*dict*): fields of its configuration that differ from PEFT's defaults.
        merging (`str`): `"frozen_a"`, `"parameters"` or `"product"`.
    """

    peft_type: str
    options: dict[str, Any]
    merging: str

    @classmethod
    def of(cls, config: Any, merging: str | None = None) -> PeftSpace | None:
        """Check and take over a PEFT configuration.

        Args:
            config (`peft.PeftConfig` or *mapping*, *optional*): with a `peft_type`; `None` for no adapter.
            merging (`str`, *optional*): `"frozen_a"` (the default for LoRA), `"parameters"` (for the others) or
                `"product"`.

        Raises:
            RecipeError: if PEFT does not know it, or it cannot be merged by adding.
        """
        if config is None:
            if merging is not None:
                raise RecipeError(
                    f"peft_merging={merging!r} says how adapters are added, but there is no peft_config."
                )
            return None
        values = dict(config) if isinstance(config, Mapping) else config.to_dict()
        kind = values.get("peft_type")
        kind = kind.value if isinstance(kind, enum.Enum) else kind
        _check_type(kind)
        made = _make(str(kind), {key: value for key, value in values.items() if key not in _VOLATILE})
        for name in _REFUSED_FIELDS:
            if getattr(made, name, None):
                raise RecipeError(f"peft_config: {name} cannot be merged by adding. Leave it out.")
        if kind in _PRODUCT_ALONE and merging != "product":
            raise RecipeError(
                f"Parameters of {kind} cannot be trained again after a model was saved, so no task could be "
                "forgotten. Choose peft_merging='product'."
            )
        if merging is None:
            merging = "frozen_a" if kind == "LORA" else "parameters"
        if merging not in PEFT_MERGING:
            hint = hint_for(merging, PEFT_MERGING, lists=False)
            raise RecipeError(f"peft_merging must be one of {', '.join(PEFT_MERGING)}, got {merging!r}.{hint}")
        if merging == "frozen_a" and kind != "LORA":
            raise RecipeError(f"peft_merging='frozen_a' is for LORA; for {kind} choose 'parameters' or 'product'.")
        return cls(peft_type=str(kind), options=_changed(made), merging=merging)

    @classmethod
    def for_settings(cls, arguments: ClamuArguments, config: Any, merging: str | None) -> PeftSpace | None:
        """Check and take over a PEFT configuration, by default that of the settings' preset.

        Args:
            arguments (`ClamuArguments`): the settings.
            config (`peft.PeftConfig` or *mapping*, *optional*): see `of`.
            merging (`str`, *optional*): see `of`.

        Raises:
            RecipeError: if it cannot be merged by adding, or cannot follow the settings.
        """
        space = cls.of(arguments.default_peft_config if config is None else config, merging)
        if space is not None and arguments.has_fixed_signs:
            space.require_fixed_signs(arguments.localization)
        return space

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> PeftSpace | None:
        """Return the adapter that a saved model's tasks are finetuned through; the same one each time."""
        config = checkpoint.config
        return _recorded(canonical_json(config.peft_config), config.peft_merging)

    def require_fixed_signs(self, localization: str) -> None:
        """Check that task vectors can keep to fixed signs while they are finetuned.

        Args:
            localization (`str`): the setting that needs them.

        Raises:
            RecipeError: if the task vector is a product, whose signs follow from no signs of its factors.
        """
        if not self.is_live:
            raise RecipeError(
                f"localization={localization!r} holds trained parameters to fixed signs, and "
                f"peft_merging={self.merging!r} merges products of them, whose signs it cannot hold. Choose "
                "'frozen_a' or 'parameters', or other settings, such as preset: clusters."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values of the configuration that `of` reads."""
        return {"peft_type": self.peft_type, **self.options}

    @property
    def is_live(self) -> bool:
        """Whether the merged model has the adapter inside."""
        return self.merging != "product"

    def peft_config(self) -> Any:
        """Return PEFT's configuration; trained heads are not part of it."""
        return _make(self.peft_type, {k: v for k, v in self.options.items() if k != "modules_to_save"})

    def sparing(self, trained: Collection[str]) -> PeftSpace:
        """Return the same without adapters around modules that are trained as a whole.

        Only `target_modules="all-linear"` is narrowed, where PEFT chooses. Named modules and `exclude_modules` stay as
        they are.

        Args:
            trained (*collection* of `str`): names of parameters, see `heads`.
        """
        names = sorted({name.rpartition(".")[0] for name in trained} - {""})
        chosen = self.options.get("target_modules")
        is_left_to_peft = isinstance(chosen, str) and chosen.lower() == "all-linear"
        # Some methods, such as VeRA, cannot leave modules out.
        can_exclude = "exclude_modules" not in self.options and hasattr(self.peft_config(), "exclude_modules")
        if not (names and is_left_to_peft and can_exclude):
            return self
        # A pattern, as a name in a list stands for all modules whose names end like it.
        excluded = {"exclude_modules": "|".join(map(re.escape, names))}
        return dataclasses.replace(self, options=dict(sorted({**self.options, **excluded}.items())))

    def heads(self, model: Any) -> set[str]:
        """Return the parameters that are trained besides the adapter: `modules_to_save`, or a classifier's head.

        Args:
            model (`transformers.PreTrainedModel`): the base model.

        Raises:
            RecipeError: if `modules_to_save` names a module that the model does not have.
        """
        names = [name for name, _ in model.named_parameters()]
        wanted = self.options.get("modules_to_save")
        if wanted is None:
            prefix = f"{model.base_model_prefix}."
            if not any(name.startswith(prefix) for name in names):
                return {name for name in names if name.split(".")[0] in _HEADS}
            if "Classification" not in type(model).__name__:
                return set()
            return {name for name in names if not name.startswith(prefix)}
        found: set[str] = set()
        for module in wanted:
            own = {name for name in names if f".{module}." in f".{name}"}
            if not own:
                raise RecipeError(
                    f"peft_config: modules_to_save names {module!r}, which the base model does not have; its "
                    f"parameters look like {', '.join(names[-3:])}."
                )
            found |= own
        return found


@functools.lru_cache(maxsize=8)
def _recorded(config: bytes, merging: str | None) -> PeftSpace | None:
    return PeftSpace.of(json.loads(config), merging)


def _check_type(kind: Any) -> None:
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    known = [str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING]
    if kind not in known:
        hint = hint_for(kind, sorted(known))
        raise RecipeError(f"peft_config needs a peft_type that PEFT knows, got {kind!r}.{hint}")
    refused = kind in _REFUSED_TYPES or kind not in PEFT_TYPE_TO_TUNER_MAPPING
    if refused or issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[kind], PromptLearningConfig):
        raise RecipeError(
            f"Tasks that were finetuned with {kind} cannot be merged by adding parameters. Take a method that puts "
            "its parameters into the layers and trains them as they are, such as LORA."
        )


def _make(kind: str, values: Mapping[str, Any]) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    known = [field.name for field in dataclasses.fields(made)]
    for name in values:
        if name not in known:
            raise RecipeError(f"peft_config: {kind} has no setting {name!r}.{hint_for(name, known, lists=False)}")
    try:
        return made(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"peft_config: {kind} does not take these settings: {error}") from error


def _changed(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that differ from PEFT's defaults, as JSON-able values."""
    found = {}
    for field in dataclasses.fields(config):
        if field.name in _VOLATILE or field.name == "task_type":
            continue
        value = _jsonable(getattr(config, field.name))
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default is dataclasses.MISSING or value != _jsonable(default):
            found[field.name] = value
    return dict(sorted(found.items()))


def _jsonable(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in sorted(value.items())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
