"""`clamu push` and `clamu erase`: one commit for a model, and no old commits of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_clamu.cli.models import open_model
from hf_clamu.cli.options import Json, RepoId
from hf_clamu.cli.output import emit, quieten
from hf_clamu.cli.terminal.completion import complete_model
from hf_clamu.cli.terminal.program import command_line, same_command
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.hub.erase import ErasureReport

__all__ = ["erase", "push"]


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of a saved model.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ],
    repo_id: RepoId,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch [default: main].", show_default=False)] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    as_json: Json = False,
) -> None:
    """Push a saved model to the Hub as one commit."""
    quieten()
    model = open_model(str(folder))
    result = model.push_to_hub(
        repo_id, private=private or None, revision=revision, commit_message=message, create_pr=create_pr
    )
    values = {"repo_id": repo_id, "commit": result.commit, "url": result.url, "pr_url": result.pr_url}
    url = result.pr_url or result.url
    then = [] if create_pr or revision else [command_line("info", repo_id)]
    emit(as_json, values, lambda: f"Pushed {folder} to {repo_id}: {url}", quiet=[url], then=then)


def erase(
    repo_id: RepoId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. This cannot be undone.")] = False,
    keep_revision: Annotated[str, typer.Option(help="The branch whose head stays.")] = "main",
    as_json: Json = False,
) -> None:
    """Remove everything but the head of a repo, as far as the Hub allows, and say what still answers."""
    from hf_clamu.hub.erase import erase_history

    if not yes:
        if not sys.stdin.isatty():
            raise RecipeError(f"Erasing the history of {repo_id} cannot be undone: confirm it with --yes.")
        if not typer.confirm(f"Erase all of {repo_id} but the head of {keep_revision}, for good?", err=True):
            raise typer.Exit(2)
    quieten()
    report = erase_history(repo_id, keep_revision=keep_revision)
    again = same_command(*([] if yes else ["--yes"]))
    then = [again if report.steps_failed else command_line("info", repo_id)]
    remaining = [address["url"] for address in report.still_reachable]
    emit(as_json, report.to_dict(), lambda: _erasure_text(report), quiet=remaining, then=then)
    if report.steps_failed:
        raise typer.Exit(1)


def _erasure_text(report: ErasureReport) -> str:
    """Return an erasure's report as readable lines."""
    done = ", ".join(report.steps_done)
    lines = [
        f"{report.repo_id}: kept {report.kept_revision} at {report.kept_commit}; done: {done}.",
        f"{report.num_gone} old addresses are gone, {len(report.still_reachable)} still answer.",
    ]
    lines += [f"  failed: {step['step']}: {step['reason']}" for step in report.steps_failed]
    lines += [f"  still answers: {address['url']} ({address['why']})" for address in report.still_reachable]
    lines += [
        f"  made from it, may hold what was erased: {model['repo_id']} ({model['relation'] or 'unknown relation'})"
        for model in report.descendants
    ]
    lines += [f"  not checked: {what}" for what in report.not_checked]
    return "\n".join(lines)
