"""The commands of `clamu`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli import fate
from hf_clamu.cli.faults import FAULT, out_of_memory, report_fault
from hf_clamu.cli.hub import add_hub_commands
from hf_clamu.cli.kernels import before_model, before_reading
from hf_clamu.cli.merge import CheckpointOption, add_merge_command, checkpoints_of
from hf_clamu.cli.models import open_model
from hf_clamu.cli.options import Data, Json
from hf_clamu.cli.output import emit, emit_error, note, quieten, require_room, table, warnings_as_notes
from hf_clamu.cli.pending import say_pending
from hf_clamu.cli.requests import add_request_commands
from hf_clamu.cli.train import add_train_commands
from hf_clamu.errors import (
    CheckpointFormatError,
    ClamuError,
    DigestMismatchError,
    EnvironmentMismatchError,
    ExactnessError,
    RecipeError,
)
from hf_clamu.version import __version__

if TYPE_CHECKING:
    from hf_clamu.tasks import TaskDataset

__all__ = ["app", "demo_text", "main"]

_INTERRUPTED = 130
_MOST_MEMBERS = 6  # of a cluster that the text of `info` names

app = typer.Typer(
    name="clamu",
    help="Exact unlearning of finetuning data by model merging.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

ModelDir = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="Folder of a saved model, or a Hub id.",
        show_default=False,
        callback=before_reading,
    ),
]
VerifiedDir = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="Folder of a saved model, or a Hub id.", show_default=False, callback=before_model
    ),
]
Cluster = Annotated[int | None, typer.Option(help="Number of a cluster.", show_default=False)]
Task = Annotated[str | None, typer.Option(help="Id of a task; its cluster serves.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"clamu {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a fault of hf_clamu, as CLAMU_DEBUG=1 does.")
    ] = False,
) -> None:
    """Exact unlearning of finetuning data by model merging."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="New folder for data, models, receipts and figures.")] = Path(
        "clamu-demo"
    ),
    as_json: Json = False,
) -> None:
    """Show the whole story on real handwritten digits, without network, in about two minutes."""
    from hf_clamu.demo import run_demo

    quieten()
    result = run_demo(output, say=note)
    emit(as_json, result, lambda: demo_text(output, result))
    if not result["identical"]:
        raise typer.Exit(1)


def demo_text(output: Path, result: dict[str, Any]) -> str:
    one = 4 * result["num_parameters"]
    rows = [
        (
            name,
            f"{100 * score:.1f} %",
            f"{result['storage_bytes'][name] / one:.2f}",
            _number(result["alpha"].get(name)),
        )
        for name, score in result["accuracy"].items()
    ]
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in result["seconds"].items())
    proof = "identical" if result["identical"] else "DIFFERENT"
    retained = {when: f"{100 * score:.1f} %" for when, score in result["retained_accuracy"].items()}
    lines = [
        f"{result['num_tasks']} tasks with two labels each, {result['num_clusters']} clusters, "
        f"{result['num_parameters']:,} weights",
        "",
        table(("method", "held-out accuracy", "stored models", "alpha"), rows),
        "",
        f"Forgot {', '.join(result['unmerged_tasks'])}: {output / 'unmerged'} and {output / 'rebuilt'} (built without "
        f"them) are {proof} in all {result['files_compared']} files, byte for byte.",
        f"Held-out accuracy of the other {result['num_tasks'] - len(result['unmerged_tasks'])} tasks: "
        f"{retained['before']} before, {retained['after']} after it.",
        f"Seconds: {seconds}.",
    ]
    if result["figures"]:
        lines.append(f"Figures: {', '.join(str(output / name) for name in result['figures'])}.")
    else:
        lines.append("No figures: matplotlib is not installed (pip install 'hf-clamu[plots]').")
    lines.append(f"Next: clamu unmerge {output / 'model'} owner_00; clamu verify {output / 'model'}")
    return "\n".join(lines)


@app.command()
def info(folder: ModelDir, as_json: Json = False) -> None:
    """Say what a saved model is made of, after checking the digests of its files."""
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.hub.hub import resolve_folder

    say_pending(Path(folder))
    checkpoint = read_checkpoint(resolve_folder(folder))
    config, state = checkpoint.config, checkpoint.state
    values: dict[str, Any] = {
        "format_version": config.format_version,
        "architecture": config.architecture,
        "base_model": config.base_model,
        "arguments": config.arguments,
        "task_spec": config.task_spec,
        "source": checkpoint.source,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "num_parameters": sum(n.numel() for n in state.delta.values()),
        "num_tasks": len(state.records),
        "alpha": state.alpha,
        "clusters": [list(members) for members in state.clusters],
        "state_digest": checkpoint.state_digest,
    }
    emit(as_json, values, lambda: _info_text(folder, values))


def _info_text(folder: str, values: dict[str, Any]) -> str:
    base, arguments = values["base_model"], values["arguments"]
    name = base["name_or_path"] or "(inside, base_model/)"
    rows = [(str(number), str(len(m)), _shortened(m)) for number, m in enumerate(values["clusters"])]
    members = table(("cluster", "tasks", "members"), rows, left=(0, 2))
    return "\n".join(
        [
            f"{folder}: {values['architecture']}, base {name} {base['revision'] or ''}".rstrip(),
            f"{values['num_tasks']} tasks, {values['num_parameters']:,} weights, alpha {values['alpha']:.6g}",
            ", ".join(f"{name} {arguments[name]}" for name in ("clustering", "localization", "scaling", "seed")),
            f"state {values['state_digest']}",
            "",
            members if rows else "No task is merged: this is the base model.",
        ]
    )


def _shortened(members: Sequence[str]) -> str:
    more = len(members) - _MOST_MEMBERS
    return ", ".join(members[:_MOST_MEMBERS]) + (f", … and {more} more" if more > 0 else "")


@app.command()
def predict(
    folder: ModelDir,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Texts, or image files.", show_default=False)
    ] = None,
    cluster: Cluster = None,
    task: Task = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of rows (CSV, JSON, JSONL, Parquet) instead of inputs; may be repeated.", show_default=False
        ),
    ] = None,
    fallback: Annotated[
        Literal["global", "base"] | None,
        typer.Option(
            help="Who serves a task that is not merged, or is forgotten; by default it is an error.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a generated completion.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Predict inputs or rows; a row that names its task is served by that task's cluster."""
    from hf_clamu.serving.prediction import predict as predict_rows
    from hf_clamu.tasks import TaskSpec
    from hf_clamu.tasks.reading.files import read_files

    _one_of(cluster, task)
    if bool(inputs) == bool(data):
        raise RecipeError("Give either inputs or --data FILE.")
    quieten()
    model = open_model(folder)
    spec = TaskSpec.from_dict(model.clamu_config.task_spec)
    rows = list(read_files(data, spec, partial=True)[0]) if data else [_row(spec, value) for value in inputs or ()]
    answers = predict_rows(model, rows, cluster=cluster, task=task, fallback=fallback, max_new_tokens=max_new_tokens)
    unchosen = sum(cluster is None and task is None and row.get(spec.task_column) is None for row in rows)
    if unchosen and model.clusters:
        note(
            f"The global model serves {unchosen} of {len(rows)} inputs, which name no task. It has no mask and is "
            "weaker than a cluster on its own tasks: choose one with --task or --cluster."
        )
    if data:
        named = [{"row": number, "task": row.get(spec.task_column)} for number, row in enumerate(rows)]
        answers = [{**head, **answer} for head, answer in zip(named, answers, strict=True)]
    elif spec.image_column is not None and model.processor is None:
        note("The model has no image processor: pixels are taken as the files have them, as a rule from 0 to 255.")
    heads = [""] * len(rows) if not data else [_row_head(spec, *numbered) for numbered in enumerate(rows)]
    lines = (f"{head}{_answer_text(answer)}" for head, answer in zip(heads, answers, strict=True))
    emit(as_json, {"predictions": answers}, lambda: "\n".join(lines))


def _row_head(spec: Any, number: int, row: dict[str, Any]) -> str:
    """Return which row of a file an answer is to, counted from 0 as in errors, and whose it is."""
    task = row.get(spec.task_column)
    return f"row {number}\t{'-' if task is None else task}\t"


def _row(spec: Any, value: str) -> dict[str, Any]:
    if spec.tokens_column is not None:
        return {spec.tokens_column: value.split()}
    if spec.image_column is None:
        return {spec.prompt_column or spec.text_column: value}
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(value) as image:
            return {spec.image_column: ImageOps.exif_transpose(image)}  # as data sets and pipelines read it
    except (OSError, UnidentifiedImageError) as error:
        raise RecipeError(f"{value!r} is no image file that can be read ({error}).") from error


def _answer_text(answer: dict[str, Any]) -> str:
    served = answer["served_by"] if answer["cluster"] is None else f"cluster {answer['cluster']}"
    if "completion" in answer:
        return f"{answer['completion']}\t({served})"
    if "tags" in answer:
        return f"{' '.join(tag or '-' for tag in answer['tags'])}\t({served})"
    return f"{answer['label']}\t{answer['score']:.3f}\t({served})"


@app.command()
def evaluate(
    folder: ModelDir,
    cluster: Cluster = None,
    task: Task = None,
    data: Data = None,
    split: Annotated[
        Literal["validation", "train", "all"] | None,
        typer.Option(
            help="Which examples; by default validation, or all rows of a file given with --data.", show_default=False
        ),
    ] = None,
    serving: Annotated[
        Literal["own", "global", "base"], typer.Option(help="Each task by its own cluster, the global model or base.")
    ] = "own",
    as_json: Json = False,
) -> None:
    """Measure a model on its tasks' data, or on held-out rows given with --data."""
    from hf_clamu.evaluation import evaluate_model
    from hf_clamu.trainer import progress_bars

    _one_of(cluster, task)
    quieten()
    model = open_model(folder)
    tasks: TaskDataset = model.load_tasks(data)
    if task is not None:
        model.cluster_of(task)  # a wrong id should be named as such
        tasks = tasks.select([model.ledger_id(task)])
    elif cluster is not None:
        model.set_cluster(cluster)
        tasks = tasks.select([task_id for task_id in model.clusters[cluster] if task_id in tasks])
    chosen = split or ("all" if data else "validation")
    report = evaluate_model(model, tasks, split=chosen, serving=serving, progress=progress_bars)
    unmeasured = len(report.without_examples)
    if unmeasured:
        note(f"{unmeasured} of the {len(tasks)} tasks have no {chosen} examples, so they are not measured.")
    left_out = len(tasks) - len(report.tasks) - unmeasured
    if left_out:
        note(f"{left_out} of the {len(tasks)} tasks in the data are left out: not merged, or forgotten.")
    values = {**report.to_dict(), "split": chosen, "serving": serving}
    emit(as_json, values, lambda: _evaluation_text(values))


def _evaluation_text(values: dict[str, Any]) -> str:
    def cells(summaries: dict[str, dict[str, float]]) -> list[str]:
        return [f"{100 * found['mean']:.1f} ± {100 * found['spread']:.1f} %" for found in summaries.values()]

    rows = [(f"cluster {number}", *cells(summaries)) for number, summaries in values["clusters"].items()]
    rows.append(("all tasks", *cells(values["metrics"])))
    names = [name.replace("_", " ") for name in values["metrics"]]
    return (
        table((values["split"], *names), rows)
        + f"\nmean ± spread over {values['num_tasks']} tasks, {values['num_examples']} examples"
    )


@app.command()
def export(
    folder: ModelDir,
    output: Annotated[Path, typer.Option(help="New folder for the plain checkpoint.", show_default=False)],
    cluster: Cluster = None,
    task: Task = None,
    as_json: Json = False,
) -> None:
    """Write the global model, or one cluster's, as a plain transformers checkpoint."""
    from hf_clamu.storage.replace import require_replaceable

    _one_of(cluster, task)
    require_replaceable(output)
    require_room(output)
    quieten()
    model = open_model(folder)
    model.export(output, cluster=cluster, task=task)
    served = model.cluster_of(task) if task is not None else cluster
    which = "the global model" if served is None else f"cluster {served}"
    emit(as_json, {"output": str(output), "cluster": served}, lambda: f"Wrote {which} to {output}.")


@app.command()
def verify(folder: VerifiedDir, data: Data = None, checkpoint: CheckpointOption = None, as_json: Json = False) -> None:
    """Build anew from the data of the merged tasks and compare every byte; exit 0 if all are the same, else 1."""
    from hf_clamu.hub.hub import resolve_folder
    from hf_clamu.trainer import progress_bars

    quieten()
    try:
        model = open_model(folder)
    except CheckpointFormatError as error:
        if not (resolve_folder(folder) / "ledger.json").is_file():
            raise  # no saved model, so nothing was verified
        emit_error(as_json, type(error).__name__, f"{folder} is no model that a build gives. {error}")
        raise typer.Exit(1) from None
    try:
        report = model.verify(data=data, checkpoints=checkpoints_of(checkpoint or ()), progress=progress_bars)
    except (DigestMismatchError, EnvironmentMismatchError) as error:
        # What they advise is for requests.
        raise type(error)(f"{error} (--on-mismatch is an option of clamu unmerge and clamu update.)") from None
    verdict = "identical" if report else f"DIFFERENT in {_differences_text(report)}"
    emit(
        as_json,
        report.to_dict(),
        lambda: f"{folder} and a build from its tasks' data: {verdict} ({report.files_compared} files).",
    )
    if not report:
        raise typer.Exit(1)


def _differences_text(report: Any) -> str:
    ours = [name for name in report.differences if name not in report.additional]
    more = "an additional file that a build does not write"
    return ", ".join([*ours, *(f"{name} ({more})" for name in report.additional)])


add_request_commands(app)
add_train_commands(app)
add_merge_command(app)
add_hub_commands(app)


def _one_of(cluster: int | None, task: str | None) -> None:
    if cluster is not None and task is not None:
        raise RecipeError("Give --cluster or --task, not both.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _described() -> None:
    """Let the list of commands show the whole first sentence of each, which the parser would cut off."""
    for command in app.registered_commands:
        text = (command.callback and command.callback.__doc__) or ""
        command.short_help = text.strip().split("\n\n")[0]


_described()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (*sequence* of `str`, *optional*): by default the process's own arguments.

    Returns:
        `int`: 0 on success; 1 if exactness could not be proven; 2 on bad usage or input; 3 on a fault of hf_clamu; 130
        when interrupted.
    """
    arguments, debug = _understood(list(sys.argv[1:] if argv is None else argv))
    as_json = "--json" in arguments
    fate.forget()
    try:
        with warnings_as_notes():
            code = app(args=arguments, prog_name="clamu", standalone_mode=False)
    except KeyboardInterrupt:  # before typer, which makes its code of it, began to run the command
        code = _INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except BaseException as error:  # what libraries in Rust raise when they panic is no Exception
        code, kind, message = _refusal(error, debug)
        emit_error(as_json, kind, fate.after_an_error(message))
        return code
    if code == _INTERRUPTED:  # typer makes this of a KeyboardInterrupt
        emit_error(as_json, "KeyboardInterrupt", fate.interrupted(arguments[0] if arguments else ""))
    return code if isinstance(code, int) else 0


def _understood(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments as the parser takes them, and whether `--debug` is among them, wherever it stands."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [word for place, word in enumerate(arguments) if word != "--debug" or place > end]
    if not arguments or arguments == ["help"]:
        return ["--help"], debug
    return ([*arguments[1:2], "--help"] if arguments[0] == "help" else arguments), debug


def _refusal(error: BaseException, debug: bool) -> tuple[int, str, str]:
    """Return the exit code for an exception, its kind and its sentence."""
    kind = type(error).__name__
    if isinstance(error, ExactnessError):
        return 1, kind, str(error)
    if isinstance(error, (ClamuError, OSError)):
        return 2, kind, str(error)
    message = getattr(error, "format_message", None)
    if message is not None:  # usage errors of typer's parser
        place = getattr(getattr(error, "ctx", None), "command_path", "clamu")
        return 2, "UsageError", f"{message().replace('Value error, ', '')} See {place} --help."
    short = out_of_memory(error)
    if short is not None:
        return 2, "MemoryError", short
    return FAULT, kind, report_fault(error, show=debug)
