"""What the shell offers after Tab: folders of models, ids of their tasks, names of their clusters.

Shells paste an answer into the command line as it stands, and ids come from others. So only words are offered that no
shell takes for more than a word.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from hf_clamu.checkpoint.layout import CONFIG_NAME, LEDGER_NAME

__all__ = ["complete_cluster", "complete_model", "complete_task", "is_completing"]

# Set by the scripts of `--show-completion`, for `clamu` and for `hf-clamu`.
_VARIABLES = ("_CLAMU_COMPLETE", "_HF_CLAMU_COMPLETE")
# No quotes, spaces, `$` and the like; neither `=` nor `:`, at which bash breaks words.
_SAFE = re.compile(r"[\w@%+,./][\w@%+,./-]*")
# Of a JSON file that is read while somebody waits for Tab.
_MOST_BYTES = 1 << 25


def is_completing() -> bool:
    """Whether the shell asks what could come next, so that nothing is to be done."""
    return any(os.environ.get(name) for name in _VARIABLES)


def complete_model(incomplete: str) -> list[str]:
    """Return folders of saved models: those that the word could become, and those one folder below."""
    return list(filter(_SAFE.fullmatch, _models(incomplete)))


def _models(incomplete: str) -> Iterator[str]:
    head = incomplete[: incomplete.rfind("/") + 1]
    for name in _folders(Path(head or "."), incomplete[len(head) :]):
        if (Path(head, name) / LEDGER_NAME).is_file():
            yield head + name
            continue
        for below in _folders(Path(head, name), ""):
            if (Path(head, name, below) / LEDGER_NAME).is_file():
                yield f"{head}{name}/{below}"


def _folders(place: Path, start: str) -> list[str]:
    """Return the names of folders in a place that start so, hidden ones only if that is typed."""
    try:
        with os.scandir(place) as entries:
            found = [entry.name for entry in entries if entry.name.startswith(start) and entry.is_dir()]
    except OSError:
        return []
    return sorted(name for name in found if start.startswith(".") or not name.startswith("."))


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return ids of tasks that are merged in the model of the command line and not named yet."""
    if _read(ctx, CONFIG_NAME).get("task_ids", "plain") != "plain":
        return []  # what the ledger has is no id that anybody types
    tasks = _read(ctx, LEDGER_NAME).get("tasks")
    named = ctx.params.get("tasks") or ()
    return _offered([task_id for task_id in tasks if task_id not in named], incomplete) if tasks else []


def complete_cluster(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of the clusters of the model of the command line."""
    names = _read(ctx, CONFIG_NAME).get("cluster_names")
    return _offered(names, incomplete) if isinstance(names, list) else []


def _read(ctx: typer.Context, name: str) -> dict[str, Any]:
    """Return a JSON file of the model, unchecked; empty if it cannot be read or is no object."""
    # The parser stops at an option whose value is to be completed, and leaves the words before it.
    folder = ctx.params.get("folder") or next(iter(ctx.args), "")
    path = Path(folder) / name
    try:
        # Not by read_json of hf_clamu.storage, which imports torch.
        is_small = path.is_file() and path.stat().st_size <= _MOST_BYTES
        values = json.loads(path.read_bytes()) if is_small else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _offered(words: list[Any], incomplete: str) -> list[str]:
    texts = sorted(word for word in words if isinstance(word, str))
    return [word for word in texts if word.startswith(incomplete) and _SAFE.fullmatch(word)]
