"""Presets: one name for a localization, a clustering, a scaling and what else goes with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from hf_clamu.errors import RecipeError
from hf_clamu.known_names import hint_for, refuse_unknown_keys
from hf_clamu.merging.registry import listed

__all__ = ["METHOD_SETTINGS", "PRESETS", "Preset", "PresetName", "describe_presets", "with_presets"]

PresetName = Literal["per-task", "clusters", "adapters", "one-model"]
# What a preset decides even where a recipe says something else and the preset comes from the command line.
METHOD_SETTINGS = ("localization", "clustering", "num_clusters", "scaling")
# Who names one of these and no preset means the settings that belonged to them before there were presets: those of
# clusters, with another clustering. So recipes of that time build what they built.
_OF_CLUSTERS = ("localization", "clustering", "num_clusters")
_BEFORE_PRESETS = {
    "clustering": "features",
    "scaling": 4.0,
    "mask_steps": 50,
    "mask_gradient_norm": "raw",
    "mask_factors": "none",
}

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Settings that go together.

    Args:
        name (`PresetName`): the value of the setting `preset`.
        summary (`str`): a few words for the documentation.
        settings (*mapping*): the defaults that it brings; a setting that is given wins over them.
        peft_config (*mapping*, *optional*): the adapter to finetune through where none is given.
    """

    name: PresetName
    summary: str
    settings: Mapping[str, Any]
    peft_config: Mapping[str, Any] | None = field(default=None)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="per-task",
            summary="a mask per task by SIFT; a request keeps all other masks and needs no other rows",
            settings={"localization": "sift", "clustering": "none", "scaling": 1.0},
        ),
        Preset(
            name="clusters",
            summary="a learned mask per cluster of tasks, ClAMU; the smallest storage for many tasks",
            settings={
                "localization": "clamu",
                "clustering": "stable_kmeans",
                "num_clusters": 20,
                "scaling": 8.0,
                "mask_steps": 150,
                "mask_gradient_norm": "unit",
                "mask_factors": "tensor",
            },
        ),
        Preset(
            name="adapters",
            summary="as per-task, but tasks are finetuned through LoRA and nothing else is stored; for large models",
            settings={"localization": "sift", "clustering": "none", "scaling": 1.0},
            peft_config={"peft_type": "LORA", "r": 8, "target_modules": "all-linear"},
        ),
        Preset(
            name="one-model",
            summary="one merged model without masks; for users whose task is unknown",
            settings={"localization": "global", "clustering": "random", "num_clusters": 1, "scaling": "auto"},
        ),
    )
}


def describe_presets() -> str:
    """Return what the setting `preset` means, with the settings of each preset."""
    parts = []
    for preset in PRESETS.values():
        settings = dict(preset.settings)
        if preset.peft_config is not None:
            settings["peft_config"] = preset.peft_config["peft_type"]
        values = ", ".join(f"{name} {value}" for name, value in settings.items())
        parts.append(f"{preset.name} ({preset.summary}: {values})")
    before = ", ".join(f"{name} {value}" for name, value in _BEFORE_PRESETS.items())
    return (
        f"Settings that go together, for those that are not given: {listed(parts)}. By default clusters with "
        f"{before} if {listed(_OF_CLUSTERS)} is given, and otherwise per-task."
    )


def with_presets(settings_class: type[_Settings]) -> type[_Settings]:
    """Let a dataclass of settings take `preset`, which gives the settings that are not given themselves.

    An unknown name of a setting is refused with a hint, where Python would raise a `TypeError` without one.
    """
    plain = settings_class.__init__
    known = ["preset", *(setting.name for setting in fields(settings_class))]  # type: ignore[arg-type]

    @functools.wraps(plain)
    def initialise(self: _Settings, **given: Any) -> None:
        refuse_unknown_keys(given, known, where=settings_class.__name__, noun="setting")
        plain(self, **_resolved(given))

    settings_class.__init__ = initialise  # type: ignore[assignment]
    return settings_class


def _resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, with those of their preset for others."""
    name = given.get("preset")
    if name is None and any(setting in given for setting in _OF_CLUSTERS):
        return {**PRESETS["clusters"].settings, **_BEFORE_PRESETS, **given}
    if name is None:
        name = "per-task"
    elif not isinstance(name, str) or name not in PRESETS:
        hint = hint_for(name, tuple(PRESETS), lists=False)
        raise RecipeError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.{hint}")
    elif "num_clusters" in given and "clustering" not in given and name != "clusters":
        raise RecipeError(
            f"preset {name!r} has no clusters whose number could be set, and num_clusters is "
            f"{given['num_clusters']!r}. Leave it out, or choose preset 'clusters'."
        )
    return {**PRESETS[name].settings, **given}
