"""`clamu init`: from files of rows to a recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.options import Json
from hf_clamu.cli.output import emit
from hf_clamu.cli.terminal.program import command_line
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.proposal import Survey

__all__ = ["init"]

_TaskColumn = Annotated[str | None, typer.Option(help="Column of owners.", show_default=False)]
_TextColumn = Annotated[str | None, typer.Option(help="Column of texts.", show_default=False)]
_LabelColumn = Annotated[str | None, typer.Option(help="Column of labels.", show_default=False)]
_PromptColumn = Annotated[str | None, typer.Option(help="Column of prompts.", show_default=False)]
_CompletionColumn = Annotated[
    str | None, typer.Option(help="Column of what is to be written after a prompt.", show_default=False)
]
_ImageColumn = Annotated[str | None, typer.Option(help="Column of images.", show_default=False)]
_MessagesColumn = Annotated[
    str | None, typer.Option(help="Column of conversations (lists of messages).", show_default=False)
]
_Ids = Annotated[
    Literal["strict", "as-is", "strip"] | None,
    typer.Option(
        help="Task ids that look alike: refuse them, take them as they are, or strip white space first [default: "
        "strip where that unites ids, otherwise strict].",
        show_default=False,
    ),
]
_IncompleteRows = Annotated[
    Literal["error", "skip"],
    typer.Option(
        help="Rows whose task id, text, image, label or completion is empty: refuse them, or leave them out."
    ),
]


def init(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA", help="Files of rows: CSV, JSON, JSON lines or Parquet; one table.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="File for the recipe.")] = Path("recipe.yaml"),
    sample: Annotated[
        bool, typer.Option("--sample", help="First write a sample to DATA (default messages.csv): 12 shops' messages.")
    ] = False,
    task_column: _TaskColumn = None,
    text_column: _TextColumn = None,
    label_column: _LabelColumn = None,
    prompt_column: _PromptColumn = None,
    completion_column: _CompletionColumn = None,
    image_column: _ImageColumn = None,
    messages_column: _MessagesColumn = None,
    ids: _Ids = None,
    incomplete_rows: _IncompleteRows = "error",
    base: Annotated[
        str | None, typer.Option(help="Hub id or folder of the base model [default: a tiny one].", show_default=False)
    ] = None,
    preset: Annotated[
        Literal["per-task", "clusters", "adapters", "one-model"], typer.Option(help="Settings by name.")
    ] = "per-task",
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are written.")] = False,
    as_json: Json = False,
) -> None:
    """Look at files of rows with owners, say what is in them, and write a recipe for them.

    A row has a text and a label, a prompt and a completion, a conversation, or an image and a label.
    """
    chosen: dict[str, Any] = {name: value for name, value in locals().items() if name.endswith("_column")}
    from hf_clamu.proposal import SAMPLE, recipe_text, survey_files
    from hf_clamu.proposal.recipe_text import CHAT_LENGTH, MAX_LENGTH

    if not data and not sample:
        raise RecipeError("Give the file of rows (DATA), or --sample to write one to start with.")
    paths = data or [Path("messages.csv")]
    if sample and len(paths) > 1:
        raise RecipeError(f"--sample writes one file, and {len(paths)} are given. Give one name.")
    for file in (output, *(paths if sample else [])):
        if file.exists() and not force:
            raise RecipeError(f"{file} exists already. Give another name, or --force to replace it.")
    settings: dict[str, Any] = {"ids": ids, "incomplete_rows": incomplete_rows}
    settings |= {"max_length": MAX_LENGTH, "chat_length": CHAT_LENGTH}
    survey = survey_files([SAMPLE] if sample else paths, **settings, **chosen)
    files = [Path(os.path.relpath(path, output.parent)).as_posix() for path in paths]
    text = recipe_text(survey, files=files[0] if len(files) == 1 else files, base=base, preset=preset)
    if sample:
        shutil.copyfile(SAMPLE, paths[0])
    output.write_text(text, encoding="utf-8")
    then = [command_line("plan", output)]
    if not survey.blocking:
        then.append(command_line("train", output, "--output", _new_folder()))
    emit(as_json, _values(survey, paths, output), lambda: _text(survey, paths, output), quiet=[str(output)], then=then)


def _new_folder() -> str:
    """Return a name for the model that nothing here has."""
    names = chain(["model"], (f"model-{number}" for number in count(2)))
    return next(name for name in names if not Path(name).exists())


def _values(survey: Survey, paths: Sequence[Path], output: Path) -> dict[str, Any]:
    return {
        "data": str(paths[0]),
        "files": list(map(str, paths)),
        "recipe": str(output),
        "num_rows": survey.num_rows,
        "owners": survey.owners,
        "labels": survey.labels,
        "ids": survey.ids,
        "incomplete_rows": survey.incomplete_rows,
        "trouble": list(survey.trouble),
        "blocking": [{"finding": one.text, "remedy": one.remedy} for one in survey.blocking],
        **survey.columns.named,
    }


def _text(survey: Survey, paths: Sequence[Path], output: Path) -> str:
    columns, sizes = survey.columns, survey.owners.values()
    rows = [f"  owners  {len(survey.owners)} in column {columns.task_column!r}, {min(sizes)} to {max(sizes)} rows"]
    if columns.image_column is not None:
        shapes = ", ".join("x".join(map(str, shape)) for shape in survey.image_shapes[:5])
        rows.append(f"  images  column {columns.image_column!r}, of shape {shapes}")
    elif columns.messages_column is not None:
        rows.append(f"  chats   column {columns.messages_column!r}, the longest has {survey.longest} bytes")
    elif columns.prompt_column is not None:
        rows.append(
            f"  texts   column {columns.prompt_column!r} and after it {columns.completion_column!r}, the longest has "
            f"{survey.longest} bytes"
        )
    else:
        rows.append(f"  texts   column {columns.text_column!r}, the longest has {survey.longest} bytes")
    if columns.label_column is not None:
        labels = ", ".join(f"{label} ({count})" for label, count in list(survey.labels.items())[:10])
        more = ", …" if len(survey.labels) > 10 else ""
        rows.append(f"  labels  {len(survey.labels)} in column {columns.label_column!r}: {labels}{more}")
    return "\n".join(
        [
            f"{', '.join(map(str, paths))}: {survey.num_rows} rows",
            *rows,
            *_finding_lines(survey, output),
            _next_line(survey, output),
        ]
    )


def _finding_lines(survey: Survey, output: Path) -> list[str]:
    taken = [one.text for one in survey.findings if not one.remedy]
    head = f"Solve first, because training refuses it (settings stand in the data section of {output}):"
    lines = [head] if survey.blocking else []
    for number, one in enumerate(survey.blocking, start=1):
        lines += [f"  {number}. {one.text}", f"     {one.remedy}"]
    return [*lines, *(["Look at, though training takes it:", *(f"  {text}" for text in taken)] if taken else [])]


def _next_line(survey: Survey, output: Path) -> str:
    count = len(survey.blocking)
    points = "point 1" if count == 1 else f"points 1 {'and' if count == 2 else 'to'} {count}"
    return f"Wrote {output}." + (f" Solve {points}, then check what is left." if count else "")
