"""`clamu evaluate`: how well a model serves its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.models import chosen_cluster, open_to_answer
from hf_clamu.cli.options import Cluster, Data, Json, ModelToRead, Task
from hf_clamu.cli.output import emit, note, quieten, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.program import command_line, same_command

if TYPE_CHECKING:
    from hf_clamu.tasks import TaskDataset

__all__ = ["evaluate"]


def evaluate(
    folder: ModelToRead,
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
        Literal["own", "global", "base", "auto"],
        typer.Option(
            help="Each task by its own cluster, the global model or base; auto: each example by the cluster that is "
            "nearest by the base model's features."
        ),
    ] = "own",
    as_json: Json = False,
) -> None:
    """Measure a model on its tasks' data, or on held-out rows given with --data."""
    from hf_clamu.evaluation import evaluate_model

    wanted = chosen_cluster(cluster, task)
    quieten()
    model = open_to_answer(folder, serving=serving)
    tasks: TaskDataset = model.load_tasks(data)
    if task is not None:
        model.cluster_of(task)  # a wrong id should be named as such
        tasks = tasks.select([model.ledger_id(task)])
    elif wanted is not None:
        members = model.clusters[model.merged.state.find_cluster(wanted)]
        tasks = tasks.select([task_id for task_id in members if task_id in tasks])
    chosen = split or ("all" if data else "validation")
    report = evaluate_model(model, tasks, split=chosen, serving=serving, progress=progress_bars)
    unmeasured = len(report.without_examples)
    if unmeasured:
        note(f"{unmeasured} of the {len(tasks)} tasks have no {chosen} examples, so they are not measured.")
    left_out = len(tasks) - len(report.tasks) - unmeasured
    if left_out:
        note(f"{left_out} of the {len(tasks)} tasks in the data are left out: not merged, or forgotten.")
    values = {**report.to_dict(), "split": chosen, "serving": serving}
    others = command_line("info", folder, "--members")
    then = [others if serving != "own" or wanted is not None or task else same_command("--serving", "base")]
    emit(as_json, values, lambda: _evaluation_text(values), quiet=report.tasks, then=then)


def _evaluation_text(values: dict[str, Any]) -> str:
    names = values["cluster_names"]
    rows = [(f"cluster {number} ({names[number]})", *_cells(found)) for number, found in values["clusters"].items()]
    rows.append(("all tasks", *_cells(values["metrics"])))
    metrics = [name.replace("_", " ") for name in values["metrics"]]
    return (
        table((values["split"], *metrics), rows)
        + f"\nmean ± spread over {values['num_tasks']} tasks, {values['num_examples']} examples"
    )


def _cells(summaries: dict[str, dict[str, float]]) -> list[str]:
    return [f"{100 * summary['mean']:.1f} ± {100 * summary['spread']:.1f} %" for summary in summaries.values()]
