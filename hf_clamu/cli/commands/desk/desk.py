"""`clamu desk`: the web page for the person who answers requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.cli.kernels import before_reading
from hf_clamu.cli.options import Archive, Data, Json, KeyToSign, MaxDrop, OnMismatchOfUnmerge, Receipts, Verify
from hf_clamu.cli.output import emit, note, quieten
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.desk.office import DeskModel, WorkerOptions

__all__ = ["desk"]


def _each_before_reading(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        before_reading(name)
    return names


_Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DIR", help="Folders of saved models, or Hub ids.", show_default=False, callback=_each_before_reading
    ),
]
_AuthFile = Annotated[
    Path | None,
    typer.Option(help="File of lines user:password, readable by you alone: only these get in.", show_default=False),
]
_AuthHeader = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Header in which a reverse proxy names the user it let in; nobody else may reach the port.",
        show_default=False,
    ),
]
_HubUsers = Annotated[
    list[str] | None,
    typer.Option(
        "--hub-user",
        metavar="NAME",
        help="In a Space: user of the Hub who may sign in, or organization whose members may; may be repeated.",
        show_default=False,
    ),
]


def desk(
    folders: _Models = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines need a login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    auth_file: _AuthFile = None,
    auth_header: _AuthHeader = None,
    hub_user: _HubUsers = None,
    data: Data = None,
    receipts: Receipts = None,
    archive: Archive = None,
    erase_history: Annotated[
        bool, typer.Option("--erase-history", help="For Hub ids: remove old commits for good after each push.")
    ] = False,
    verify: Verify = "rebuild",
    on_mismatch: OnMismatchOfUnmerge = "error",
    max_drop: MaxDrop = None,
    key: KeyToSign = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Make a model of handwritten digits in ./clamu-desk-demo to try it with.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Open a web page over the requests, the model and the evidence; one worker process carries requests out."""
    from hf_clamu.desk.office import Office, WorkerOptions
    from hf_clamu.desk.web.access import Access
    from hf_clamu.desk.web.server import require_gradio, serve

    if bool(folders) == demo:
        raise RecipeError(
            "Name the models (clamu desk DIR), or try it with one that is made for it (clamu desk --demo)."
        )
    access = Access.checked(host, auth_file=auth_file, auth_header=auth_header, hub_users=hub_user)
    require_gradio()
    quieten()
    options: dict[str, Any] = {"receipts": receipts, "archive": archive, "erase_history": erase_history, "key": key}
    options |= {"verify": verify, "on_mismatch": on_mismatch, "max_drop": max_drop, "data": data or ()}
    models = _models(folders or [], WorkerOptions(**options))

    def ready(url: str) -> None:
        text = f"The desk is at {url} (Ctrl-C stops it; a worker that runs goes on)."
        emit(as_json, {"url": url, "models": [one.source for one in models]}, lambda: text, quiet=[url])

    serve(Office(models), access, port, ready=ready)


def _models(folders: Sequence[str], options: WorkerOptions) -> list[DeskModel]:
    """Return the models, which are made if none is named."""
    from hf_clamu.cli.models import task_id_key
    from hf_clamu.desk.demo import prepare_demo
    from hf_clamu.desk.office import DeskModel

    sources = folders or [str(prepare_demo(Path("clamu-desk-demo"), say=note))]
    key = task_id_key()
    models = [DeskModel(source=one, options=options, task_id_key=key) for one in dict.fromkeys(sources)]
    for model in models:
        model.ledger()  # what is no model should show now
    return models
