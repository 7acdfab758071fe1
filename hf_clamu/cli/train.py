"""`clamu train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.hub import task_id_key
from hf_clamu.cli.output import emit, is_main_process, journal_beside, quieten, require_room

__all__ = ["add_train_command"]


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="File of the tasks' rows, instead of the one that the recipe names.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this task out; may be repeated.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Finetune, merge, cluster and localize as a recipe says; started again, it goes on from what is finished."""
    from hf_clamu.models.checkpoint import read_checkpoint, state_digest
    from hf_clamu.recipe import Recipe
    from hf_clamu.tasks import keyed_id
    from hf_clamu.training import Journal

    journal = Journal(journal_beside(output))
    command = _digest(recipe, data, without)
    noted = journal.noted()
    if isinstance(noted, Mapping) and noted.get("command") == command and (output / "ledger.json").is_file():
        found = read_checkpoint(output)
        if state_digest(found.state) == noted.get("state"):
            # The run before this one was stopped just after its model had come to its place.
            journal.clear()
            _say(as_json, output, found.config, {"total": 0.0})
            return
    require_room(output, overwrite=overwrite)
    loaded = Recipe.load(recipe)
    quieten()
    trainer = loaded.trainer(data, task_id_key=task_id_key(), journal_dir=journal.folder)
    if without:
        key = task_id_key()
        trainer.tasks = trainer.tasks.without([keyed_id(key, one) if key else one for one in without])
    model = trainer.train()
    if is_main_process():
        journal.note({"command": command, "state": model.state_digest()})
    model.save_pretrained(output)
    _say(as_json, output, model.clamu_config, trainer.seconds)


def _digest(recipe: Path, data: Path | None, without: Sequence[str] | None) -> str:
    from hf_clamu.exact import digest_json

    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    return digest_json([text, None if data is None else str(data), sorted(without or ())])


def _say(as_json: bool, output: Path, config: Any, seconds: Mapping[str, float]) -> None:
    values = {"num_tasks": config.num_tasks, "num_clusters": config.num_clusters, "alpha": config.alpha}
    emit(
        as_json,
        {**values, "output": str(output), "seconds": dict(seconds)},
        lambda: (
            f"Merged {config.num_tasks} tasks into {output}: {config.num_clusters} clusters, alpha "
            f"{config.alpha:.4g}, {seconds['total']:.0f} s."
        ),
    )


def add_train_command(app: typer.Typer) -> None:
    """Add `train`."""
    app.command()(train)
