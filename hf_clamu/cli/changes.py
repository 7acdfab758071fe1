"""The steps that `unmerge`, `add` and `update` share: open, save, and the receipt that they print."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.models import load_model
from hf_clamu.cli.output import is_main_process, note, quieten, require_empty_output

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.lifecycle.target import ModelTarget

__all__ = ["OpenChange", "open_change", "receipt_lines"]

_LEFT = "Old commits of {} still hold the forgotten tasks: clamu erase {} removes them for good."


@dataclass(frozen=True, kw_only=True)
class OpenChange:
    """A model that a command is about to change: locked, recovered and loaded.

    Args:
        target (`ModelTarget`): where it is, and where the result goes.
        model (`ClamuModel`): the model.
        erase_history (`bool`, *optional*): remove old commits of a Hub id when the result is saved; `None` says how.
    """

    target: ModelTarget
    model: ClamuModel
    erase_history: bool | None

    def require_writable(self) -> None:
        """Refuse an output or a folder of receipts that cannot be written, before anything is trained."""
        from hf_clamu.storage.replace import require_replaceable

        target = self.target
        if target.has_result and target.output is not None:
            require_empty_output(target.output)
        if not target.receipts.is_dir():
            require_replaceable(target.receipts)

    def save(self) -> None:
        """Save the changed model, and do what is left to do then: receipts, the archive, old commits."""
        target = self.target
        if is_main_process():
            if target.is_on_hub and self.erase_history is None:
                note(_LEFT.format(target.source, target.source))
            expect_result(target.source if target.is_on_hub else Path(target.name).resolve())
        target.save(self.model, erase_history=bool(self.erase_history))

    def receipt_values(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """Return a receipt and the file that has it."""
        from hf_clamu.operations.lifecycle.receipts import receipt_path

        return {"receipt": receipt, "receipt_file": str(receipt_path(self.target.receipts, receipt))}


@contextmanager
def open_change(
    folder: str, *, output: Path | None, receipts: Path | None, archive: str | None, erase_history: bool | None
) -> Iterator[OpenChange]:
    """Lock a model, recover what a run that died has left (and say so on stderr), and load it.

    Args:
        folder (`str`): folder or Hub id of the model.
        output (`Path`, *optional*): written instead of it.
        receipts (`Path`, *optional*): folder of the receipts.
        archive (`str`, *optional*): folder or `hf://ORG/NAME` of the task vectors.
        erase_history (`bool`, *optional*): remove old commits of a Hub id; `None` asks, before anything is done.
    """
    from hf_clamu.operations.lifecycle.target import open_target

    if erase_history is None and output is None and not Path(folder).is_dir():
        erase_history = _asked_to_erase(folder)
    quieten()
    with open_target(folder, output=output, receipts=receipts, archive=archive, say=note) as target:
        if not target.has_result and output is not None:
            require_empty_output(output)
        # The result, if an earlier run had saved it.
        model = load_model(target.name if target.has_result else target.source)
        yield OpenChange(target=target, model=model, erase_history=erase_history)


def _asked_to_erase(repo_id: str) -> bool | None:
    """Return what somebody at the terminal wants of the history of a repo; None if nobody is there."""
    if not (is_main_process() and sys.stdin.isatty()):
        return None
    question = f"Old commits of {repo_id} will still hold what leaves it. Erase its history for good afterwards?"
    return typer.confirm(question, default=False, err=True)


def receipt_lines(values: Mapping[str, Any]) -> list[str]:
    """Return readable lines about the receipt of a change."""
    return [
        f"state before {values['receipt']['digests']['before']}",
        f"state after  {values['receipt']['digests']['after']}",
        f"Receipt: {values['receipt_file']} (remove its part 'private' before you show it to others).",
    ]
