"""`clamu train` and `clamu plan`: a build as a recipe says, and what it will need."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_clamu.cli.builds import report_build
from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.models import task_id_key
from hf_clamu.cli.options import (
    Data,
    Ids,
    IncompleteRowsOption,
    Json,
    LoggingDir,
    MaxShardSize,
    NewArchive,
    NewModel,
    Overwrite,
    PresetOption,
    RecipeFile,
    ReportTo,
    Without,
)
from hf_clamu.cli.output import emit, is_main_process, note, quieten, require_empty_output, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.resources import with_stages

if TYPE_CHECKING:
    from hf_clamu.recipe import Recipe

__all__ = ["plan", "train"]


def train(
    recipe: RecipeFile,
    output: NewModel,
    data: Data = None,
    without: Without = None,
    preset: PresetOption = None,
    ids: Ids = None,
    incomplete_rows: IncompleteRowsOption = None,
    archive: NewArchive = None,
    overwrite: Overwrite = False,
    max_shard_size: MaxShardSize = None,
    report_to: ReportTo = None,
    logging_dir: LoggingDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would need, as `clamu plan` does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Finetune, merge, cluster and localize as a recipe says; started again, it goes on from what is finished."""
    rows = {"ids": ids, "incomplete_rows": incomplete_rows}
    if dry_run:
        from hf_clamu.planning import estimate_build

        quieten()
        values = estimate_build(_load_recipe(recipe, preset, rows), data=data).to_dict()
        emit(as_json, values, lambda: _estimate_text(values))
        return
    from hf_clamu.checkpoint.files.shards import shard_bytes
    from hf_clamu.operations.lifecycle.build_target import build_summary, open_build
    from hf_clamu.tasks import keyed_id

    loaded = _load_recipe(recipe, preset, rows, report_to, logging_dir)
    text = recipe.read_text(encoding="utf-8", errors="replace")
    size = None if max_shard_size is None else shard_bytes(max_shard_size)
    command = [text, list(map(str, data or ())), sorted(without or ()), preset, *rows.values(), size]
    archive_dir = archive or loaded.archive_place()
    with open_build(output, command=command, archive=archive_dir, say=note) as target:
        finished = target.finished()
        if finished is not None:
            report_build(output, finished, None, as_json, data=data)
            return
        require_empty_output(output, overwrite=overwrite)
        quieten()
        key, started = task_id_key(), time.perf_counter()
        places: dict[str, Any] = {"journal_dir": target.journal, "archive_dir": archive_dir}
        trainer = loaded.trainer(data, task_id_key=key, progress=progress_bars, **places)
        trainer.trackers.require_outside(output)
        if without:
            trainer.tasks = trainer.tasks.without([keyed_id(key, one) if key else one for one in without])
        read = time.perf_counter() - started
        model = trainer.train()
        started = time.perf_counter()
        target.announce(model.state_digest())
        if is_main_process():
            expect_result(output.resolve())
            # A model that came there since is replaced only if that was asked for.
            model.save_pretrained(output, max_shard_size=size, overwrite=overwrite)
        target.close()
        seconds = with_stages(trainer.seconds, load=read, save=time.perf_counter() - started)
    report_build(output, build_summary(model.clamu_config), seconds, as_json, data=data)


def plan(
    recipe: RecipeFile,
    data: Data = None,
    preset: PresetOption = None,
    ids: Ids = None,
    incomplete_rows: IncompleteRowsOption = None,
    tasks: Annotated[int | None, typer.Option(help="Plan for so many tasks.", min=1, show_default=False)] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the work.", min=1)] = 1,
    tokens: Annotated[int | None, typer.Option(help="Mean tokens of an example.", min=1, show_default=False)] = None,
    inference_ids: Annotated[
        Literal["known", "unknown"], typer.Option(help="Whether the task of an input is known when it is answered.")
    ] = "known",
    max_storage: Annotated[
        str | None,
        typer.Option(help="Budget for the saved model, such as 500MB or 1.5GiB.", show_default=False),
    ] = None,
    max_request_seconds: Annotated[
        float | None,
        typer.Option(help="Budget for a request to forget a task.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a build will need (weights, memory, disk, a rough time) and which preset fits. Nothing is trained."""
    from hf_clamu.planning import Wishes, estimate_presets, parse_size, recommend

    wishes = Wishes(
        ids_known=inference_ids == "known",
        max_storage=None if max_storage is None else parse_size(max_storage, "--max-storage"),
        max_request_seconds=max_request_seconds,
    )
    loaded = _load_recipe(recipe, preset, {"ids": ids, "incomplete_rows": incomplete_rows})
    quieten()
    found = estimate_presets(loaded, data=data, num_tasks=tasks, num_processes=processes, tokens=tokens)
    chosen = recommend(wishes, found)
    values = found.own.to_dict()
    values["presets"] = {name: estimate.to_dict() for name, estimate in found.presets.items()}
    values["recommendation"] = chosen.to_dict()
    emit(as_json, values, lambda: f"{_estimate_text(values)}\n\n{_recommendation_text(values)}", quiet=[chosen.preset])


def _load_recipe(
    path: Path,
    preset: str | None,
    rows: Mapping[str, str | None],
    report_to: list[str] | None = None,
    logging_dir: Path | None = None,
) -> Recipe:
    """Return a recipe, with what the command line says instead of it."""
    from hf_clamu.recipe import Recipe

    recipe = Recipe.load(path).with_preset(preset)
    return dataclasses.replace(
        recipe,
        data=recipe.data | {key: value for key, value in rows.items() if value},
        report_to=report_to or recipe.report_to,
        logging_dir=str(logging_dir.absolute()) if logging_dir else recipe.logging_dir,
    )


def _estimate_text(values: Mapping[str, Any]) -> str:
    from hf_clamu.planning import duration_text, size_text

    seconds = values["seconds"]
    each = "" if values["num_processes"] == 1 else " for each process"
    rows = [
        ("weights", f"{values['num_parameters']:,}, of which {values['num_trained']:,} take part"),
        ("tasks and clusters", f"{values['num_tasks']} and {values['num_clusters']}"),
        ("processes", f"{values['num_processes']}"),
        ("learning rate", f"{values['learning_rate']:.2g}"),
        ("grid", f"steps of 2**-{values['fraction_bits']}"),
        (f"memory{each}", f"{size_text(values['memory_bytes'])}, and activations"),
        ("saved model", size_text(values["model_bytes"])),
        ("files while it runs", size_text(values["scratch_bytes"])),
    ]
    if seconds is None:
        rows.append(("time", "unknown: the length of examples is not known (--tokens)"))
    else:
        names = {"encode": "rows", "finetune": "finetuning", "localize": "masks", "score": "scores"}
        parts = ", ".join(f"{shown} {duration_text(seconds[name])}" for name, shown in names.items() if seconds[name])
        rows.append(("time on this machine", f"{duration_text(seconds['total'])} or so: {parts}"))
        rows.append(("a request", f"{duration_text(seconds['request'])} or so, without an archive"))
        rows.append(("not counted", "starting the program, downloads, loading and saving the model"))
    return table(("what", "estimate"), rows, left=(0, 1))


def _recommendation_text(values: Mapping[str, Any]) -> str:
    from hf_clamu.planning import duration_text, size_text

    chosen = values["recommendation"]
    rows = []
    for name, estimate in values["presets"].items():
        seconds = estimate["seconds"]
        request = "unknown" if seconds is None else duration_text(seconds["request"])
        rows.append((name, size_text(estimate["model_bytes"]), size_text(estimate["memory_bytes"]), request))
    return "\n".join(
        [
            table(("preset", "saved model", "memory", "a request"), rows),
            "",
            f"Recommended: --preset {chosen['preset']} ({chosen['summary']})",
            *(f"- {reason}" for reason in chosen["reasons"]),
        ]
    )
