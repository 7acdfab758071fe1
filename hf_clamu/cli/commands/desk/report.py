"""`clamu report`: the evidence of a request, for a person and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.options import Json, KeysToTrust, ModelToRead, Receipts, other_model
from hf_clamu.cli.output import emit, quieten
from hf_clamu.errors import RecipeError

__all__ = ["report"]

_MOST_BYTES = 1 << 26  # of a finding
_ENDINGS = ".html (a page to read and print), .json (the same for programs) or .cdx.json (CycloneDX)"

_Output = Annotated[
    Path, typer.Option(metavar="FILE", help=f"File to write; its ending says what: {_ENDINGS}.", show_default=False)
]
_Request = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="What the request is called, or the name of its receipt's file [default: the last request].",
        show_default=False,
    ),
]
_Findings = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="What clamu verify, audit or attack printed with --json; may be repeated. What clamu queue run found is "
        "taken in anyway.",
        show_default=False,
    ),
]


def report(
    folder: ModelToRead,
    output: _Output,
    receipts: Receipts = None,
    request: _Request = None,
    finding: _Findings = None,
    before: Annotated[
        str | None,
        other_model("The model before the last request, also ORG/NAME@REVISION: audit what changed."),
    ] = None,
    key: KeysToTrust = None,
    with_ids: Annotated[
        bool, typer.Option("--with-ids", help="Name the tasks of the request; by default nobody is named.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write the evidence of a request: what was asked and done, what was checked, and what is not shown.

    The model is read as it is now and audited, which takes no data and seconds.
    """
    from hf_clamu.operations.intake.book import RequestBook
    from hf_clamu.proofs.evidence.collecting import collect_evidence
    from hf_clamu.proofs.evidence.documents import DOCUMENTS
    from hf_clamu.proofs.evidence.summary import headline, summary
    from hf_clamu.signing import load_public_keys
    from hf_clamu.storage import write_atomically

    kind = _require_writable(folder, output, overwrite=overwrite)
    if receipts is not None and not receipts.is_dir():
        raise RecipeError(f"There is no folder {receipts}. Give the one that has the receipts (--receipts).")
    quieten()
    values = collect_evidence(
        folder,
        receipts=receipts,
        request=request,
        asked=None if request is None else RequestBook.of(folder).done_before(request),
        findings=[(str(path), _read(path)) for path in finding or ()],
        before=before,
        keys=load_public_keys(key) if key else (),
        with_ids=with_ids,
    )
    write_atomically(output, DOCUMENTS[kind](values).encode("utf-8"))
    told = [{"verdict": one.verdict, "text": one.text} for one in summary(values)]
    facts = {
        "model": folder,
        "output": str(output),
        "receipt": values["receipt"]["file"],
        "headline": headline(values),
        "summary": told,
        "not_shown": values["not_shown"],
    }
    emit(as_json, facts, lambda: _text(facts, told))


def _require_writable(folder: str, output: Path, *, overwrite: bool) -> str:
    """Return the ending that says what is written, if the file may be written."""
    kind = next((one for one in (".cdx.json", ".json", ".html") if output.name.lower().endswith(one)), None)
    if kind is None:
        raise RecipeError(f"The name of --output ends with {_ENDINGS}; found {output.name!r}.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise RecipeError(f"{output} can be no file: give --output the name of a file in a folder that exists.")
    if output.resolve().is_relative_to(Path(folder).resolve()) and Path(folder).is_dir():
        raise RecipeError(f"{output} would be a file of the model in {folder}. Give --output a place elsewhere.")
    if output.exists() and not overwrite:
        raise RecipeError(f"{output} exists. Give another name (--output), or --overwrite to replace it.")
    return kind


def _read(path: Path) -> Any:
    from hf_clamu.storage import read_json

    if not path.is_file():
        raise RecipeError(
            f"There is no file {path}. Give one with what clamu verify, audit or attack printed (--json)."
        )
    try:
        return read_json(path, _MOST_BYTES, may_link=True)
    except ValueError as error:
        raise RecipeError(
            f"{path} is no JSON ({error}). Give what clamu verify, audit or attack printed with --json."
        ) from error


def _text(facts: Mapping[str, Any], told: Sequence[Mapping[str, str]]) -> str:
    words = {"shown": "shown", "open": "not shown", "failed": "FAILED"}
    lines = [f"{words[one['verdict']]}: {one['text']}" for one in told]
    return "\n".join([str(facts["headline"]), *lines, f"Written to {facts['output']}."])
