"""What a live model knows of its merging: the weights it serves, what goes with it, and its requests."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import cast_others, kept_in_float32
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.exact import GLOBAL_MODEL, PackedMask, WeightSwitch
from hf_clamu.exact.guard import Guard
from hf_clamu.hub.pull import place_of_repo
from hf_clamu.merging import MergedState
from hf_clamu.operations.effects.values import ChangeEffect
from hf_clamu.operations.lifecycle.amending import amend_receipt
from hf_clamu.operations.lifecycle.pending import Change, finish_pending, record_pending, remove_pending
from hf_clamu.operations.lifecycle.receipts import PENDING
from hf_clamu.operations.lifecycle.recovery import finalize_changes
from hf_clamu.storage import Journal, Snapshot, snapshot_beside
from hf_clamu.tasks import TaskDataset

__all__ = ["LiveState", "MergedWeights", "ModelContext", "Origin", "RequestLog"]


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from or last saved to.

    Args:
        folder (`Path`): of the saved model; for one from the Hub, in the cache.
        repo_id (`str`, *optional*): the Hub repo.
        commit (`str`, *optional*): its commit when it was loaded or pushed.
        revision (`str`): the branch, tag or commit that was asked for.
        token (`str` or `bool`, *optional*): that it was loaded with.
        ledgers (*mapping* of `Path` to `str`): digests of the ledgers that were seen or written last, by folder.
    """

    folder: Path
    repo_id: str | None = None
    commit: str | None = None
    revision: str = "main"
    token: str | bool | None = None
    ledgers: Mapping[Path, str] = field(default_factory=dict)

    def saved_to(self, folder: Path, ledger_digest: str) -> Origin:
        """Return the origin after a save; a copy on disk does not forget which repo it belongs to."""
        return replace(self, folder=folder, ledgers={**self.ledgers, folder.resolve(): ledger_digest})


@dataclass(frozen=True)
class MergedWeights:
    """What is merged into a live model, and the switch that serves it; a request replaces both together.

    Args:
        checkpoint (`Checkpoint`): what is merged.
        switch (`WeightSwitch`): flips the live weights.
    """

    checkpoint: Checkpoint
    switch: WeightSwitch

    @classmethod
    def on(
        cls,
        model: Any,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        digests: Mapping[str, bytes] | None = None,
        guard: Guard | None = None,
    ) -> MergedWeights:
        """Make the switch on a live model.

        Args:
            model (`transformers.PreTrainedModel`): holding the base weights.
            checkpoint (`Checkpoint`): what is merged.
            dtype (`torch.dtype`, *optional*): cast the live weights to this type.
            digests (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the parameters' values, where known.
            guard (`Guard`, *optional*): of the switch that this one replaces, so that threads that wait for the model
                wait for its next state, too.
        """
        state, uncast = checkpoint.state, kept_in_float32(model, dtype)
        switch = WeightSwitch(
            dict(model.named_parameters()),
            state.delta,
            state.alpha,
            checkpoint.arguments.codec,
            global_alpha=state.global_alpha,
            dtype=dtype,
            has_factors=bool(state.factors),
            uncast=uncast,
            digests=digests,
            guard=guard,
        )
        if dtype is not None:
            cast_others(model, dtype, uncast.union(state.delta))
        return cls(checkpoint, switch)

    @property
    def state(self) -> MergedState:
        """The merged tasks, delta, clusters and masks."""
        return self.checkpoint.state

    @property
    def space(self) -> PeftSpace | None:
        """The adapter that the live model has inside."""
        space = PeftSpace.of_checkpoint(self.checkpoint)
        return space if space is not None and space.is_live else None

    def mask_of(self, cluster: int | str | None) -> PackedMask:
        """Return the mask of a cluster by its number or name; `None` is the global model, which has none.

        Raises:
            ClusterNotFoundError: if there is no such cluster.
        """
        if cluster is None:
            return GLOBAL_MODEL
        number = self.state.find_cluster(cluster)
        return replace(self.state.mask(number), cluster=number)


@dataclass
class ModelContext:
    """What goes with a live model from one state to the next.

    Args:
        processor (*optional*): tokenizer or image processor to save with it.
        tasks (`TaskDataset`, *optional*): the data of the merged tasks, for later requests in this process.
        origin (`Origin`, *optional*): where it was loaded from or saved to.
        task_id_key (`str`, *optional*): the key of the ledger's task ids.
        base_name (`str`): what the base model was called.
        keeps_snapshot (`bool`): the rows of its tasks are kept wherever it is saved.
    """

    processor: Any = None
    tasks: TaskDataset | None = None
    origin: Origin | None = None
    task_id_key: str | None = None
    base_name: str = ""
    keeps_snapshot: bool = False
    _shown_processor: Any = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """The folder that it was loaded from or last saved to."""
        return None if self.origin is None else self.origin.folder

    @property
    def snapshot(self) -> Snapshot | None:
        """The rows that are kept beside its folder; for a Hub id, in the working directory as `ORG--NAME.snapshot`."""
        return next((snapshot for snapshot in self._snapshots() if snapshot.is_there), None)

    @property
    def snapshot_place(self) -> Path | None:
        """Where a snapshot is or would be; `None` for a model that was neither loaded nor saved."""
        return next((snapshot.folder for snapshot in reversed(self._snapshots())), None)

    def _snapshots(self) -> list[Snapshot]:
        if self.origin is None:
            return []
        places = [self.origin.folder]
        if self.origin.repo_id is not None:
            places.append(place_of_repo(self.origin.repo_id))
        return [Snapshot(snapshot_beside(place)) for place in places]

    def require_room_for_rows(self) -> None:
        """Check, before new tasks are trained on, that their rows can be added to the snapshot if there is one.

        Raises:
            SnapshotError: if it is encrypted and its key is missing.
        """
        snapshot = self.snapshot
        if snapshot is not None:
            snapshot.require_writable()

    @property
    def token(self) -> str | bool | None:
        """The token that it was loaded with."""
        return None if self.origin is None else self.origin.token

    @property
    def name(self) -> str:
        """What a reader knows the saved model by."""
        return "a live model" if self.origin is None else str(self.origin.repo_id or self.origin.folder)

    def shown_processor(self) -> Any:
        """Return the one copy of the processor that callers get, and may change."""
        if self._shown_processor is None and self.processor is not None:
            self._shown_processor = copy.deepcopy(self.processor)
        return self._shown_processor


@dataclass
class RequestLog:
    """The requests that a live model carried out, and those of them that are not saved yet.

    Args:
        receipts (*list* of *dict*): one for each request.
        receipt_dirs (*list* of `Path`, *optional* each): where the file of each receipt goes.
        unsaved (*list* of `Change`): what is left to do once the model is saved.
        journals (*list* of `Journal`): to clear then; the last one has the unsaved changes.
    """

    receipts: list[dict[str, Any]] = field(default_factory=list)
    receipt_dirs: list[Path | None] = field(default_factory=list)
    unsaved: list[Change] = field(default_factory=list)
    journals: list[Journal] = field(default_factory=list)

    def with_change(self, change: Change, journal: Journal | None, *, is_main: bool) -> RequestLog:
        """Return the log after a change, which is recorded in the journal, or finalized if nothing waits for a save.

        Args:
            change (`Change`): the change.
            journal (`Journal`, *optional*): that the change was made with.
            is_main (`bool`): this process writes files.
        """
        unsaved, journals = [*self.unsaved, change], self.journals
        if journal is not None:
            journals = [*(other for other in journals if other.folder != journal.folder), journal]
        keeps_rows = any("snapshot" in receipt for receipt in change.receipts)
        waits = bool(journals) or change.archive_dir is not None or keeps_rows
        if is_main:
            if journals:
                record_pending(journals[-1], unsaved)
            for earlier in journals[:-1]:
                remove_pending(earlier, unsaved)
            if not waits:
                finalize_changes([change])
        folder = None if change.receipt_dir is None else Path(change.receipt_dir)
        return RequestLog(
            receipts=[*self.receipts, *change.receipts],
            receipt_dirs=[*self.receipt_dirs, *[folder] * len(change.receipts)],
            unsaved=unsaved if waits else self.unsaved,
            journals=journals,
        )

    def add_recovered(self, receipts: Sequence[dict[str, Any]], receipt_dir: Path | None) -> None:
        """Take over the receipts of a request that an earlier process saved."""
        self.receipts = [*self.receipts, *receipts]
        self.receipt_dirs = [*self.receipt_dirs, *[receipt_dir] * len(receipts)]

    def settle_snapshot(self, *, is_replaced: bool) -> None:
        """Say in the receipts that wait for a save whether it destroys the rows of tasks that left.

        Args:
            is_replaced (`bool`): the model that had them is replaced, and so it is; otherwise it goes on having them.
        """
        for receipt in (receipt for change in self.unsaved for receipt in change.receipts):
            if receipt.get("snapshot") in (PENDING, "kept"):
                receipt["snapshot"] = PENDING if is_replaced else "kept"

    def note_target(self, folder: Path) -> None:
        """Record where the unsaved changes are about to be saved: a process that dies cannot say it any more."""
        if self.unsaved and self.journals:
            record_pending(self.journals[-1], self.unsaved, folder)

    def finalize(self) -> None:
        """Finish the changes that are saved now: write their receipts, clear their journals."""
        finalize_changes(self.unsaved)
        for journal in self.journals:
            finish_pending(journal, self.unsaved)
        self.unsaved, self.journals = [], []

    def note_erasure(self, report: Mapping[str, Any]) -> None:
        """Add a report on an erased history to the receipts that are not written yet, otherwise to the last one."""
        unsaved = [receipt for change in self.unsaved for receipt in change.receipts]
        for receipt in unsaved:
            receipt["erasure"] = dict(report)
        if not unsaved and self.receipts:
            amend_receipt(self.receipt_dirs[-1], self.receipts[-1], erasure=dict(report))


@dataclass
class LiveState:
    """Everything that a live model knows of its merging.

    Args:
        merged (`MergedWeights`): what it serves.
        context (`ModelContext`): what goes with it.
        log (`RequestLog`): its requests.
        effect (`ChangeEffect`, *optional*): what the last of them changed for other tasks.
    """

    merged: MergedWeights
    context: ModelContext
    log: RequestLog = field(default_factory=RequestLog)
    effect: ChangeEffect | None = None

    def replace(self, merged: MergedWeights, tasks: TaskDataset | None, log: RequestLog, effect: ChangeEffect) -> None:
        """Go on to the state that a request led to.

        Args:
            merged (`MergedWeights`): what is merged now.
            tasks (`TaskDataset`, *optional*): the data of the tasks that are merged now.
            log (`RequestLog`): with the request.
            effect (`ChangeEffect`): what the request changed for other tasks.
        """
        self.merged, self.log, self.effect = merged, log, effect
        self.context.tasks = tasks
