"""From what a caller of `ClamuModel` asks for to a request on its state, and from its result to a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import ScoreDropError, TaskDataError, warn_caller
from hf_clamu.local_models.adapter_checkpoint import AdapterCheckpoint
from hf_clamu.local_models.local_models import LocalModels, require_named
from hf_clamu.models.state import LiveState, RequestLog
from hf_clamu.operations.data import ledger_id
from hf_clamu.operations.effects.values import ChangeEffect, check_max_drop
from hf_clamu.operations.lifecycle.pending import Change, archived_names
from hf_clamu.operations.lifecycle.receipts import PENDING, make_receipt, salted_ids
from hf_clamu.operations.lifecycle.request_files import RequestFiles
from hf_clamu.operations.request import ChangeResult, Request, RequestKind
from hf_clamu.operations.snapshots import snapshot_names
from hf_clamu.storage import Archive, HeldArchive
from hf_clamu.tasks import DataFiles, Encodings, ModelLimits, TaskDataset
from hf_clamu.training import Progress, Workers, silent_progress

__all__ = [
    "RequestOptions",
    "accept_vectors",
    "cover",
    "find_local_models",
    "log_change",
    "make_request",
    "opened",
    "recipe_of",
    "require_accepted",
]


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What every request of a `ClamuModel` is given; `ClamuModel.unmerge_task` explains the options."""

    data: TaskDataset | DataFiles | None = None
    checkpoints: Mapping[str, str | Path] | None = None
    files: RequestFiles = field(default_factory=RequestFiles)
    progress: Progress = silent_progress
    dry_run: bool = False
    max_drop: float | None = None

    def __post_init__(self) -> None:
        check_max_drop(self.max_drop)
        if self.dry_run:  # nothing is kept, and nothing left behind is finished
            object.__setattr__(self, "files", RequestFiles(archive=self.files.archive))

    def working_archive(self) -> Archive | None:
        """Return the archive for a request: one that gets nothing before the result is accepted, if it may not be."""
        archive = self.files.archive
        waits = archive is not None and (self.dry_run or self.max_drop is not None)
        return HeldArchive(archive) if archive is not None and waits else archive


def find_local_models(
    live: LiveState, checkpoints: Mapping[str, str | Path] | None, *, adds: bool
) -> LocalModels | None:
    """Return the local models that a request is given, under the ledger's ids.

    Args:
        live (`LiveState`): of the model.
        checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): folders or Hub ids.
        adds (`bool`): those of tasks that are not merged count, too.

    Raises:
        TaskDataError: if a folder is missing, or the model merges an adapter's parameters.
    """
    if not checkpoints:
        return None
    require_named(checkpoints)
    merged = live.merged
    given = {
        ledger_id(merged.checkpoint, one, live.context.task_id_key): folder for one, folder in checkpoints.items()
    }
    if not adds:  # there may be folders of tasks that are gone
        given = {one: folder for one, folder in given.items() if one in merged.state.records}
    found = LocalModels.find(given, token=live.context.token)
    whole = [one for one in found if not isinstance(found[one], AdapterCheckpoint)]
    if merged.space is not None and (whole or not merged.space.is_live):
        raise TaskDataError(
            "This model merges the parameters of an adapter, and checkpoints are whole models. Give the data "
            "of the tasks; they are finetuned through the adapter."
        )
    return found


def make_request(
    live: LiveState,
    options: RequestOptions,
    copy_base: Callable[[], Any],
    *,
    limits: ModelLimits,
    adds: bool = False,
) -> Request:
    """Return a request on the present state.

    Args:
        live (`LiveState`): of the model.
        options (`RequestOptions`): what the caller gave.
        copy_base (*callable*): makes a base model (`transformers.PreTrainedModel`) to train on.
        limits (`ModelLimits`): of that model.
        adds (`bool`): local models of tasks that are not merged count, too.

    Raises:
        TaskDataError: if the folder of a local model is missing.
    """
    context = live.context
    return Request(
        checkpoint=live.merged.checkpoint,
        copy_base=copy_base,
        processor=context.processor,
        encodings=Encodings(context.processor, limits),
        data=options.data if options.data is not None else context.tasks,
        origin=context.folder,
        task_id_key=context.task_id_key,
        journal=options.files.journal,
        archive=options.working_archive(),
        local_models=find_local_models(live, options.checkpoints, adds=adds),
        snapshot=context.snapshot,
        snapshot_place=context.snapshot_place,
        progress=options.progress,
    )


@contextmanager
def opened(live: LiveState, files: RequestFiles) -> Iterator[list[dict[str, Any]]]:
    """Lock the journal of a request, and finish what an earlier process announced in it before it died.

    What a command has opened is locked and recovered already.

    Args:
        live (`LiveState`): of the model.
        files (`RequestFiles`): of the request.

    Yields:
        *list* of *dict*: the receipts of changes that turned out to be saved, and have led to the present state.

    Raises:
        RunInProgressError: if another run holds the journal.
    """
    if files.journal is None or files.is_open:
        yield []
        return
    workers = Workers.current()
    with workers.watched(), files.journal.locked(is_main=workers.is_main):
        receipts: list[dict[str, Any]] = workers.gather(_recovered(live, files) if workers.is_main else [])[0]
        live.log.add_recovered(receipts, files.receipts)
        yield receipts


def _recovered(live: LiveState, files: RequestFiles) -> list[dict[str, Any]]:
    if files.journal is None or not files.journal.has_note:
        return []
    checkpoint = live.merged.checkpoint
    recovery = files.recover(checkpoint, live.log.unsaved)
    for line in recovery.to_do:
        warn_caller(line)
    if not recovery.changes or recovery.changes[-1].after != checkpoint.state_digest:
        return []  # another folder has them
    return [receipt for change in recovery.changes for receipt in change.receipts]


def cover(receipts: Sequence[Mapping[str, Any]], kind: RequestKind, task_ids: Sequence[str]) -> bool:
    """Whether receipts say that this very request was carried out.

    Args:
        receipts (*sequence* of *mapping*): of changes that an earlier process made.
        kind (`str`): of the request that is asked for now.
        task_ids (*sequence* of `str`): its tasks, under the ledger's ids.
    """
    done = {one for receipt in receipts if receipt["request"] == kind for one in salted_ids(receipt) or ()}
    return bool(task_ids) and done.issuperset(task_ids)


def log_change(
    live: LiveState,
    kind: RequestKind,
    requests: Mapping[str | None, Sequence[str]],
    built: ChangeResult,
    files: RequestFiles,
    *,
    effect: ChangeEffect,
) -> RequestLog:
    """Make the receipts of a change, and return the model's log with it.

    Args:
        live (`LiveState`): before the change.
        kind (`str`): of the requests.
        requests (*mapping* of `str` to *sequence* of `str`): the tasks of each request, by what it is called.
        built (`ChangeResult`): the new state.
        files (`RequestFiles`): of the request.
        effect (`ChangeEffect`): what it changes for other tasks.
    """
    before, after, archive = live.merged.checkpoint, built.checkpoint, files.archive
    facts: dict[str, Any] = {
        "digests": {"before": before.state_digest, "after": after.state_digest},
        "environment": None if after.environment is None else after.environment.to_dict(),
        "how": built.outcome,
        "num_requests": len(requests),
        "num_tasks": {"before": len(before.state.records), "after": len(after.state.records)},
        "seconds": built.seconds,
    }
    if after.localized_in is not None:
        facts["localized_in"] = after.localized_in.to_dict()
    if built.vectors_from is not None:
        facts["vectors_from"] = built.vectors_from
    archived: dict[str, Any] = {}
    if archive is not None:
        old, new = archived_names(before.state), archived_names(after.state)
        spent = [] if archive.retains_forgotten else sorted(old - new)
        archived = {"archive_dir": archive.uri, "written": sorted(new - old), "spent": spent}
        facts["archive"] = PENDING if spent else "kept" if old - new else "written"
    if live.context.snapshot is not None:
        rows_before, rows_after = (snapshot_names(one.state.records) for one in (before, after))
        facts["snapshot"] = PENDING if set(rows_before.values()) - set(rows_after.values()) else "written"
    recipe = recipe_of(before.config)
    change = Change(
        **facts["digests"],
        receipts=[
            make_receipt(kind, task_ids, recipe=recipe, facts=facts, effect=effect.for_receipt, request_id=name)
            for name, task_ids in requests.items()
        ],
        receipt_dir=None if files.receipts is None else str(files.receipts.absolute()),
        **archived,
    )
    return live.log.with_change(change, files.journal, is_main=Workers.current().is_main)


def require_accepted(effect: ChangeEffect, options: RequestOptions) -> None:
    """Refuse a change that takes more from a task than the caller allows, and leave nothing of it.

    Args:
        effect (`ChangeEffect`): of the change.
        options (`RequestOptions`): of the request.

    Raises:
        ScoreDropError: if a task would lose too much, or nothing tells.
    """
    if options.max_drop is None:
        return
    try:
        effect.require_drop_within(options.max_drop)
    except ScoreDropError:
        journal = options.files.journal
        if journal is not None:  # what is finished holds vectors, and nobody goes on with it
            Workers.current().in_turn(lambda: journal.clear(keep_note=True))
        raise


def accept_vectors(archive: Archive | None) -> None:
    """Bring new vectors that waited into their archive, from all processes in turn.

    Args:
        archive (`Archive`, *optional*): that a request worked with.
    """
    if isinstance(archive, HeldArchive):
        workers = Workers.current()
        with workers.watched():
            workers.in_turn(archive.write_held)


def recipe_of(config: ClamuConfig) -> dict[str, Any]:
    """Return the settings that decide the bits; their digest goes into receipts."""
    recipe = dict(config.arguments or {})
    if config.peft_config is not None:
        recipe |= {"peft_config": config.peft_config, "peft_merging": config.peft_merging}
    return recipe
