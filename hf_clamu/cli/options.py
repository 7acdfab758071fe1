"""Arguments and options that commands share, as annotated types: a name, a help text and a check in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_clamu.cli.kernels import before_model, before_reading, before_recipe
from hf_clamu.cli.terminal.completion import complete_cluster, complete_model, complete_task, is_completing
from hf_clamu.known_names import OnMismatch as OnMismatchName
from hf_clamu.known_names import Verification

__all__ = [
    "Archive",
    "Checkpoints",
    "Cluster",
    "ClusterOrAuto",
    "Data",
    "DryRun",
    "EraseHistory",
    "Ids",
    "IncompleteRowsOption",
    "Json",
    "KeyToSign",
    "KeysToTrust",
    "LoggingDir",
    "MaxDrop",
    "MaxShardSize",
    "ModelToChange",
    "ModelToRead",
    "NewArchive",
    "NewModel",
    "NewRows",
    "NewRowsOrNone",
    "OnMismatch",
    "OnMismatchOfUnmerge",
    "Output",
    "Overwrite",
    "PresetOption",
    "Receipts",
    "RecipeFile",
    "RepoId",
    "ReportTo",
    "Task",
    "TasksToForget",
    "Verify",
    "Without",
    "other_model",
]

# -- the model --------------------------------------------------------------------------------------------------------

# A model may be read on any processor, and is changed or verified on one that gives the bits of the build.
_MODEL_OPTIONS: dict[str, Any] = {
    "metavar": "DIR",
    "help": "Folder of a saved model, or a Hub id.",
    "show_default": False,
    "autocompletion": complete_model,
}
ModelToRead = Annotated[str, typer.Argument(callback=before_reading, **_MODEL_OPTIONS)]
ModelToChange = Annotated[str, typer.Argument(callback=before_model, **_MODEL_OPTIONS)]


def other_model(help_text: str) -> Any:
    """Return the option of a model beside the one that a command is about.

    Args:
        help_text (`str`): what it is for.
    """
    return typer.Option(metavar="DIR", help=help_text, show_default=False, autocompletion=complete_model)


Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Name or number of a cluster.", show_default=False, autocompletion=complete_cluster
    ),
]
ClusterOrAuto = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="Name or number of a cluster, or auto: each input by the nearest one by the base model's features.",
        show_default=False,
        autocompletion=complete_cluster,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="Id of a task; its cluster serves.", show_default=False, autocompletion=complete_task),
]
TasksToForget = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK", help="Ids to forget.", show_default=False, autocompletion=complete_task),
]
RepoId = Annotated[str, typer.Argument(metavar="REPO", help="Hub id, such as org/name.", show_default=False)]

PresetOption = Annotated[
    Literal["per-task", "clusters", "adapters", "one-model"] | None,
    typer.Option(
        "--preset",
        help="Settings by name, instead of the recipe's own preset, localization, clustering and scaling.",
        show_default=False,
    ),
]

# -- the tasks' data --------------------------------------------------------------------------------------------------

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="YAML file.", show_default=False, callback=before_recipe)
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        help="File of the tasks' rows, instead of those that the recipe names; may be repeated.", show_default=False
    ),
]
Without = Annotated[list[str] | None, typer.Option(help="Leave this task out; may be repeated.", show_default=False)]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TRACKER",
        help="Tracker of Accelerate (tensorboard, trackio, wandb, ...) that is told losses, scores, seconds and task "
        "ids; may be repeated.",
        show_default=False,
    ),
]
LoggingDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for trackers that write files.", show_default=False)
]
Ids = Annotated[
    Literal["strict", "as-is", "strip"] | None,
    typer.Option(
        "--ids",
        help="Task ids that look alike, such as 'C1', 'C1 ' and 'c01': refuse them, take them as they are, or strip "
        "white space first [default: as the recipe says; strict if it says nothing].",
        show_default=False,
    ),
]
IncompleteRowsOption = Annotated[
    Literal["error", "skip"] | None,
    typer.Option(
        "--incomplete-rows",
        help="Rows whose task id, text, image, label or completion is empty: refuse them, or leave them out [default: "
        "as the recipe says; error if it says nothing].",
        show_default=False,
    ),
]
_NEW_ROWS = typer.Option("--new", help="File of the new rows; may be repeated.", show_default=False)
NewRows = Annotated[list[Path], _NEW_ROWS]
NewRowsOrNone = Annotated[list[Path] | None, _NEW_ROWS]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="ID=FOLDER of a task that was finetuned elsewhere, or a folder of such folders named by ids; may be "
        "repeated.",
        show_default=False,
    ),
]

# -- where results go -------------------------------------------------------------------------------------------------

NewModel = Annotated[Path, typer.Option(help="Folder for the merged model.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        help="Size of a file of weights at most, such as 5GB; larger ones are written in shards, also by later "
        "requests [default: 50GB].",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="Write the result there and leave DIR as it is.", show_default=False)
]
EraseHistory = Annotated[
    bool | None,
    typer.Option(
        "--erase-history/--keep-history",
        help="For a Hub id: remove old commits for good after the push; asked by default.",
        show_default=False,
    ),
]
Receipts = Annotated[
    Path | None, typer.Option(help="Folder for receipts [default: 'receipts' beside DIR].", show_default=False)
]
Archive = Annotated[
    str | None,
    typer.Option(
        "--archive",
        help="Folder or hf://buckets/ORG/NAME of task vectors that the build kept: used, kept up to date.",
        show_default=False,
    ),
]
NewArchive = Annotated[
    str | None,
    typer.Option(
        "--archive",
        help="Folder or private hf://buckets/ORG/NAME that keeps each task's vector, for requests without retraining "
        "and without checkpoints.",
        show_default=False,
    ),
]

# -- how a command works and answers ----------------------------------------------------------------------------------

OnMismatch = Annotated[
    Literal["error", "rebuild"],
    typer.Option(help="What to do if data, bits or environment differ from the ledger."),
]
OnMismatchOfUnmerge = Annotated[
    OnMismatchName,
    typer.Option(
        help="If data, bits or environment differ from the ledger: stop, rebuild, or with --archive derive "
        "clusters and masks here."
    ),
]
Verify = Annotated[
    Verification,
    typer.Option(
        "--verify",
        help="Before a result is saved: build it from the data of the tasks that stay and compare every byte, audit "
        "the change without data, or neither.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Compute the result, show what it changes for other tasks, and change nothing."),
]


def _checked_drop(max_drop: float | None) -> float | None:
    if max_drop is not None and not is_completing():
        from hf_clamu.operations.effects.values import check_max_drop

        check_max_drop(max_drop)
    return max_drop


MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="X",
        help="Change nothing if a task that stays would lose more of its validation score than this, 0 to 1.",
        show_default=False,
        callback=_checked_drop,
    ),
]

# -- signatures -------------------------------------------------------------------------------------------------------

KeyToSign = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="PEM",
        envvar="CLAMU_SIGNING_KEY",
        help="File of a private key (Ed25519, ECDSA P-256 or P-384): sign the model, and its receipts that are not.",
        show_default=False,
    ),
]
KeysToTrust = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        metavar="PEM",
        help="File of a public key: refuse a model or a receipt that it did not sign; may be repeated.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
