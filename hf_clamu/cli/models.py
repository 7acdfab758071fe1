"""Loading the saved model that a command names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_clamu.cli.output import is_main_process, note
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = [
    "chosen_cluster",
    "load_model",
    "open_model",
    "open_to_answer",
    "report_pending",
    "task_id_key",
]

_TINY = (
    "The base model is the toy that clamu init writes (random weights): scores say nothing about real models. Name a "
    "pretrained one with clamu init ROWS --base NAME."
)
# Least and most of `own` minus `auto` in the table of docs/how-to/serve.md.
_GUESS = (
    "{} guesses the cluster of each input. In our measurements that falls 20 to 32 points behind a known owner "
    "(docs/how-to/serve.md): give the task wherever you know it."
)


def open_model(folder: str) -> ClamuModel:
    """Load a model for a command that only reads it; what a run that died has left there stays as it is."""
    report_pending(Path(folder))
    return load_model(folder)


def open_to_answer(folder: str, **ways: object) -> ClamuModel:
    """Load a model that is about to answer, and say on stderr what little its answers may mean.

    Args:
        folder (`str`): folder or Hub id.
        ways: options that may be `"auto"`, which guesses the cluster of an input.
    """
    from hf_clamu.proposal import is_tiny_base

    model = open_model(folder)
    checkpoint = model.merged.checkpoint
    if checkpoint.base.embedded and is_tiny_base(checkpoint.base_config()):
        note(_TINY)
    for name, value in ways.items():
        if value == "auto":
            note(_GUESS.format(f"--{name} auto"))
    return model


def load_model(folder: str) -> ClamuModel:
    """Load a model from a folder or a Hub id, with the key of its task ids if the environment has it."""
    from hf_clamu.models.modeling_clamu import ClamuModel

    return ClamuModel.from_pretrained(folder, task_id_key=task_id_key())


def task_id_key() -> str | None:
    """Return the secret of keyed task ids; from the environment, so that no shell history keeps it."""
    return os.environ.get("CLAMU_TASK_ID_KEY") or None


def report_pending(folder: Path) -> None:
    """Say on stderr that a run has announced a change of a model and has not finished it."""
    from hf_clamu.operations.lifecycle.pending import journal_beside, read_pending
    from hf_clamu.storage import Journal

    if is_main_process() and folder.is_dir() and read_pending(Journal(journal_beside(folder)), note):
        note(
            f"A change of {folder} was announced and is not settled: its run was stopped, or still runs. Commands "
            "that only read leave that alone; the next clamu unmerge, add or update of it settles it."
        )


def chosen_cluster(cluster: str | None, task: str | None) -> int | str | None:
    """Return the cluster that a command names: digits are its number, as no name consists of them.

    Raises:
        RecipeError: if a task is named, too.
    """
    if cluster is not None and task is not None:
        raise RecipeError("Give --cluster or --task, not both.")
    return int(cluster) if cluster is not None and cluster.isdecimal() else cluster
