"""The commands of `clamu` that write to the Hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.output import emit, note, quieten
from hf_clamu.errors import RecipeError

__all__ = ["add_hub_commands", "load_model", "open_model", "saved_folder", "task_id_key", "wants_erasure"]


def open_model(folder: str) -> Any:
    """Load a model for a command that reads it; what a run that died has left there stays as it is."""
    from hf_clamu.cli.pending import say_pending

    say_pending(Path(folder))
    return load_model(folder)


def load_model(folder: str) -> Any:
    """Load a model from a folder or a Hub id, with the key of its task ids if the environment has it."""
    from hf_clamu.models.modeling_clamu import ClamuModel

    return ClamuModel.from_pretrained(folder, task_id_key=task_id_key())


def task_id_key() -> str | None:
    """Return the secret of keyed task ids; from the environment, so that no shell history keeps it."""
    return os.environ.get("CLAMU_TASK_ID_KEY") or None


def saved_folder(folder: str) -> Path:
    """Return the folder of a saved model, downloaded if it is a Hub id."""
    from hf_clamu.models.hub import download, is_repo_id

    return download(folder)[0] if is_repo_id(folder) else Path(folder)


def wants_erasure(chosen: bool | None, repo_id: str) -> bool:
    """Return whether the history of a repo is to be erased: as chosen, else asked where somebody can answer."""
    if chosen is not None:
        return chosen
    if sys.stdin.isatty():
        question = f"Old commits of {repo_id} still hold the forgotten tasks. Erase its history for good?"
        return typer.confirm(question, default=False, err=True)
    note(f"Old commits of {repo_id} still hold the forgotten tasks: clamu erase {repo_id} removes them for good.")
    return False


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved model.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Hub id, such as org/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch [default: main].", show_default=False)] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Push a saved model to the Hub as one commit."""
    quieten()
    model = open_model(str(folder))
    result = model.push_to_hub(
        repo_id, private=private or None, revision=revision, commit_message=message, create_pr=create_pr
    )
    values = {"repo_id": repo_id, "commit": result.commit, "url": result.url, "pr_url": result.pr_url}
    emit(as_json, values, lambda: f"Pushed {folder} to {repo_id}: {result.pr_url or result.url}")


def erase(
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Hub id, such as org/name.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. This cannot be undone.")] = False,
    keep_revision: Annotated[str, typer.Option(help="The branch whose head stays.")] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Remove everything but the head of a repo, as far as the Hub allows, and say what still answers."""
    from hf_clamu.models.hub import erase_history

    if not yes:
        if not sys.stdin.isatty():
            raise RecipeError(f"Erasing the history of {repo_id} cannot be undone: confirm it with --yes.")
        if not typer.confirm(f"Erase all of {repo_id} but the head of {keep_revision}, for good?", err=True):
            raise typer.Exit(2)
    quieten()
    report = erase_history(repo_id, keep_revision=keep_revision)
    emit(as_json, report.to_dict(), lambda: erasure_text(report))
    if report.steps_failed:
        raise typer.Exit(1)


def erasure_text(report: Any) -> str:
    """Return an erasure's report as readable lines."""
    done = ", ".join(report.steps_done)
    lines = [
        f"{report.repo_id}: kept {report.kept_revision} at {report.kept_commit}; done: {done}.",
        f"{report.num_gone} old addresses are gone, {len(report.still_reachable)} still answer.",
    ]
    lines += [f"  failed: {failed['step']}: {failed['reason']}" for failed in report.steps_failed]
    lines += [f"  still answers: {found['url']} ({found['why']})" for found in report.still_reachable]
    lines += [f"  not checked: {what}" for what in report.not_checked]
    return "\n".join(lines)


def add_hub_commands(app: typer.Typer) -> None:
    """Add `push` and `erase`."""
    app.command()(push)
    app.command()(erase)
