"""`clamu info` and `clamu verify`: what a saved model is made of, and whether it is what a build gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.cli.checkpoints import checkpoints_of
from hf_clamu.cli.commands.proofs.signatures import signature_facts, signature_line, trusted_model
from hf_clamu.cli.models import open_model, report_pending, task_id_key
from hf_clamu.cli.options import Checkpoints, Data, Json, KeysToTrust, ModelToChange, ModelToRead
from hf_clamu.cli.output import emit, emit_error, is_main_process, is_saved_model, quieten, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.completion import complete_task
from hf_clamu.cli.terminal.program import command_line, same_command
from hf_clamu.errors import (
    CheckpointFormatError,
    ClamuError,
    DigestMismatchError,
    EnvironmentMismatchError,
    RecipeError,
    TaskNotFoundError,
)

if TYPE_CHECKING:
    from hf_clamu.checkpoint.checkpoint import Checkpoint
    from hf_clamu.checkpoint.comparison import VerificationReport

__all__ = ["info", "verify"]

_REPORT = Path("verify.json")
_MOST_MEMBERS = 6  # of a cluster that the text of `info` names


def info(
    folder: ModelToRead,
    task: Annotated[
        str | None,
        typer.Option(
            help="Say what is kept of this task instead.",
            show_default=False,
            autocompletion=complete_task,
        ),
    ] = None,
    members: Annotated[bool, typer.Option("--members", help="Name all members of each cluster.")] = False,
    archive: Annotated[
        str | None,
        typer.Option(help="Folder or hf://buckets/ORG/NAME of task vectors: say whose it holds.", show_default=False),
    ] = None,
    key: KeysToTrust = None,
    as_json: Json = False,
) -> None:
    """Say what a saved model is made of, after checking the digests of its files."""
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.hub.pull import resolve_folder

    report_pending(Path(folder))
    place = resolve_folder(folder)
    trusted = trusted_model(place, key)
    checkpoint = read_checkpoint(place)
    signature = signature_facts(folder, place, trusted, checkpoint)
    config, state = checkpoint.config, checkpoint.state
    kept = {"snapshot": _snapshot_of(checkpoint, folder), "archive": _archive_of(checkpoint, archive)}
    if task is not None:
        facts = _task_facts(checkpoint, folder, task, kept)
        emit(as_json, facts, lambda: _task_text(folder, facts), quiet=[facts["ledger_id"]])
        return
    values: dict[str, Any] = {
        "format_version": config.format_version if checkpoint.files is None else checkpoint.files.format_version,
        "architecture": config.architecture,
        "base_model": config.base_model,
        **({} if checkpoint.base_bits is None else {"base_bits": checkpoint.base_bits}),
        "arguments": config.arguments,
        "task_spec": config.task_spec,
        "source": checkpoint.source,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "num_parameters": sum(n.numel() for n in state.delta.values()),
        "num_tasks": len(state.records),
        "alpha": state.alpha,
        "global_alpha": state.global_alpha,
        "clusters": [list(members) for members in state.clusters],
        "cluster_names": list(state.cluster_names),
        "state_digest": checkpoint.state_digest,
        "signature": signature,
        **{name: None if place is None else place.to_dict() for name, place in kept.items()},
    }
    most = None if members else _MOST_MEMBERS
    emit(as_json, values, lambda: _info_text(folder, values, most=most), quiet=sorted(state.records))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What lies beside a model for later requests: a place, and the tasks of which it has something."""

    place: str
    task_ids: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        return {"place": self.place, "num_tasks": len(self.task_ids)}


def _snapshot_of(checkpoint: Checkpoint, folder: str) -> _Kept | None:
    from hf_clamu.operations.snapshots import snapshot_names
    from hf_clamu.storage import Snapshot, snapshot_beside

    if not Path(folder).is_dir() or not Snapshot(snapshot_beside(Path(folder))).is_there:
        return None
    snapshot = Snapshot(snapshot_beside(Path(folder)))
    names = snapshot_names(checkpoint.state.records)
    held = frozenset(task_id for task_id, name in names.items() if snapshot.holds(name))
    return _Kept(place=str(snapshot.folder), task_ids=held)


def _archive_of(checkpoint: Checkpoint, place: str | None) -> _Kept | None:
    from hf_clamu.hub.archive import archive_at

    archive = archive_at(place)
    if archive is None:
        return None
    archive.open(may_create=False)
    records = checkpoint.state.records
    held = frozenset(task_id for task_id, record in records.items() if archive.holds(task_id, record.vector_digest))
    return _Kept(place=str(place), task_ids=held)


def _task_facts(checkpoint: Checkpoint, folder: str, task: str, kept: Mapping[str, _Kept | None]) -> dict[str, Any]:
    """Return what the files of a saved model hold of one task.

    Raises:
        TaskNotFoundError: if it is not merged; with the receipt that says that it was forgotten, if there is one.
    """
    from hf_clamu.operations.data import ledger_id
    from hf_clamu.operations.lifecycle.receipts import forgotten_in, read_receipts
    from hf_clamu.operations.lifecycle.target import receipts_of

    state = checkpoint.state
    task_id = ledger_id(checkpoint, task, task_id_key())
    try:
        number = state.cluster_of(task_id)
    except TaskNotFoundError as error:
        receipt = forgotten_in(read_receipts(receipts_of(folder)), task_id)
        raise TaskNotFoundError(f"{error}{'' if receipt is None else f' It is forgotten: see {receipt}.'}") from None
    record = state.records[task_id]
    scores = None if state.scores is None else state.scores["clusters"][number]
    masks = state.masks[number] if state.masks else {}
    return {
        "task": task,
        "ledger_id": task_id,
        "cluster": number,
        "cluster_name": state.cluster_names[number],
        "cluster_size": len(state.clusters[number]),
        "num_train": record.num_train,
        "num_validation": record.num_validation,
        "scores": scores,
        "mask_bytes": sum(mask.numel() * mask.element_size() for mask in masks.values()),
        "has_own_mask": bool(state.task_masks) or (bool(masks) and state.has_mask_per_task),
        "has_features": bool(checkpoint.stored_features),
        "from_checkpoint": record.from_checkpoint,
        "data_digest": record.data_digest,
        "vector_digest": record.vector_digest,
        **{name: None if place is None else task_id in place.task_ids for name, place in kept.items()},
    }


def _task_text(folder: str, facts: Mapping[str, Any]) -> str:
    alone = facts["cluster_size"] == 1
    others = "it alone" if alone else f"with {facts['cluster_size'] - 1} others"
    scores = facts["scores"]
    shown = "none" if scores is None else ", ".join(f"{name} {100 * score:.1f} %" for name, score in scores.items())
    kept = [f"a mask of {facts['mask_bytes']:,} bytes"] if facts["has_own_mask"] else []
    kept += ["features" if facts["has_features"] else "", "counts, digests and bounds in the ledger"]
    rows = [
        ("cluster", f"{facts['cluster']} ({facts['cluster_name']}), {others}"),
        ("rows", f"{facts['num_train']} to train on, {facts['num_validation']} kept out"),
        ("scores" if alone else "scores of its cluster", shown),
        ("stored of it alone", ", ".join(filter(None, kept))),
        ("came from", "a checkpoint" if facts["from_checkpoint"] else "finetuning here"),
        ("snapshot of its rows", _yes_no(facts["snapshot"], "no snapshot beside the model")),
        ("vector in the archive", _yes_no(facts["archive"], "name one with --archive to look")),
    ]
    return f"{folder}: task {facts['task']}\n" + table(("what", "value"), rows, left=(0, 1))


def _yes_no(value: bool | None, unknown: str) -> str:
    return unknown if value is None else "yes" if value else "no"


def _info_text(folder: str, values: Mapping[str, Any], *, most: int | None) -> str:
    base, arguments = values["base_model"], values["arguments"]
    name = base["name_or_path"] or "(inside, base_model/)"
    bits = f", in {values['base_bits']} bits" if "base_bits" in values else ""
    named = zip(values["cluster_names"], values["clusters"], strict=True)
    rows = [(str(number), name, str(len(m)), _shortened(m, most)) for number, (name, m) in enumerate(named)]
    members = table(("cluster", "name", "tasks", "members"), rows, left=(0, 1, 3))
    return "\n".join(
        [
            f"{folder}: {values['architecture']}, base {name} {base['revision'] or ''}".rstrip() + bits,
            f"{values['num_tasks']} tasks, {values['num_parameters']:,} weights, alpha {values['alpha']:.6g}, "
            f"{values['global_alpha']:.6g} for the global model",
            ", ".join(f"{name} {arguments[name]}" for name in ("clustering", "localization", "scaling", "seed")),
            _kept_text("snapshot", values, "none beside the model"),
            _kept_text("archive", values, "a model does not name its own; --archive PLACE looks into one"),
            f"state {values['state_digest']}",
            signature_line(values["signature"]),
            "",
            members if rows else "No task is merged: this is the base model.",
        ]
    )


def _kept_text(name: str, values: Mapping[str, Any], unknown: str) -> str:
    kept = values[name]
    return f"{name}: " + (
        unknown if kept is None else f"{kept['place']}, of {kept['num_tasks']} of {values['num_tasks']} tasks"
    )


def _shortened(members: Sequence[str], most: int | None) -> str:
    more = 0 if most is None else len(members) - most
    return ", ".join(members[:most]) + (f", … and {more} more (--members)" if more > 0 else "")


def verify(
    folder: ModelToChange,
    data: Data = None,
    checkpoint: Checkpoints = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write what was compared, digests, environment and verdict to this file as JSON, a failure too.",
            show_default=False,
        ),
    ] = None,
    key: KeysToTrust = None,
    as_json: Json = False,
) -> None:
    """Rebuild from the data of the merged tasks and compare every byte; exit 0 if all are the same, 1 otherwise."""
    from hf_clamu.exact import sha256_file
    from hf_clamu.hub.pull import resolve_folder

    if report is not None and (report.is_dir() or not report.absolute().parent.is_dir()):
        raise RecipeError(f"{report} can be no file: give --report the name of a file in a folder that exists.")
    quieten()
    facts: dict[str, Any] = {"model": folder}
    try:
        trusted = trusted_model(resolve_folder(folder), key) if key else None
        model = open_model(folder)
        if trusted is not None:
            place = trusted.model.folder
            facts |= {"signature": signature_facts(folder, place, trusted, model.merged.checkpoint)}
        facts |= {
            "state_digest": model.state_digest(),
            "ledger_digest": sha256_file(resolve_folder(folder) / LEDGER_NAME),
            "environment": model.ledger["environment"],
        }
        found = model.verify(data=data, checkpoints=checkpoints_of(checkpoint or ()), progress=progress_bars)
    except (ClamuError, OSError) as error:
        _write_report(report, {**facts, "error": {"type": type(error).__name__, "message": str(error)}})
        if isinstance(error, CheckpointFormatError) and is_saved_model(resolve_folder(folder)):
            emit_error(as_json, type(error).__name__, f"{folder} is not a valid build. {error}")
            raise typer.Exit(1) from None
        if isinstance(error, (DigestMismatchError, EnvironmentMismatchError)):
            # What they advise is for requests.
            raise type(error)(f"{error} (--on-mismatch is an option of clamu unmerge and clamu update.)") from None
        raise
    values = {**facts, **found.to_dict()}
    _write_report(report, values)
    then = _after_verifying(folder, bool(found), report, key)
    emit(as_json, values, lambda: _verified_text(found, values, report), quiet=found.differences, then=then)
    if not found:
        raise typer.Exit(1)


def _after_verifying(folder: str, is_same: bool, report: Path | None, keys: Sequence[Path] | None) -> list[str]:
    """Return the command for what was done to a sound model, or one that keeps what differs in another."""
    if is_same:
        return [command_line("receipts", folder, *(word for key in keys or () for word in ("--key", key)))]
    return [] if report is not None or _REPORT.exists() else [same_command("--report", str(_REPORT))]


def _write_report(path: Path | None, facts: Mapping[str, Any]) -> None:
    """Write what was verified as canonical JSON: the same verification gives the same bytes.

    Args:
        path (`Path`, *optional*): of the file; nothing is written without one.
        facts (*mapping*): what is known; without `identical` nothing could be compared.
    """
    from hf_clamu.exact import canonical_json
    from hf_clamu.storage import write_atomically
    from hf_clamu.version import __version__

    if path is None or not is_main_process():
        return
    verdict = {None: "not verified", True: "identical", False: "different"}[facts.get("identical")]
    stable = {key: value for key, value in facts.items() if key not in ("seconds", "identical")}
    write_atomically(
        path, canonical_json({"report": "clamu verify", "hf_clamu": __version__, "verdict": verdict, **stable})
    )


def _verified_text(found: VerificationReport, values: Mapping[str, Any], report: Path | None) -> str:
    verdict = "identical" if found else f"DIFFERENT in {_differences_text(found)}"
    lines = [
        f"{values['model']} and a build from its tasks' data: {verdict} ({found.files_compared} files).",
        f"state  {values['state_digest']}",
        f"ledger {values['ledger_digest']}",
    ]
    return "\n".join([*lines, *([] if report is None else [f"Report: {report}"])])


def _differences_text(report: VerificationReport) -> str:
    ours = [name for name in report.differences if name not in report.additional]
    more = "an additional file that a build does not write"
    return ", ".join([*ours, *(f"{name} ({more})" for name in report.additional)])
