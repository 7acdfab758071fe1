"""Public names, signatures, settings, options, and what importing costs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["interface"]

# What README and docs import from elsewhere than the root.
DOCUMENTED = {
    "hf_clamu.evaluation": ("Accuracy", "AnswerProbability", "MacroF1", "evaluate_model"),
    "hf_clamu.exact": ("FixedPoint", "digest_tensors", "pack_mask"),
    "hf_clamu.models.byte_tokenizer": ("byte_tokenizer",),
    "hf_clamu.prediction": ("predict",),
    "hf_clamu.tasks": ("load_tasks", "partition_by_column", "partition_by_labels", "partition_uniform"),
}
_HEAVY = (
    *(
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "evaluate",
        "huggingface_hub",
        "numpy",
        "safetensors",
    ),
    *("sklearn", "scipy", "pandas", "pyarrow", "PIL", "tokenizers", "matplotlib", "yaml", "typer", "click", "rich"),
)
_STARTS = {
    "import hf_clamu": "import hf_clamu",
    "dir(hf_clamu)": "import hf_clamu; dir(hf_clamu)",
    "import hf_clamu.errors": "from hf_clamu import ClamuError",
    "clamu --help": "from hf_clamu.cli import main; main(['--help'])",
    "clamu train --help": "from hf_clamu.cli import main; main(['train', '--help'])",
}


def interface(tree: Path) -> dict[str, Any]:
    """Return the sections `interface` and `imports`, and `annotations` and `help`, which words may change."""
    import hf_clamu

    names: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for name in sorted(hf_clamu.__all__):
        _describe(name, getattr(hf_clamu, name), names, annotations)
    commands, help_texts = _commands()
    return {
        "interface": {
            "__all__": sorted(hf_clamu.__all__),
            "names": names,
            "arguments": {
                setting.name: repr(setting.default) for setting in dataclasses.fields(hf_clamu.ClamuArguments)
            },
            "documented": {
                f"{module}.{name}": _has(module, name) for module, members in DOCUMENTED.items() for name in members
            },
            "commands": commands,
        },
        "imports": {what: _imports(code, tree) for what, code in _STARTS.items()},
        "annotations": {"signatures": annotations, "help": help_texts},
    }


def _describe(name: str, value: Any, names: dict[str, Any], annotations: dict[str, Any]) -> None:
    if not inspect.isclass(value):
        names[name], annotations[name] = _signature(value)
        return
    ours = [kind for kind in value.__mro__ if kind.__module__.split(".")[0] == "hf_clamu"]
    kinds = [kind.__name__ for kind in value.__mro__ if issubclass(kind, BaseException)]
    if kinds:
        names[name] = {"kinds": kinds}
        return
    members: dict[str, Any] = {}
    members["__init__"], annotations[name] = _signature(value)
    for kind in reversed(ours):
        for key, member in vars(kind).items():
            if key.startswith("_"):
                continue
            if isinstance(member, property) or type(member).__name__ == "cached_property":
                members[key] = "property"
            elif isinstance(member, (classmethod, staticmethod)):
                found, annotations[f"{name}.{key}"] = _signature(member.__func__)
                members[key] = f"{type(member).__name__} {found}"
            elif callable(member):
                members[key], annotations[f"{name}.{key}"] = _signature(member)
            elif key not in getattr(kind, "__dataclass_fields__", {}):
                members[key] = _plain(repr(member))
    if dataclasses.is_dataclass(value):
        members["fields"] = [setting.name for setting in dataclasses.fields(value)]
    names[name] = members


def _signature(value: Any) -> tuple[str, str]:
    """Return a signature without annotations, and with them."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return _plain(repr(value)), ""
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    without = inspect.Signature(bare)
    return _plain(str(without)), _plain(str(found))


def _plain(text: str) -> str:
    return re.sub(r"hf_clamu(\.\w+)+\.", "", re.sub(r" at 0x[0-9a-f]+", "", text))


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _commands() -> tuple[dict[str, Any], dict[str, str]]:
    """Return each command's options and arguments, and its help."""
    root = _help()
    listed = re.findall(r"^  ([a-z][\w-]*) {2,}", root.partition("Commands:")[2], re.M)
    texts = {name: _help(name) for name in listed}
    found = {}
    for name, text in texts.items():
        arguments = text.partition("\nArguments:")[2].partition("\nOptions:")[0]
        options = text.partition("\nOptions:")[2]
        found[name] = {
            "usage": " ".join(text.partition("Usage:")[2].partition("\n\n")[0].split()),
            "arguments": re.findall(r"^  (\S+)", arguments, re.M),
            "options": sorted(set(re.findall(r"^  (?:-\w, )?(--[\w-]+(?: / --[\w-]+)?)", options, re.M))),
        }
    return found, {"clamu": root, **texts}


def _help(*command: str) -> str:
    from hf_clamu.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*command, "--help"])
    return out.getvalue()


def _imports(code: str, tree: Path) -> list[str]:
    """Return which heavy packages a line of Python imports in a fresh process."""
    code = f"import sys\n{code}\nsys.stderr.write(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        return [f"exit code {ended.returncode}: {json.dumps(ended.stderr[-200:])}"]
    return sorted(set(ended.stderr.split()) & set(_HEAVY))
