"""Choosing portable CPU kernels, which must happen before torch is imported.

`portable: true` of a recipe, of a saved model or of `--set` asks for them. Typer calls a function of this module for
the argument or option that names it, before the body of a command imports torch. So the file is read twice: here for
one setting, without any check, and later as a whole by its reader, which reports what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.layout import CONFIG_NAME
from hf_clamu.cli.terminal.completion import is_completing
from hf_clamu.errors import RecipeError
from hf_clamu.portability import use_portable_kernels
from hf_clamu.yaml_values import read_yaml

__all__ = ["before_model", "before_reading", "before_recipe", "before_settings"]


def before_recipe(path: Path | None) -> Path | None:
    """Choose portable kernels if the recipe asks for them."""
    if path is not None and path.is_file() and not is_completing():
        try:
            _choose_kernels(read_yaml(path.read_text(encoding="utf-8-sig"), str(path)))
        except (OSError, UnicodeDecodeError, RecipeError):
            return path  # its reader reports the error
    return path


def before_model(name: str) -> str:
    """Choose portable kernels if a saved model, in a folder or on the Hub, asks for them."""
    if not is_completing():
        _choose_kernels(_configuration(name))
    return name


def before_reading(name: str) -> str:
    """Choose portable kernels where the processor has them: a model can be read on any."""
    try:
        return before_model(name)
    except RecipeError:
        return name


def before_settings(words: list[str] | None) -> list[str] | None:
    """Choose portable kernels if one of the settings NAME=VALUE asks for them."""
    for word in words or ():
        setting, _, value = word.partition("=")
        if setting.strip() == "portable" and not is_completing() and value.strip().lower() in ("true", "yes", "on"):
            use_portable_kernels()
    return words


def _choose_kernels(values: Any) -> None:
    settings = values.get("arguments") if isinstance(values, Mapping) else None
    if isinstance(settings, Mapping) and settings.get("portable") is True:
        use_portable_kernels()


def _configuration(name: str) -> Any:
    path = Path(name) / CONFIG_NAME
    try:
        if not Path(name).exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
            path = _downloaded(name)
        return json.loads(path.read_bytes()) if path.is_file() else None
    except Exception:  # of files, of JSON, of the Hub and of the network
        return None  # its reader reports the error


def _downloaded(repo_id: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download  # none of them imports torch

    if not constants.HF_HUB_OFFLINE:
        HfApi().model_info(repo_id, timeout=10)  # asks once; the download asks an unreachable Hub again and again
    return Path(hf_hub_download(repo_id, CONFIG_NAME))
