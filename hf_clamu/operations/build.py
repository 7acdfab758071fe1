"""Building a merged model from all of its tasks, the first time or again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from hf_clamu.base_models.adapters.idle import warn_of_idle_parts
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import RecipeError
from hf_clamu.local_models.local_models import LocalModels
from hf_clamu.merging import depends_on_environment, depends_on_threads, merge_tasks, missing_checkpoints_error
from hf_clamu.operations.configuration import refreshed_config
from hf_clamu.operations.context import RunContext, build_environment
from hf_clamu.operations.request import ChangeResult, Request
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import Workers

__all__ = ["build", "rebuild"]


def build(
    context: RunContext,
    config: ClamuConfig,
    *,
    fresh: dict[str, torch.Tensor],
    source: Mapping[str, Any] | None,
) -> ChangeResult:
    """Build a merged model from all tasks of a context, with all processes of the run.

    Args:
        context (`RunContext`): what it runs on.
        config (`ClamuConfig`): the configuration, whatever it says of a state.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the base checkpoint lacks.
        source (*mapping*, *optional*): where the data came from, for the ledger.

    Raises:
        RecipeError: if several processes share the CPU and the number of threads is not set, but decides the bits.
    """
    started = time.perf_counter()
    arguments, workers = context.arguments, Workers.current()
    shares_cpu = workers.size > 1 and workers.device.type == "cpu"
    if shares_cpu and arguments.num_threads is None and depends_on_threads(context.tasks, arguments):
        raise RecipeError(
            "num_threads must be set where several processes share the CPU: sums depend on the number of threads, and "
            f"launchers change it. Set it in the recipe's arguments, such as num_threads: 1 (now {workers.size} "
            "processes)."
        )
    state, seconds = context.run(lambda trainer: merge_tasks(trainer, arguments), adds=True)
    if context.space is not None and workers.is_main and not context.backwards:
        warn_of_idle_parts([record.bounds for record in state.records.values()])
    checkpoint = Checkpoint(
        config=refreshed_config(config, state),
        state=state,
        environment=context.environment if depends_on_environment(state.records, arguments) else None,
        source=dict(source) if source is not None else None,
        fresh=fresh,
        anchors=context.anchors,
    )
    seconds = {**seconds, "total": time.perf_counter() - started}
    return ChangeResult(
        checkpoint=checkpoint, base=context.base, tasks=context.tasks, outcome="rebuilt", seconds=seconds
    )


def rebuild(request: Request, tasks: TaskDataset, *, backwards: bool = False) -> ChangeResult:
    """Build a merged model again from these tasks, in this environment.

    Args:
        request (`Request`): on the model before.
        tasks (`TaskDataset`): the tasks to merge.
        backwards (`bool`): in the opposite order and another split over the processes.

    Raises:
        TaskDataError: if one was finetuned elsewhere and its local model is not given.
    """
    records = request.checkpoint.state.records
    given = request.local_models or LocalModels({})
    foreign = [task_id for task_id in tasks.task_ids if task_id in records and records[task_id].from_checkpoint]
    absent = [task_id for task_id in foreign if task_id not in given]
    if absent:
        raise missing_checkpoints_error(absent, "to be added up again")
    context = replace(
        request.context(tasks),
        environment=build_environment(request.arguments, request.base),
        # Local models of other tasks may be given, too; but a build finetunes those.
        local_models=given.select(foreign),
        backwards=backwards,
    )
    checkpoint = request.checkpoint
    return build(context, checkpoint.config, fresh=checkpoint.fresh, source=checkpoint.source)
