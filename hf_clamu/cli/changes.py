"""The stations that `unmerge`, `add` and `update` share: open, load, save, and the receipt that they print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.models import load_model
from hf_clamu.cli.output import is_main_process, note, require_empty_output

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.lifecycle.target import ModelTarget

__all__ = [
    "ChangeOptions",
    "load_to_change",
    "open_change",
    "receipt_lines",
    "receipt_values",
    "require_writable",
    "save_change",
]


@dataclass(frozen=True, kw_only=True)
class ChangeOptions:
    """What every command that changes a model is given.

    Args:
        folder (`str`): folder or Hub id of the model.
        output (`Path`, *optional*): written instead of it.
        receipts (`Path`, *optional*): folder of the receipts.
        archive (`str`, *optional*): folder or `hf://ORG/NAME` of the task vectors.
        erase_history (`bool`, *optional*): remove old commits of a Hub id; `None` asks.
        as_json (`bool`): print one JSON object.
    """

    folder: str
    output: Path | None
    receipts: Path | None
    archive: str | None
    erase_history: bool | None
    as_json: bool


def open_change(options: ChangeOptions) -> AbstractContextManager[ModelTarget]:
    """Lock the model and recover what a run that died has left; say so on stderr."""
    from hf_clamu.operations.lifecycle.target import open_target

    return open_target(
        options.folder, output=options.output, receipts=options.receipts, archive=options.archive, say=note
    )


def load_to_change(target: ModelTarget) -> ClamuModel:
    """Load the model to change, or the result if an earlier run had saved it."""
    if target.has_result:
        return load_model(target.name)
    if target.output is not None:
        require_empty_output(target.output)
    return load_model(target.source)


def require_writable(target: ModelTarget) -> None:
    """Refuse an output or a folder of receipts that cannot be written, before anything is trained."""
    from hf_clamu.storage.replace import require_replaceable

    if target.has_result and target.output is not None:
        require_empty_output(target.output)
    if not target.receipts.is_dir():
        require_replaceable(target.receipts)


def save_change(target: ModelTarget, model: ClamuModel, options: ChangeOptions) -> None:
    """Save a changed model, and ask first whether the history of a Hub id is to be erased."""
    erase_history = False
    if is_main_process():
        if target.is_on_hub:
            erase_history = _wants_erasure(options.erase_history, target.source)
        expect_result(target.source if target.is_on_hub else Path(target.name).resolve())
    target.save(model, erase_history=erase_history)


def _wants_erasure(chosen: bool | None, repo_id: str) -> bool:
    """Return whether the history of a repo is to be erased: as chosen, or as answered."""
    if chosen is not None:
        return chosen
    if sys.stdin.isatty():
        question = f"Old commits of {repo_id} still hold the forgotten tasks. Erase its history for good?"
        return typer.confirm(question, default=False, err=True)
    note(f"Old commits of {repo_id} still hold the forgotten tasks: clamu erase {repo_id} removes them for good.")
    return False


def receipt_values(target: ModelTarget, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receipt and the file that has it."""
    from hf_clamu.operations.lifecycle.receipts import receipt_path

    return {"receipt": receipt, "receipt_file": str(receipt_path(target.receipts, receipt))}


def receipt_lines(values: Mapping[str, Any]) -> list[str]:
    """Return readable lines about the receipt of a change."""
    return [
        f"state before {values['receipt']['digests']['before']}",
        f"state after  {values['receipt']['digests']['after']}",
        f"Receipt: {values['receipt_file']} (remove its part 'private' before you show it to others).",
    ]
