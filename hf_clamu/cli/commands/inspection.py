"""`clamu info` and `clamu verify`: what a saved model is made of, and whether it is what a build gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hf_clamu.cli.checkpoints import checkpoints_of
from hf_clamu.cli.models import open_model, report_pending
from hf_clamu.cli.options import Checkpoints, Data, Json, ModelToChange, ModelToRead
from hf_clamu.cli.output import emit, emit_error, is_saved_model, quieten, table
from hf_clamu.errors import CheckpointFormatError, DigestMismatchError, EnvironmentMismatchError

__all__ = ["info", "verify"]

_MOST_MEMBERS = 6  # of a cluster that the text of `info` names


def info(folder: ModelToRead, as_json: Json = False) -> None:
    """Say what a saved model is made of, after checking the digests of its files."""
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.hub.pull import resolve_folder

    report_pending(Path(folder))
    checkpoint = read_checkpoint(resolve_folder(folder))
    config, state = checkpoint.config, checkpoint.state
    values: dict[str, Any] = {
        "format_version": config.format_version if checkpoint.files is None else checkpoint.files.format_version,
        "architecture": config.architecture,
        "base_model": config.base_model,
        "arguments": config.arguments,
        "task_spec": config.task_spec,
        "source": checkpoint.source,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "num_parameters": sum(n.numel() for n in state.delta.values()),
        "num_tasks": len(state.records),
        "alpha": state.alpha,
        "clusters": [list(members) for members in state.clusters],
        "cluster_names": list(state.cluster_names),
        "state_digest": checkpoint.state_digest,
    }
    emit(as_json, values, lambda: _info_text(folder, values))


def _info_text(folder: str, values: dict[str, Any]) -> str:
    base, arguments = values["base_model"], values["arguments"]
    name = base["name_or_path"] or "(inside, base_model/)"
    named = zip(values["cluster_names"], values["clusters"], strict=True)
    rows = [(str(number), name, str(len(m)), _shortened(m)) for number, (name, m) in enumerate(named)]
    members = table(("cluster", "name", "tasks", "members"), rows, left=(0, 1, 3))
    return "\n".join(
        [
            f"{folder}: {values['architecture']}, base {name} {base['revision'] or ''}".rstrip(),
            f"{values['num_tasks']} tasks, {values['num_parameters']:,} weights, alpha {values['alpha']:.6g}",
            ", ".join(f"{name} {arguments[name]}" for name in ("clustering", "localization", "scaling", "seed")),
            f"state {values['state_digest']}",
            "",
            members if rows else "No task is merged: this is the base model.",
        ]
    )


def _shortened(members: Sequence[str]) -> str:
    more = len(members) - _MOST_MEMBERS
    return ", ".join(members[:_MOST_MEMBERS]) + (f", … and {more} more" if more > 0 else "")


def verify(folder: ModelToChange, data: Data = None, checkpoint: Checkpoints = None, as_json: Json = False) -> None:
    """Rebuild from the data of the merged tasks and compare every byte; exit 0 if all are the same, 1 otherwise."""
    from hf_clamu.hub.pull import resolve_folder
    from hf_clamu.trainer import progress_bars

    quieten()
    try:
        model = open_model(folder)
    except CheckpointFormatError as error:
        if not is_saved_model(resolve_folder(folder)):
            raise  # nothing was verified
        emit_error(as_json, type(error).__name__, f"{folder} is not a valid build. {error}")
        raise typer.Exit(1) from None
    try:
        report = model.verify(data=data, checkpoints=checkpoints_of(checkpoint or ()), progress=progress_bars)
    except (DigestMismatchError, EnvironmentMismatchError) as error:
        # What they advise is for requests.
        raise type(error)(f"{error} (--on-mismatch is an option of clamu unmerge and clamu update.)") from None
    verdict = "identical" if report else f"DIFFERENT in {_differences_text(report)}"
    emit(
        as_json,
        report.to_dict(),
        lambda: f"{folder} and a build from its tasks' data: {verdict} ({report.files_compared} files).",
    )
    if not report:
        raise typer.Exit(1)


def _differences_text(report: Any) -> str:
    ours = [name for name in report.differences if name not in report.additional]
    more = "an additional file that a build does not write"
    return ", ".join([*ours, *(f"{name} ({more})" for name in report.additional)])
