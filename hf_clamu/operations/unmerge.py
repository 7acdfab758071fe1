"""Forgetting tasks: their vectors are recovered, checked and subtracted, and the rest is derived again."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hf_clamu.errors import EnvironmentMismatchError
from hf_clamu.known_names import OnMismatch
from hf_clamu.merging import derivation_depends_on_environment, require_merged, unmerge_tasks, with_rows
from hf_clamu.operations.build import rebuild
from hf_clamu.operations.request import MISMATCHES, ChangeResult, Request
from hf_clamu.training import Environment

__all__ = ["unmerge"]


def unmerge(request: Request, task_ids: Sequence[str], on_mismatch: OnMismatch) -> ChangeResult:
    """Forget tasks; on a mismatch raise, or rebuild from the retained tasks or localize here, as the caller chose.

    With an archive nothing is retrained, so the environment matters only where something is derived from more than
    integers, ids and settings.

    Args:
        request (`Request`): on the model before.
        task_ids (*sequence* of `str`): the tasks, under the ledger's ids.
        on_mismatch (`str`): `"error"`, `"rebuild"` or, with an archive, `"localize"`.

    Raises:
        TaskNotFoundError: if one is not merged.
        ArchiveError, DigestMismatchError, EnvironmentMismatchError: on a mismatch.
    """
    before = request.checkpoint.state
    require_merged(task_ids, before.records)
    leaving = set(task_ids)
    retained = [task_id for task_id in before.task_ids if task_id not in leaving]
    tasks = request.tasks_if_needed()
    kept = tasks.select([task_id for task_id in retained if task_id in tasks])
    started = time.perf_counter()
    if on_mismatch == "rebuild" and request.lacks_rows(task_ids, tasks):
        return rebuild(request, with_rows(tasks, retained))  # their owners' rows are deleted already
    try:
        localized_in = _derived_elsewhere(request, retained, on_mismatch)
        state, seconds = request.context(tasks).run(
            lambda trainer: unmerge_tasks(before, task_ids, trainer, request.arguments), adds=False
        )
    except MISMATCHES:
        if on_mismatch != "rebuild":
            raise
        return rebuild(request, with_rows(tasks, retained))
    seconds["total"] = time.perf_counter() - started
    kept_data = kept if len(kept) or request.archive is None else None
    return request.answer(
        "subtracted", state, tasks=kept_data, seconds=seconds, subtracted=task_ids, localized_in=localized_in
    )


def _derived_elsewhere(request: Request, retained: Sequence[str], on_mismatch: OnMismatch) -> Environment | None:
    """Check the environment; return it if clusters and masks are derived in it although it is not that of the build.

    Raises:
        EnvironmentMismatchError: if it is another one, and that would show.
    """
    records = {task_id: request.checkpoint.state.records[task_id] for task_id in retained}
    if request.archive is not None and not derivation_depends_on_environment(records, request.arguments):
        return None
    try:
        request.require_environment()
    except EnvironmentMismatchError as error:
        if request.archive is None:
            raise
        if on_mismatch != "localize":
            raise EnvironmentMismatchError(
                f"{error} The archive spares the retraining, but clusters, masks or scores are computed here: "
                "on_mismatch='localize' (--on-mismatch localize) subtracts exactly and derives those in this "
                "environment, which the ledger then names."
            ) from None
        return request.environment
    return None
