"""`clamu init`: from a file of rows to a recipe."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.options import Json
from hf_clamu.cli.output import emit
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.proposal import Survey

__all__ = ["init"]


def init(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="File of rows: CSV, JSON, JSON lines or Parquet.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="File for the recipe.")] = Path("recipe.yaml"),
    sample: Annotated[
        bool, typer.Option("--sample", help="First write a sample to DATA (default messages.csv): 12 shops' messages.")
    ] = False,
    task_column: Annotated[str | None, typer.Option(help="Column of owners.", show_default=False)] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of texts.", show_default=False)] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub id or folder of the base model [default: a tiny one].", show_default=False)
    ] = None,
    preset: Annotated[
        Literal["per-task", "clusters", "adapters", "one-model"], typer.Option(help="Settings by name.")
    ] = "per-task",
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are written.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a file of texts with owners and labels, say what is in it, and write a recipe for it."""
    from hf_clamu.proposal import SAMPLE, recipe_text, survey_file
    from hf_clamu.proposal.recipe_text import MAX_LENGTH

    if data is None and not sample:
        raise RecipeError("Give the file of rows (DATA), or --sample to write one to start with.")
    path = data or Path("messages.csv")
    for file in (output, *([path] if sample else [])):
        if file.exists() and not force:
            raise RecipeError(f"{file} exists already. Give another name, or --force to replace it.")
    chosen = {"task_column": task_column, "text_column": text_column, "label_column": label_column}
    survey = survey_file(SAMPLE if sample else path, max_length=MAX_LENGTH, **chosen)
    files = Path(os.path.relpath(path, output.parent)).as_posix()
    text = recipe_text(survey, files=files, base=base, preset=preset)
    if sample:
        shutil.copyfile(SAMPLE, path)
    output.write_text(text, encoding="utf-8")
    values: dict[str, Any] = {
        "data": str(path),
        "recipe": str(output),
        "num_rows": survey.num_rows,
        "owners": survey.owners,
        "labels": survey.labels,
        "trouble": list(survey.trouble),
        **asdict(survey.columns),
    }
    emit(as_json, values, lambda: _text(survey, path, output))


def _text(survey: Survey, path: Path, output: Path) -> str:
    columns, sizes = survey.columns, survey.owners.values()
    labels = ", ".join(f"{label} ({count})" for label, count in list(survey.labels.items())[:10])
    return "\n".join(
        [
            f"{path}: {survey.num_rows} rows",
            f"  owners  {len(survey.owners)} in column {columns.task_column!r}, {min(sizes)} to {max(sizes)} rows",
            f"  texts   column {columns.text_column!r}, the longest has {survey.longest} bytes",
            f"  labels  {len(survey.labels)} in column {columns.label_column!r}: {labels}"
            f"{', …' if len(survey.labels) > 10 else ''}",
            *(["Look at:", *(f"  {line}" for line in survey.trouble)] if survey.trouble else []),
            f"Wrote {output}. Next: clamu plan {output}; clamu train {output} --output model",
        ]
    )
