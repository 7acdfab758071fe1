"""From what a caller of `ClamuModel` asks for to a request on its state, and from its result to a receipt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.hub.archive import archive_at
from hf_clamu.local_models.local_models import LocalModels, require_named
from hf_clamu.models.state import LiveState, ModelContext, RequestLog
from hf_clamu.operations.lifecycle.pending import Change, archived_names
from hf_clamu.operations.lifecycle.receipts import PENDING, make_receipt, salted_ids
from hf_clamu.operations.lifecycle.recovery import needs_recovery, recover_pending
from hf_clamu.operations.request import ChangeResult, Request, RequestKind
from hf_clamu.operations.snapshots import snapshot_names
from hf_clamu.storage import Archive, Journal
from hf_clamu.tasks import DataFiles, TaskDataset, keyed_id
from hf_clamu.training import Progress, Workers, silent_progress

__all__ = ["RequestOptions", "find_local_models", "ledger_id", "log_change", "open_request", "recover_earlier"]


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What every request of a `ClamuModel` is given; `ClamuModel.unmerge_task` explains the options."""

    data: TaskDataset | DataFiles | None = None
    checkpoints: Mapping[str, str | Path] | None = None
    receipt_dir: Path | None = None
    journal: Journal | None = None
    archive: Archive | None = None
    progress: Progress = silent_progress

    @classmethod
    def of(
        cls,
        *,
        data: TaskDataset | DataFiles | None,
        checkpoints: Mapping[str, str | Path] | None,
        receipt_dir: str | Path | None,
        journal_dir: str | Path | None,
        archive: str | Path | Archive | None,
        progress: Progress,
    ) -> RequestOptions:
        """Take over what a caller gave."""
        return cls(
            data=data,
            checkpoints=checkpoints,
            receipt_dir=None if receipt_dir is None else Path(receipt_dir),
            journal=None if journal_dir is None else Journal(Path(journal_dir)),
            archive=archive_at(archive),
            progress=progress,
        )


def ledger_id(checkpoint: Checkpoint, context: ModelContext, task_id: str) -> str:
    """Return the id that a ledger has for a task: the same, or its keyed commitment.

    Raises:
        TaskNotFoundError: if the ledger's ids are keyed and the key is not known.
    """
    if not checkpoint.has_keyed_ids or task_id in checkpoint.state.records:
        return task_id
    if context.task_id_key is None:
        raise TaskNotFoundError(
            f"The ledger keeps keyed commitments instead of task ids, so {task_id!r} cannot be looked up without "
            "the key: load the model with task_id_key= (CLAMU_TASK_ID_KEY for the command line)."
        )
    return keyed_id(context.task_id_key, task_id)


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
    given = {ledger_id(merged.checkpoint, live.context, one): folder for one, folder in checkpoints.items()}
    if not adds:  # there may be folders of tasks that are gone
        given = {one: folder for one, folder in given.items() if one in merged.state.records}
    if merged.space is not None:
        raise TaskDataError(
            "This model merges the parameters of an adapter, and checkpoints are whole models. Give the data "
            "of the tasks; they are finetuned through the adapter."
        )
    return LocalModels.find(given, token=live.context.token)


def open_request(live: LiveState, options: RequestOptions, base: Any, local_models: LocalModels | None) -> Request:
    """Return a request on the present state.

    Args:
        live (`LiveState`): of the model.
        options (`RequestOptions`): what the caller gave.
        base (`transformers.PreTrainedModel`): a base model of its own to train on.
        local_models (`LocalModels`, *optional*): from `find_local_models`.

    Raises:
        IncompatibleBaseError: if a local model does not fit the base.
    """
    checkpoint, context = live.merged.checkpoint, live.context
    if local_models is not None:
        local_models.check(base, checkpoint.task_spec.kind, context.processor)
    return Request(
        checkpoint=checkpoint,
        base=base,
        processor=context.processor,
        data=options.data if options.data is not None else context.tasks,
        origin=context.folder,
        task_id_key=context.task_id_key,
        journal=options.journal,
        archive=options.archive,
        local_models=local_models,
        snapshot=context.snapshot,
        progress=options.progress,
    )


def recover_earlier(live: LiveState, kind: RequestKind, task_ids: Sequence[str], options: RequestOptions) -> bool:
    """Finish what an earlier process recorded in the journal before it died; return whether it was this very request.

    Args:
        live (`LiveState`): of the model.
        kind (`str`): of the request that is asked for now.
        task_ids (*sequence* of `str`): its tasks, under the ledger's ids.
        options (`RequestOptions`): what the caller gave.
    """
    if options.journal is None:
        return False
    workers = Workers.current()
    with workers.watched():
        receipts = _recovered_receipts(live, options.journal, options) if workers.is_main else []
        receipts = workers.gather(receipts)[0]
    live.log.add_recovered(receipts, options.receipt_dir)
    done = {one for receipt in receipts if receipt["request"] == kind for one in salted_ids(receipt) or ()}
    return bool(task_ids) and done.issuperset(task_ids)


def _recovered_receipts(live: LiveState, journal: Journal, options: RequestOptions) -> list[dict[str, Any]]:
    ours, archive = live.log.unsaved, options.archive
    if not needs_recovery(journal, ours, options.receipt_dir, archive):
        return []
    checkpoint = live.merged.checkpoint
    with journal.locked():
        recovery = recover_pending(
            journal,
            {checkpoint.state_digest},
            merged=archived_names(checkpoint.state),
            receipt_dir=options.receipt_dir,
            archive=None if archive is None or archive.retains_forgotten else archive,
            ours=ours,
        )
    for line in recovery.to_do:
        warnings.warn(line, stacklevel=5)
    if not recovery.changes or recovery.changes[-1].after != checkpoint.state_digest:
        return []  # another folder has them
    return [receipt for change in recovery.changes for receipt in change.receipts]


def log_change(
    live: LiveState,
    kind: RequestKind,
    requests: Mapping[str | None, Sequence[str]],
    built: ChangeResult,
    options: RequestOptions,
) -> RequestLog:
    """Make the receipts of a change, and return the model's log with it.

    Args:
        live (`LiveState`): before the change.
        kind (`str`): of the requests.
        requests (*mapping* of `str` to *sequence* of `str`): the tasks of each request, by what it is called.
        built (`ChangeResult`): the new state.
        options (`RequestOptions`): what the caller gave.
    """
    before, after = live.merged.checkpoint, built.checkpoint
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
    archived: dict[str, Any] = {}
    if options.archive is not None:
        old, new = archived_names(before.state), archived_names(after.state)
        spent = [] if options.archive.retains_forgotten else sorted(old - new)
        archived = {"archive_dir": options.archive.uri, "written": sorted(new - old), "spent": spent}
        facts["archive"] = PENDING if spent else "kept" if old - new else "written"
        from_checkpoints = {ledger_id(before, live.context, task_id) for task_id in options.checkpoints or ()}
        named = {task_id for task_ids in requests.values() for task_id in task_ids}
        # A checkpoint that is given goes first, and then the archive is not read.
        if built.outcome in ("subtracted", "updated") and named.isdisjoint(from_checkpoints):
            facts["vectors_from"] = "archive"
    if live.context.snapshot is not None:
        rows_before, rows_after = (snapshot_names(one.state.records) for one in (before, after))
        facts["snapshot"] = PENDING if set(rows_before.values()) - set(rows_after.values()) else "written"
    recipe = _recipe(before.config)
    change = Change(
        **facts["digests"],
        receipts=[
            make_receipt(kind, task_ids, recipe=recipe, facts=facts, request_id=name)
            for name, task_ids in requests.items()
        ],
        receipt_dir=None if options.receipt_dir is None else str(options.receipt_dir.absolute()),
        **archived,
    )
    return live.log.with_change(change, options.journal, is_main=Workers.current().is_main)


def _recipe(config: ClamuConfig) -> dict[str, Any]:
    """Return the settings that decide the bits; their digest goes into receipts."""
    recipe = dict(config.arguments or {})
    if config.peft_config is not None:
        recipe |= {"peft_config": config.peft_config, "peft_merging": config.peft_merging}
    return recipe
