"""Checks of what a model derives from its tasks, as far as what is stored of them tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import ClamuError
from hf_clamu.merging import candidate_alphas, clusters_of, names_of
from hf_clamu.proofs.report import Check
from hf_clamu.training import Environment

__all__ = ["derived_checks", "equal_tensors", "rows_of"]

_MASKS_NEED_DATA = "made of the tasks' data or vectors, so only a rebuild shows them: clamu verify"


def derived_checks(after: Checkpoint, before: Checkpoint | None = None) -> list[Check]:
    """Return checks of clusters, alpha and masks.

    Args:
        after (`Checkpoint`): the model.
        before (`Checkpoint`, *optional*): the state that it came from: what is kept of each retained task must be as
            it was.
    """
    checks = [_clusters(after), _alpha(after), _masks(after)]
    return checks if before is None else [*checks, _kept_of_tasks(before, after)]


def _clusters(checkpoint: Checkpoint) -> Check:
    """Check that the clusters are those that the clustering makes of what is stored of the retained tasks."""
    state, arguments = checkpoint.state, checkpoint.arguments
    if not state.records:
        return Check(name="clusters", passed=not state.clusters, text="none, as no task is merged")
    keys = {task_id: record.cluster_key for task_id, record in state.records.items()}
    try:
        found = clusters_of(keys, state.task_features, arguments)
        names = names_of(found, keys, state.task_features, arguments)
    except ClamuError as error:
        return Check(name="clusters", passed=False, text=str(error))
    same = (found, names) == (state.clusters, state.cluster_names)
    if not same and not _is_here(checkpoint):
        text = "clustered otherwise here, where libraries or processor are not those of the build"
        return Check(name="clusters", passed=None, text=text, is_needed=False)
    text = f"{len(state.clusters)}, as {arguments.clustering!r} makes them of the {len(state.records)} tasks"
    return Check(name="clusters", passed=same, text=text if same else f"not {text}")


def _is_here(checkpoint: Checkpoint) -> bool:
    recorded = checkpoint.localized_in or checkpoint.environment
    if recorded is None:
        return True
    here = Environment.capture(torch.device("cpu"), recorded.num_threads, portable=checkpoint.arguments.portable)
    return here == recorded


def _alpha(checkpoint: Checkpoint) -> Check:
    state, scaling = checkpoint.state, checkpoint.arguments.scaling
    allowed = candidate_alphas(scaling, len(state.records)) if state.records else [0.0]
    same = state.alpha in allowed
    text = f"{state.alpha:.6g} for {len(state.records)} tasks, scaling {scaling}"
    if same and len(allowed) > 1:
        return Check(name="alpha", passed=None, text=f"{text}: chosen by the tasks' data", is_needed=False)
    return Check(name="alpha", passed=same, text=text if same else f"{text}: expected {allowed[0]:.6g}")


def _masks(checkpoint: Checkpoint) -> Check:
    """Check that the masks are those of the clusters' members, where each task has a mask of its own."""
    state, method = checkpoint.state, checkpoint.arguments.localization_method
    if not method.makes_masks:
        return Check(name="masks", passed=not state.masks, text="none: all tasks are served by the global model")
    if len(state.masks) != len(state.clusters):
        return Check(name="masks", passed=False, text=f"{len(state.masks)} for {len(state.clusters)} clusters")
    if not method.keeps_task_masks:
        return Check(name="masks", passed=None, text=_MASKS_NEED_DATA, is_needed=False)
    own = dict(zip(state.task_ids, state.task_masks, strict=True))
    for members, mask in zip(state.clusters, state.masks, strict=True):
        joined = method.join([own[task_id] for task_id in members])
        if not equal_tensors(joined, mask):
            return Check(name="masks", passed=False, text="the mask of a cluster is not that of its members")
    text = f"{len(state.masks)}, each made of its members' own masks"
    return Check(name="masks", passed=True, text=text)


def equal_tensors(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of named tensors have the same names and values."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _kept_of_tasks(before: Checkpoint, after: Checkpoint) -> Check:
    """Check that features, digests and own masks of the retained tasks are as they were."""
    name, changed = "kept of tasks", []
    both = [task_id for task_id, record in before.state.records.items() if after.state.records.get(task_id) == record]
    for what, ours, theirs in (
        ("features", before.state.task_features, after.state.task_features),
        ("base features", before.state.base_features, after.state.base_features),
        ("linear digests", before.state.linear_digests, after.state.linear_digests),
    ):
        if (ours is None) != (theirs is None) and both:
            changed.append(what)
        elif (
            ours is not None
            and theirs is not None
            and not torch.equal(rows_of(before, ours, both), rows_of(after, theirs, both))
        ):
            changed.append(what)
    masks_before, masks_after = before.task_mask_digests, after.task_mask_digests
    if any(masks_before.get(task_id) != masks_after.get(task_id) for task_id in both):
        changed.append("own masks")
    text = f"{', '.join(changed)} of retained tasks changed" if changed else f"the same of {len(both)} retained tasks"
    return Check(name=name, passed=not changed, text=text)


def rows_of(checkpoint: Checkpoint, tensor: torch.Tensor, task_ids: Sequence[str]) -> torch.Tensor:
    """Return the rows of some merged tasks, of a tensor with a row for each."""
    rows = {task_id: row for row, task_id in enumerate(checkpoint.state.task_ids)}
    return tensor[[rows[task_id] for task_id in task_ids]]
