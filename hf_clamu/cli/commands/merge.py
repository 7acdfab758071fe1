"""`clamu merge`: local models that were finetuned elsewhere become one merged model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.builds import report_build
from hf_clamu.cli.checkpoints import checkpoints_of, common_base
from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.kernels import before_recipe, before_settings
from hf_clamu.cli.models import task_id_key
from hf_clamu.cli.options import Data, Json, MaxShardSize, NewArchive, NewModel, Overwrite
from hf_clamu.cli.output import is_main_process, note, quieten, require_empty_output
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.errors import RecipeError
from hf_clamu.resources import collecting_rarely, with_stages
from hf_clamu.yaml_values import read_yaml

if TYPE_CHECKING:
    from hf_clamu.operations.lifecycle.build_target import BuildTarget
    from hf_clamu.operations.local_merge import LocalMerge
    from hf_clamu.recipe import Recipe

__all__ = ["merge"]

_LocalModels = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder or Hub id of a local model, named as the task is or ID=FOLDER; or a folder of such folders.",
        show_default=False,
    ),
]
_Base = Annotated[
    str | None,
    typer.Option(help="Hub id or folder of the model that they were finetuned from.", show_default=False),
]
_Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model.", show_default=False)]
_Recipe = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with the tasks' data, settings and base model.", show_default=False, callback=before_recipe
    ),
]
_Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting, such as localization=tall or num_clusters=4; may be repeated.",
        show_default=False,
        callback=before_settings,
    ),
]
_PeftMerging = Annotated[
    str | None,
    typer.Option(
        help="How adapters are merged: product (what they change in the weights) or frozen_a (as they are, where all "
        "have the same factor A); by default frozen_a where it can be.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class _MergeOptions:
    """What a merge is asked for.

    Args:
        checkpoints (*dict* of `str` to `str`): folders or Hub ids, by task id.
        base (`str`, *optional*): the model that they were finetuned from; by default the recipe's.
        revision (`str`, *optional*): of the base model.
        recipe (`Path`, *optional*): a YAML file.
        data (*list* of `Path`): files of the tasks' rows, instead of those that the recipe names.
        settings (*list* of `str`): words NAME=VALUE.
        max_shard_size (`int`, *optional*): of the files of weights.
        peft_merging (`str`, *optional*): how adapters are merged.
    """

    checkpoints: dict[str, str]
    base: str | None
    revision: str | None
    recipe: Path | None
    data: list[Path]
    settings: list[str]
    max_shard_size: int | None = None
    peft_merging: str | None = None

    def __post_init__(self) -> None:
        if self.base is None and self.recipe is None:
            raise RecipeError("Name the model that the checkpoints were finetuned from: --base ID, or --recipe FILE.")
        if self.data and self.recipe is None:
            raise RecipeError("--data goes with --recipe, which says how rows become tasks.")

    def command(self) -> list[Any]:
        """Return everything that the bits depend on, as JSON-able values."""
        text = None if self.recipe is None else self.recipe.read_text(encoding="utf-8", errors="replace")
        files, settings = list(map(str, self.data)), sorted(self.settings)
        found = ["merge", self.checkpoints, self.base, self.revision, text, files, settings, self.max_shard_size]
        return [*found, self.peft_merging]


def merge(
    checkpoints: _LocalModels,
    output: NewModel,
    base: _Base = None,
    revision: _Revision = None,
    recipe: _Recipe = None,
    data: Data = None,
    archive: NewArchive = None,
    settings: _Settings = None,
    overwrite: Overwrite = False,
    max_shard_size: MaxShardSize = None,
    peft_merging: _PeftMerging = None,
    as_json: Json = False,
) -> None:
    """Merge local models that were finetuned elsewhere; started again, it goes on from what is finished.

    They are plain transformers checkpoints of one architecture, or adapters that PEFT saved, read one after the other.
    Without a recipe there are no data: clustering is task_vectors, random or none, localization emr, tall or global.
    """
    with collecting_rarely():
        from hf_clamu.checkpoint.files.shards import shard_bytes
        from hf_clamu.operations.lifecycle.build_target import open_build
        from hf_clamu.recipe import Recipe

    found = checkpoints_of(checkpoints)
    options = _MergeOptions(
        checkpoints=found,
        base=common_base(found) if base is None and recipe is None else base,
        revision=revision,
        recipe=recipe,
        data=data or [],
        settings=settings or [],
        max_shard_size=None if max_shard_size is None else shard_bytes(max_shard_size),
        peft_merging=peft_merging,
    )
    loaded = None if recipe is None else Recipe.load(recipe)
    archive_dir = archive or (None if loaded is None else loaded.archive_place())
    with open_build(output, command=options.command(), archive=archive_dir, say=note) as target:
        finished = target.finished()
        if finished is None:
            require_empty_output(output, overwrite=overwrite)
            finished, seconds = _build(target, options, loaded, archive_dir, overwrite)
        else:
            seconds = None
    report_build(output, finished, seconds, as_json, data=data)


def _build(
    target: BuildTarget, options: _MergeOptions, loaded: Recipe | None, archive_dir: str | Path | None, overwrite: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """Merge and save; return the summary of the model, and the seconds of each stage."""
    from hf_clamu.hub.archive import archive_at
    from hf_clamu.models.saving import save_unserved
    from hf_clamu.operations.lifecycle.build_target import build_summary

    with collecting_rarely():
        start = _local_merge(options, loaded)
        quieten()
        built, base_model = start.run(target.journal, archive_at(archive_dir), progress_bars)
    checkpoint = built.checkpoint.in_shards(options.max_shard_size)
    started = time.perf_counter()
    target.announce(checkpoint.state_digest)
    if is_main_process():
        expect_result(target.output.resolve())
        # The model is not asked anything here, so it is not served: serving takes as much memory again.
        save_unserved(target.output, checkpoint, built.base, base_model.processor, overwrite=overwrite)
    target.close()
    return build_summary(checkpoint.config), with_stages(built.seconds, save=time.perf_counter() - started)


def _local_merge(options: _MergeOptions, loaded: Recipe | None) -> LocalMerge:
    """Return what the merge starts from: the recipe, and what the command line says instead of it."""
    from hf_clamu.checkpoint.card.settings import CardSettings
    from hf_clamu.merging import WITHOUT_DATA, ClamuArguments
    from hf_clamu.operations.local_merge import LocalMerge

    settings = _settings(options.settings)
    given: dict[str, Any] = {"checkpoints": options.checkpoints, "task_id_key": task_id_key()}
    given["peft_merging"] = options.peft_merging
    if loaded is None:
        arguments = ClamuArguments.from_dict(settings if "preset" in settings else {**WITHOUT_DATA, **settings})
        return LocalMerge(base=options.base, revision=options.revision, arguments=arguments, **given)
    if loaded.peft_config or loaded.quantization_config or loaded.dtype not in (None, "float32"):
        raise RecipeError(
            f"{options.recipe}: peft_config, quantization_config and dtype are about finetuning here, and checkpoints "
            "are whole models that are read against a base in float32. Leave them out."
        )
    # First: a wrong setting should show at once. The masks of per-task need vectors that were finetuned here.
    arguments = ClamuArguments.from_dict({"preset": "clusters", **loaded.arguments, **settings})
    tasks = loaded.tasks(options.data or None)
    return LocalMerge(
        base=options.base or loaded.base(),
        revision=options.revision or (loaded.revision if options.base is None else None),
        arguments=arguments,
        tasks=tasks,
        processor=loaded.processor(tasks.spec.kind),
        card=CardSettings.from_dict(loaded.card),
        **given,
    )


def _settings(words: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(f"--set takes NAME=VALUE, such as localization=tall; found {word!r}.")
        settings[name.strip()] = read_yaml(value, f"The value of --set {name.strip()}")
    return settings
