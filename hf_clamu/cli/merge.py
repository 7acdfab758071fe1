"""`clamu merge`, and how commands name checkpoints that were finetuned elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.kernels import before_recipe, before_settings
from hf_clamu.cli.models import task_id_key
from hf_clamu.cli.options import Data, Json
from hf_clamu.cli.output import quieten, require_room
from hf_clamu.cli.pending import building
from hf_clamu.cli.train import done_before, save_build, say_merged
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.yaml_values import read_yaml

if TYPE_CHECKING:
    from hf_clamu.operations.local_merge import LocalMerge
    from hf_clamu.recipe import Recipe

__all__ = ["CheckpointOption", "add_merge_command", "checkpoints_of"]

CheckpointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="ID=FOLDER of a task that was finetuned elsewhere, or a folder of such folders named by ids; may be "
        "repeated.",
        show_default=False,
    ),
]


def merge(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder or Hub id of a local model, named as the task is or ID=FOLDER; or a folder of such folders.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)],
    base: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the model that they were finetuned from.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the base model.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the tasks' data, settings and base model.", show_default=False, callback=before_recipe
        ),
    ] = None,
    data: Data = None,
    archive: Annotated[
        str | None,
        typer.Option(
            help="Folder or private hf://ORG/NAME that keeps each task's vector, for requests without checkpoints.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting, such as localization=tall or num_clusters=4; may be repeated.",
            show_default=False,
            callback=before_settings,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Merge local models that were finetuned elsewhere; started again, it goes on from what is finished.

    They are plain transformers checkpoints of one architecture, read one after the other. Without a recipe there are
    no data: clustering is task_vectors, random or none, localization emr, tall or global.
    """
    import time

    from hf_clamu.hub.archive import archive_at
    from hf_clamu.models.saving import save_unserved
    from hf_clamu.recipe import Recipe
    from hf_clamu.trainer import progress_bars

    given = checkpoints_of(checkpoints)
    if base is None and recipe is None:
        raise RecipeError("Name the model that the checkpoints were finetuned from: --base ID, or --recipe FILE.")
    if data and recipe is None:
        raise RecipeError("--data goes with --recipe, which says how rows become tasks.")
    loaded = None if recipe is None else Recipe.load(recipe)
    text = None if recipe is None else recipe.read_text(encoding="utf-8", errors="replace")
    command = ["merge", given, base, revision, text, list(map(str, data or ())), sorted(settings or ())]
    place = archive or (None if loaded is None else loaded.archive_place())
    with building(output, place) as journal:
        if done_before(as_json, output, journal, command):
            return
        require_room(output, overwrite=overwrite)
        started = time.perf_counter()
        start = _start(given, base, revision, loaded, recipe, data, _settings(settings or ()))
        quieten()
        built, base_model = start.run(journal, archive_at(place), progress_bars)
        checkpoint = built.checkpoint

        def save(folder: Path) -> None:
            # Nobody asks it anything here, so it is not served: that takes as much memory again.
            save_unserved(folder, checkpoint, built.base, base_model.processor, overwrite=overwrite)

        save_build(save, checkpoint.state_digest, output, journal, command)
    say_merged(as_json, output, checkpoint.config, {"total": time.perf_counter() - started})


def _start(
    checkpoints: Mapping[str, str],
    base: str | None,
    revision: str | None,
    loaded: Recipe | None,
    recipe: Path | None,
    data: Sequence[Path] | None,
    settings: Mapping[str, Any],
) -> LocalMerge:
    """Return what the merge starts from."""
    from hf_clamu.checkpoint.card.settings import CardSettings
    from hf_clamu.merging import WITHOUT_DATA, ClamuArguments
    from hf_clamu.operations.local_merge import LocalMerge

    given: dict[str, Any] = {"checkpoints": checkpoints, "task_id_key": task_id_key()}
    if loaded is None:
        arguments = ClamuArguments.from_dict({**WITHOUT_DATA, **settings})
        return LocalMerge(base=base, revision=revision, arguments=arguments, **given)
    if loaded.peft_config is not None or loaded.dtype not in (None, "float32"):
        raise RecipeError(
            f"{recipe}: peft_config and dtype are about finetuning here, and checkpoints are whole models that are "
            "read against a base in float32. Leave them out."
        )
    args = ClamuArguments.from_dict({**loaded.arguments, **settings})  # first: a wrong setting should show at once
    tasks = loaded.tasks(data)
    return LocalMerge(
        base=base or loaded.base(),
        revision=revision or (loaded.revision if base is None else None),
        arguments=args,
        tasks=tasks,
        processor=loaded.processor(tasks.spec.kind),
        card=CardSettings.from_dict(loaded.card),
        **given,
    )


def _settings(words: Sequence[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(f"--set takes NAME=VALUE, such as localization=tall; found {word!r}.")
        found[name.strip()] = read_yaml(value, f"The value of --set {name.strip()}")
    return found


def checkpoints_of(words: Sequence[str]) -> dict[str, str]:
    """Return the folders or Hub ids that words of a command line name, by task id.

    A word is ID=FOLDER, FOLDER (its name is the id), or a folder of such folders.

    Raises:
        TaskDataError: if two have the same id.
    """
    found: dict[str, str] = {}
    for word in words:
        for task_id, folder in _expanded(word).items():
            if task_id in found:
                raise TaskDataError(
                    f"Two checkpoints are to be task {task_id!r}: {found[task_id]} and {folder}. Give one another id "
                    "(ID=FOLDER)."
                )
            found[task_id] = folder
    return found


def _expanded(word: str) -> dict[str, str]:
    task_id, equals, folder = word.partition("=")
    # A path may have the sign in it.
    if equals and not Path(word).is_dir():
        if not task_id or not folder:
            raise TaskDataError(f"A checkpoint is named ID=FOLDER or FOLDER; found {word!r}.")
        return {task_id: folder}
    if _is_parent(word):
        return {path.parent.name: str(path.parent) for path in sorted(Path(word).glob("*/config.json"))}
    name = Path(word).name or Path(word).absolute().name
    return {Path(word).absolute().name if name in (".", "..") else name: word}


def _is_parent(word: str) -> bool:
    """Whether a word names a folder that holds no checkpoint but folders of them."""
    folder = Path(word)
    return folder.is_dir() and not (folder / "config.json").exists() and any(folder.glob("*/config.json"))


def add_merge_command(app: typer.Typer) -> None:
    """Add `merge`."""
    app.command()(merge)
