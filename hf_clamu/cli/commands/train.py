"""`clamu train` and `clamu plan`: a build as a recipe says, and what it will need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.builds import report_build
from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.models import task_id_key
from hf_clamu.cli.options import Data, Ids, Json, NewArchive, NewModel, Overwrite, PresetOption, RecipeFile
from hf_clamu.cli.output import emit, is_main_process, note, quieten, require_empty_output, table

if TYPE_CHECKING:
    from hf_clamu.recipe import Recipe

__all__ = ["plan", "train"]


def train(
    recipe: RecipeFile,
    output: NewModel,
    data: Data = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this task out; may be repeated.", show_default=False)
    ] = None,
    preset: PresetOption = None,
    ids: Ids = None,
    archive: NewArchive = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would need, as `clamu plan` does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Finetune, merge, cluster and localize as a recipe says; started again, it goes on from what is finished."""
    if dry_run:
        _report_estimate(_load_recipe(recipe, preset, ids), as_json, data=data)
        return
    from hf_clamu.operations.lifecycle.build_target import build_summary, open_build
    from hf_clamu.tasks import keyed_id

    loaded = _load_recipe(recipe, preset, ids)
    text = recipe.read_text(encoding="utf-8", errors="replace")
    command = [text, list(map(str, data or ())), sorted(without or ()), preset, ids]
    archive_dir = archive or loaded.archive_place()
    with open_build(output, command=command, archive=archive_dir, say=note) as target:
        finished = target.finished()
        if finished is not None:
            report_build(output, finished, {"total": 0.0}, as_json)
            return
        require_empty_output(output, overwrite=overwrite)
        quieten()
        key = task_id_key()
        trainer = loaded.trainer(data, task_id_key=key, journal_dir=target.journal, archive_dir=archive_dir)
        if without:
            trainer.tasks = trainer.tasks.without([keyed_id(key, one) if key else one for one in without])
        model = trainer.train()
        target.announce(model.state_digest())
        if is_main_process():
            expect_result(output.resolve())
            # A model that came there since is replaced only if that was asked for.
            model.save_pretrained(output, overwrite=overwrite)
        target.close()
    report_build(output, build_summary(model.clamu_config), trainer.seconds, as_json)


def plan(
    recipe: RecipeFile,
    data: Data = None,
    preset: PresetOption = None,
    ids: Ids = None,
    tasks: Annotated[int | None, typer.Option(help="Plan for so many tasks.", min=1, show_default=False)] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the work.", min=1)] = 1,
    tokens: Annotated[int | None, typer.Option(help="Mean tokens of an example.", min=1, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Say what a build will need: weights, memory, disk and a rough time. Nothing is trained or loaded."""
    options: dict[str, Any] = {"data": data, "num_tasks": tasks, "num_processes": processes, "tokens": tokens}
    _report_estimate(_load_recipe(recipe, preset, ids), as_json, **options)


def _load_recipe(path: Path, preset: str | None, ids: str | None) -> Recipe:
    """Return a recipe, with what the command line says instead of it."""
    from hf_clamu.recipe import Recipe

    recipe = Recipe.load(path).with_preset(preset)
    return recipe if ids is None else dataclasses.replace(recipe, data={**recipe.data, "ids": ids})


def _report_estimate(recipe: Recipe, as_json: bool, **options: Any) -> None:
    from hf_clamu.planning import estimate_build

    quieten()
    values = estimate_build(recipe, **options).to_dict()
    emit(as_json, values, lambda: _estimate_text(values))


def _estimate_text(values: Mapping[str, Any]) -> str:
    seconds = values["seconds"]
    each = "" if values["num_processes"] == 1 else " for each process"
    rows = [
        ("weights", f"{values['num_parameters']:,}, of which {values['num_trained']:,} take part"),
        ("tasks and clusters", f"{values['num_tasks']} and {values['num_clusters']}"),
        ("processes", f"{values['num_processes']}"),
        (f"memory{each}", f"{_size(values['memory_bytes'])}, and activations"),
        ("saved model", _size(values["model_bytes"])),
        ("files while it runs", _size(values["scratch_bytes"])),
    ]
    if seconds is None:
        rows.append(("time", "unknown: the length of examples is not known (--tokens)"))
    else:
        parts = f"finetuning {_duration(seconds['finetune'])}, masks {_duration(seconds['localize'])}"
        rows.append(("time on this machine", f"{_duration(seconds['total'])} or so: {parts}"))
    return table(("what", "estimate"), rows, left=(0, 1))


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
