"""`clamu predict`: answers for inputs or for rows of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.models import chosen_cluster, open_to_answer
from hf_clamu.cli.options import ClusterOrAuto, Json, ModelToRead, Task
from hf_clamu.cli.output import emit, note, quieten
from hf_clamu.cli.terminal.formats import current_format
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.tasks import TaskSpec

__all__ = ["predict"]


def predict(
    folder: ModelToRead,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Texts, or image files.", show_default=False)
    ] = None,
    cluster: ClusterOrAuto = None,
    task: Task = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of rows (CSV, JSON, JSONL, Parquet) instead of inputs; may be repeated.", show_default=False
        ),
    ] = None,
    fallback: Annotated[
        Literal["global", "base", "auto"] | None,
        typer.Option(
            help="Who serves a task that is not merged, or is forgotten (auto: the nearest cluster); by default it is "
            "an error.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a generated completion.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Predict inputs or rows; a row that names its task is served by that task's cluster."""
    from hf_clamu.serving.prediction import predict as predict_rows
    from hf_clamu.tasks.reading.files import place_in, read_files

    wanted = chosen_cluster(cluster, task)
    if bool(inputs) == bool(data):
        raise RecipeError("Give either inputs or --data FILE.")
    quieten()
    model = open_to_answer(folder, cluster=wanted, fallback=fallback)
    spec = model.merged.checkpoint.task_spec
    table, files = read_files(data, spec, partial=True) if data else (None, ())
    rows = [_row(spec, value) for value in inputs or ()] if table is None else list(table)
    chosen: dict[str, Any] = {"cluster": wanted, "task": task, "fallback": fallback}
    answers = predict_rows(
        model,
        rows,
        **chosen,
        max_new_tokens=max_new_tokens,
        name_of_row=lambda number: place_in(files, number) or f"row {number}",
    )
    unchosen = sum(cluster is None and task is None and row.get(spec.task_column) is None for row in rows)
    if unchosen and model.clusters:
        note(
            f"The global model serves {unchosen} of {len(rows)} inputs, which name no task. It has no mask and is "
            "weaker than a cluster on its own tasks: choose one with --task or --cluster, or try --cluster auto."
        )
    if data:
        named = [{"row": number, "task": row.get(spec.task_column)} for number, row in enumerate(rows)]
        answers = [{**head, **answer} for head, answer in zip(named, answers, strict=True)]
    elif spec.image_column is not None and model.processor is None:
        note("The model has no image processor: pixels are taken as the files have them, usually from 0 to 255.")
    heads = [""] * len(rows) if not data else [_row_head(spec, *numbered) for numbered in enumerate(rows)]
    lines = (f"{head}{_answer_text(answer)}" for head, answer in zip(heads, answers, strict=True))
    if current_format() == "human":
        note("\t".join([*(("row", "task") if data else ()), *_answer_columns(spec), "served by"]))
    emit(as_json, {"predictions": answers}, lambda: "\n".join(lines), quiet=map(_answer, answers))


def _row_head(spec: TaskSpec, number: int, row: dict[str, Any]) -> str:
    """Return which row of a file an answer is to, counted from 0 as in errors, and whose it is."""
    task = row.get(spec.task_column)
    return f"row {number}\t{'-' if task is None else task}\t"


def _row(spec: TaskSpec, value: str) -> dict[str, Any]:
    from hf_clamu.serving.inputs import image_row, text_row

    return text_row(spec, value) if spec.image_column is None else image_row(spec, value, name=repr(value))


def _answer_columns(spec: TaskSpec) -> tuple[str, ...]:
    """Return the names of what `_answer_text` prints, before who serves."""
    from hf_clamu.tasks import traits_of

    traits = traits_of(spec.kind)
    return ("completion",) if traits.writes_text else ("tags",) if traits.labels == "words" else ("label", "score")


def _answer(answer: dict[str, Any]) -> str:
    """Return the answer alone."""
    if "completion" in answer:
        return str(answer["completion"])
    return " ".join(tag or "-" for tag in answer["tags"]) if "tags" in answer else str(answer["label"])


def _answer_text(answer: dict[str, Any]) -> str:
    served = answer["served_by"] if answer["cluster"] is None else f"cluster {answer['cluster_name']}"
    score = f"\t{answer['score']:.3f}" if "label" in answer else ""
    return f"{_answer(answer)}{score}\t({served})"
