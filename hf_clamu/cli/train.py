"""`clamu train` and `clamu plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.fate import bringing
from hf_clamu.cli.kernels import before_recipe
from hf_clamu.cli.models import task_id_key
from hf_clamu.cli.options import Data, Json
from hf_clamu.cli.output import emit, is_main_process, quieten, require_room, table
from hf_clamu.cli.pending import building

if TYPE_CHECKING:
    from hf_clamu.storage import Journal

__all__ = ["add_train_commands", "done_before", "save_build", "say_merged"]


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file.", show_default=False, callback=before_recipe)
    ],
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
    data: Data = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this task out; may be repeated.", show_default=False)
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            help="Folder or private hf://ORG/NAME that keeps each task's vector, for requests without retraining.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would need, as `clamu plan` does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Finetune, merge, cluster and localize as a recipe says; started again, it goes on from what is finished."""
    if dry_run:
        _plan(as_json, recipe, data=data)
        return
    from hf_clamu.recipe import Recipe
    from hf_clamu.tasks import keyed_id

    loaded = Recipe.load(recipe)
    text = recipe.read_text(encoding="utf-8", errors="replace")
    command = [text, list(map(str, data or ())), sorted(without or ())]
    place = archive or loaded.archive_place()
    with building(output, place) as journal:
        if done_before(as_json, output, journal, command):
            return
        require_room(output, overwrite=overwrite)
        quieten()
        key = task_id_key()
        trainer = loaded.trainer(data, task_id_key=key, journal_dir=journal.folder, archive_dir=place)
        if without:
            trainer.tasks = trainer.tasks.without([keyed_id(key, one) if key else one for one in without])
        model = trainer.train()

        def save(folder: Path) -> None:
            # Whatever came to the place meanwhile is replaced only if that was asked for.
            model.save_pretrained(folder, overwrite=overwrite)

        save_build(save, model.state_digest(), output, journal, command)
    say_merged(as_json, output, model.clamu_config, trainer.seconds)


def done_before(as_json: bool, output: Path, journal: Journal, command: Any) -> bool:
    """Whether a run that died had finished this very command; then its result is said.

    Args:
        as_json (`bool`): how it is said.
        output (`Path`): the folder of the model.
        journal (`Journal`): of runs on this folder, locked.
        command (*JSON-able*): what was asked for.
    """
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.exact import digest_json
    from hf_clamu.operations.lifecycle.pending import finish_pending
    from hf_clamu.training import Workers

    is_done = False
    if is_main_process() and (output / "ledger.json").is_file():
        said = journal.lock.said()
        if isinstance(said, Mapping) and said.get("command") == digest_json(command):
            found = read_checkpoint(output)
            is_done = found.state_digest == said.get("state")
            if is_done:
                finish_pending(journal)
                say_merged(as_json, output, found.config, {"total": 0.0})
    return bool(Workers.current().gather(is_done)[0])


def save_build(
    save: Callable[[Path], object], state_digest: str, output: Path, journal: Journal, command: Any
) -> None:
    """Bring a model that was built to its place, and drop what the journal kept of the run."""
    from hf_clamu.exact import digest_json
    from hf_clamu.operations.lifecycle.pending import finish_pending
    from hf_clamu.training import Workers

    workers = Workers.current()
    if workers.is_main:
        journal.lock.say({"command": digest_json(command), "state": state_digest})
        bringing(output.resolve())
        save(output)
    # Each machine has a journal, and none is dropped before the model is there.
    workers.meet()
    if workers.is_main:
        finish_pending(journal)
    else:
        journal.clear(keep_note=True)


def say_merged(as_json: bool, output: Path, config: Any, seconds: Mapping[str, float]) -> None:
    """Print what was built."""
    values = {"num_tasks": config.num_tasks, "num_clusters": config.num_clusters, "alpha": config.alpha}
    emit(
        as_json,
        {**values, "output": str(output), "seconds": dict(seconds)},
        lambda: (
            f"Merged {config.num_tasks} tasks into {output}: {config.num_clusters} clusters, alpha "
            f"{config.alpha:.4g}, {seconds['total']:.0f} s."
        ),
    )


def plan(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file.", show_default=False, callback=before_recipe)
    ],
    data: Data = None,
    tasks: Annotated[int | None, typer.Option(help="Plan for so many tasks.", min=1, show_default=False)] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the work.", min=1)] = 1,
    tokens: Annotated[int | None, typer.Option(help="Mean tokens of an example.", min=1, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Say what a build will need: weights, memory, disk and a rough time. Nothing is trained or loaded."""
    _plan(as_json, recipe, data=data, num_tasks=tasks, num_processes=processes, tokens=tokens)


def _plan(as_json: bool, recipe: Path, **options: Any) -> None:
    from hf_clamu.planning import plan as make_plan
    from hf_clamu.recipe import Recipe

    loaded = Recipe.load(recipe)
    quieten()
    values = make_plan(loaded, **options).to_dict()
    emit(as_json, values, lambda: _plan_text(values))


def _plan_text(values: Mapping[str, Any]) -> str:
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


def add_train_commands(app: typer.Typer) -> None:
    """Add `train` and `plan`."""
    app.command()(train)
    app.command()(plan)
