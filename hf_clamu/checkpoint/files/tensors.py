"""Masks, factors, features, anchors and linear digests of a saved model, read and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from hf_clamu.checkpoint.checkpoint import FEATURES_KEY, LINEAR_DIGESTS_KEY, VECTORS_KEY
from hf_clamu.checkpoint.layout import (
    ANCHORS_NAME,
    LINEAR_DIGESTS_NAME,
    MASK_CONFIG_NAME,
    MASK_NAME,
    VECTORS_NAME,
    mask_folder,
    task_mask_name,
)
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.checkpoint.masks import FACTORS_KEY, MASK_KEY, TASK_MASK_KEY, checked_factors, checked_mask
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact.linear_digest import DIGEST_SHAPE, MODULUS
from hf_clamu.merging import ClamuArguments, keeps_base_features
from hf_clamu.storage import read_tensors

__all__ = [
    "read_anchors",
    "read_factors",
    "read_features",
    "read_linear_digests",
    "read_masks",
    "read_tensor_file",
]


def read_tensor_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file of a saved model.

    Raises:
        CheckpointFormatError: if it is missing or damaged.
    """
    try:
        return read_tensors(path)
    except FileNotFoundError:
        raise CheckpointFormatError(f"{path} is missing. Take an undamaged copy.") from None
    except OSError as error:
        raise CheckpointFormatError(
            f"{path} cannot be read as safetensors ({error}). Take an undamaged copy."
        ) from error


def read_masks(
    folder: Path,
    arguments: ClamuArguments,
    clusters: Collection[object],
    records: Collection[str],
    delta: Mapping[str, torch.Tensor],
) -> tuple[tuple[dict[str, torch.Tensor], ...], tuple[dict[str, torch.Tensor], ...]]:
    """Return the masks of the clusters, and those of the tasks where a method keeps them."""
    method = arguments.localization_method
    if not method.makes_masks:
        return (), ()
    num_weights = {name: steps.numel() for name, steps in delta.items()}

    def read(name: str, key: str) -> dict[str, torch.Tensor]:
        return checked_mask(folder / name, read_tensor_file(folder / name), key, num_weights)

    masks = tuple(read(f"{mask_folder(cluster)}/{MASK_NAME}", MASK_KEY) for cluster in range(len(clusters)))
    if not method.keeps_task_masks:
        return masks, ()
    if len(masks) >= len(records):
        return masks, masks
    return masks, tuple(read(task_mask_name(index), TASK_MASK_KEY) for index in range(len(records)))


def read_factors(
    folder: Path, arguments: ClamuArguments, num_masks: int, names: Collection[str]
) -> tuple[dict[str, float], ...]:
    """Return what alpha is multiplied by under each mask, where that is learned."""
    if not arguments.localization_method.has_factors(arguments):
        return ()
    paths = [folder / mask_folder(cluster) / MASK_CONFIG_NAME for cluster in range(num_masks)]
    return tuple(checked_factors(path, read_json(path).get(FACTORS_KEY), names) for path in paths)


def read_anchors(
    folder: Path, listed: Collection[str], arguments: ClamuArguments, vectors: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Read what tasks are clustered by, from public rows, if the clustering has such anchors."""
    found = read_tensor_file(folder / ANCHORS_NAME) if ANCHORS_NAME in listed else {}
    if not arguments.clustering_method.fits_anchors(found, None if vectors is None else vectors.shape[-1]):
        raise CheckpointFormatError(
            f"{folder / ANCHORS_NAME} holds no anchors of these tasks' clustering. Take an undamaged copy."
        )
    return found


def read_features(
    folder: Path, num_tasks: int, arguments: ClamuArguments, kind: str
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Read what the tasks are clustered by, and the base model's features that are kept besides."""
    path, clustering = folder / VECTORS_NAME, arguments.clustering_method
    found = read_tensor_file(path)
    expected = {VECTORS_KEY: clustering.feature_dtype}
    if keeps_base_features(arguments, kind):
        expected[FEATURES_KEY] = torch.float32
    for name, tensor in found.items():
        if tensor.ndim != 2 or len(tensor) != num_tasks:
            rows = len(tensor) if tensor.ndim else 0
            raise CheckpointFormatError(f"{path} has {rows} rows for {num_tasks} tasks. Take an undamaged copy.")
        dtype = expected.get(name)
        if tensor.dtype != dtype or not tensor.isfinite().all():
            raise CheckpointFormatError(
                f"{path} holds {name!r} of {tensor.dtype}, or values that are not finite; a model with clustering "
                f"{clustering.name!r} and these settings has {dtype or 'none'} there. Take an undamaged copy."
            )
    if not found or (clustering.feature_dtype is not None and VECTORS_KEY not in found):
        raise CheckpointFormatError(f"{path} has no tensor {VECTORS_KEY!r}. Take an undamaged copy.")
    return found.get(VECTORS_KEY), found.get(FEATURES_KEY)


def read_linear_digests(
    folder: Path, listed: Collection[str], num_tasks: int, arguments: ClamuArguments
) -> torch.Tensor | None:
    """Read the linear digests of the tasks' vectors, where the settings keep them."""
    path = folder / LINEAR_DIGESTS_NAME
    is_kept = arguments.linear_digest is True and num_tasks > 0
    if is_kept != (LINEAR_DIGESTS_NAME in listed):
        raise CheckpointFormatError(
            f"{path} is {'missing' if is_kept else 'there'}, and by its settings (linear_digest) a model of "
            f"{num_tasks} tasks {'has' if is_kept else 'does not have'} it. Take an undamaged copy."
        )
    if not is_kept:
        return None
    found = read_tensor_file(path)
    digests = found.get(LINEAR_DIGESTS_KEY)
    expected = (num_tasks, *DIGEST_SHAPE)
    if len(found) != 1 or digests is None or digests.dtype != torch.int32 or digests.shape != expected:
        raise CheckpointFormatError(
            f"{path} must hold one tensor {LINEAR_DIGESTS_KEY!r}, int32 of shape {expected}. Take an undamaged copy."
        )
    low, high = map(int, digests.aminmax())
    if low < 0 or high >= MODULUS:
        raise CheckpointFormatError(f"{path} holds numbers that are no residues. Take an undamaged copy.")
    return digests
