"""`clamu audit`: what the files of saved models show, without data and without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.options import Json
from hf_clamu.cli.output import emit, quieten, table
from hf_clamu.cli.terminal.completion import complete_model
from hf_clamu.cli.terminal.program import command_line
from hf_clamu.errors import CheckpointFormatError, RecipeError

__all__ = ["audit"]

_MOST_BYTES = 1 << 26  # of a receipt

_NOT_PROVEN = (
    "Not shown by an audit: that a vector came of honest training on its owner's rows (clamu prove --data), masks "
    "that are learned from data (clamu verify), and copies elsewhere."
)


def audit(
    before: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Folder of a saved model, or a Hub id, also ORG/NAME@REVISION.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ],
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="AFTER",
            help="The same model after requests: then the change from DIR to it is audited.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Receipt of the request between both states.", show_default=False),
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder or hf://buckets/ORG/NAME that still has the vectors of the tasks that left or joined, where "
            "several did at once and no linear digests are kept.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check without data whether a merged delta is the sum of the ledger's tasks, or what left between two states.

    Exit 0 if it is proven, 1 if it is refuted or cannot be shown.
    """
    if after is None and (receipt is not None or archive is not None):
        raise RecipeError("--receipt and --archive go with two states: give the model before and after (DIR AFTER).")
    quieten()
    content = None if receipt is None else _receipt(receipt)
    values, is_proven = _model_values(before) if after is None else _change_values(before, after, content, archive)
    state = before if after is None else after
    command = "receipts" if is_proven else "verify"
    then = [command_line(command, state)] if "@" not in state or Path(state).exists() else []
    unproven = [one["name"] for one in values["checks"] if one["verdict"] != "passed"]
    emit(as_json, values, lambda: _text(values), quiet=unproven, then=then)
    if not is_proven:
        raise typer.Exit(1)


def _model_values(name: str) -> tuple[dict[str, Any], bool]:
    """Audit a model; return what is printed, and whether it is proven."""
    from hf_clamu.proofs.audit import audit_model
    from hf_clamu.proofs.saved import read_saved

    model = read_saved(name)
    report = audit_model(model)
    return {"model": name, "state_digest": model.state_digest, **report.to_dict()}, bool(report)


def _change_values(before: str, after: str, receipt: Any, archive: str | None) -> tuple[dict[str, Any], bool]:
    """Audit the change between two states, likewise."""
    from hf_clamu.hub.archive import archive_at
    from hf_clamu.proofs.audit import audit_change
    from hf_clamu.proofs.saved import read_saved

    model, changed, vectors = read_saved(before), read_saved(after), archive_at(archive)
    if vectors is not None:
        vectors.open(may_create=False)
    report = audit_change(model, changed, receipt=receipt, archive=vectors)
    digests = {"before": model.state_digest, "after": changed.state_digest}
    facts = {"model": before, "after": after, "state_digest": changed.state_digest, "digests": digests}
    return {**facts, **report.to_dict()}, bool(report)


def _receipt(path: Path) -> Any:
    from hf_clamu.storage import read_json

    if not path.is_file():
        raise RecipeError(f"There is no receipt {path}. Give the file that a request wrote (receipts/….json).")
    try:
        return read_json(path, _MOST_BYTES, may_link=True)
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is no receipt ({error}). Give the file that a request wrote.") from error


def _text(values: dict[str, Any]) -> str:
    what = values["model"] if "after" not in values else f"{values['model']} to {values['after']}"
    rows = [(one["name"], one["verdict"], one["text"]) for one in values["checks"]]
    return "\n".join(
        [
            f"{what}: {values['verdict']}",
            table(("what", "verdict", "found"), rows, left=(0, 1, 2)),
            _NOT_PROVEN,
        ]
    )
