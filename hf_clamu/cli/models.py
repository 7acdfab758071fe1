"""Models that a command reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_clamu.cli.pending import say_pending

__all__ = ["load_model", "open_model", "task_id_key"]


def open_model(folder: str) -> Any:
    """Load a model for a command that reads it; what a run that died has left there stays as it is."""
    say_pending(Path(folder))
    return load_model(folder)


def load_model(folder: str) -> Any:
    """Load a model from a folder or a Hub id, with the key of its task ids if the environment has it."""
    from hf_clamu.models.modeling_clamu import ClamuModel

    return ClamuModel.from_pretrained(folder, task_id_key=task_id_key())


def task_id_key() -> str | None:
    """Return the secret of keyed task ids; from the environment, so that no shell history keeps it."""
    return os.environ.get("CLAMU_TASK_ID_KEY") or None
