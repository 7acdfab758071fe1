"""The snapshot of a live model goes with its files: rows are kept before a save, and destroyed after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_clamu.models.state import LiveState
from hf_clamu.operations.lifecycle.pending import journal_beside
from hf_clamu.operations.snapshots import destroy_left_rows, keep_rows
from hf_clamu.storage import Journal, Snapshot, snapshot_beside

__all__ = ["rows_kept"]


@contextmanager
def rows_kept(live: LiveState, place: Path | None, *, starts: bool = True) -> Iterator[None]:
    """Keep the rows of the merged tasks beside a place while a block saves the model there, if it has a snapshot.

    The rows are complete before the block, and those of tasks that left are destroyed after it; so at every moment a
    killed process leaves a model with all of its rows. Nothing is destroyed if the block raises.

    Args:
        live (`LiveState`): of the model.
        place (`Path`, *optional*): its folder; for a Hub id, `place_of_repo`; `None` if no snapshot goes with it.
        starts (`bool`): a model that has a snapshot elsewhere gets one here, too.

    Raises:
        SnapshotError: if the rows of a task are nowhere, or the key of the snapshot is missing; nothing was saved.
        RunInProgressError: if another process works on the model.
    """
    context, checkpoint = live.context, live.merged.checkpoint
    source, target = context.snapshot, None if place is None else Snapshot(snapshot_beside(place))
    live.log.settle_snapshot(is_replaced=source is not None and target is not None and source.folder == target.folder)
    has_one = context.keeps_snapshot or source is not None
    if place is None or target is None or not (target.is_there or (starts and has_one)):
        yield
        return
    with Journal(journal_beside(place)).locked():
        keep_rows(target, checkpoint, source, context.tasks, context.processor)
        yield
        destroy_left_rows(target, checkpoint)
    tasks = context.tasks
    if tasks is not None and any(map(tasks.is_stored, tasks)):
        context.tasks = None  # the next request reads them from here
