"""Settings that must be made before torch is imported: `portable: true` of a recipe or a saved model.

Each function is the callback of an argument or option, which is read before the body of a command runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.portability import use_portable_kernels
from hf_clamu.yaml_values import read_yaml

__all__ = ["before_model", "before_reading", "before_recipe", "before_settings"]


def before_recipe(path: Path | None) -> Path | None:
    """Hold the kernels if the recipe asks for it."""
    if path is not None and path.is_file():
        try:
            _hold(read_yaml(path.read_text(encoding="utf-8-sig"), str(path)))
        except (OSError, UnicodeDecodeError, RecipeError):
            return path  # whoever reads it next says what is wrong
    return path


def before_model(place: str) -> str:
    """Hold the kernels if a saved model, in a folder or on the Hub, asks for it."""
    _hold(_configuration(place))
    return place


def before_reading(place: str) -> str:
    """Hold the kernels where that is possible: whoever only reads a model may do so on any processor."""
    try:
        return before_model(place)
    except RecipeError:
        return place


def before_settings(words: list[str] | None) -> list[str] | None:
    """Hold the kernels if one of the settings NAME=VALUE asks for it."""
    for word in words or ():
        name, _, value = word.partition("=")
        if name.strip() == "portable" and value.strip().lower() in ("true", "yes", "on"):
            use_portable_kernels()
    return words


def _hold(values: Any) -> None:
    settings = values.get("arguments") if isinstance(values, Mapping) else None
    if isinstance(settings, Mapping) and settings.get("portable") is True:
        use_portable_kernels()


def _configuration(place: str) -> Any:
    path = Path(place) / "config.json"
    try:
        if not Path(place).exists() and place.count("/") == 1 and not place.startswith((".", "/", "~")):
            path = _downloaded(place)
        return json.loads(path.read_bytes()) if path.is_file() else None
    except Exception:  # of files, of JSON, of the Hub and of the network
        return None  # whoever reads it next says what is wrong


def _downloaded(repo_id: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download  # none of them imports torch

    if not constants.HF_HUB_OFFLINE:
        HfApi().model_info(repo_id, timeout=10)  # asks once; the download asks an unreachable Hub again and again
    return Path(hf_hub_download(repo_id, "config.json"))
