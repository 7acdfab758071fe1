"""Reading a saved model with suspicion: nothing is returned unless everything fits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_clamu.checkpoint.checkpoint import FEATURES_KEY, VECTORS_KEY, Checkpoint, SavedFiles
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig, current_entries, format_version
from hf_clamu.checkpoint.layout import (
    ANCHORS_NAME,
    BASE_FOLDER,
    CONFIG_NAME,
    FRESH_NAME,
    LEDGER_NAME,
    MASK_CONFIG_NAME,
    MASK_NAME,
    VECTORS_NAME,
    WEIGHTS_INDEX_NAME,
    delta_name,
    is_processor_file,
    mask_folder,
    refuse_unlisted,
    require_data_names,
    task_mask_name,
)
from hf_clamu.checkpoint.ledger import FileEntry, listed_files, read_json, read_ledger, records_of
from hf_clamu.checkpoint.masks import FACTORS_KEY, MASK_KEY, TASK_MASK_KEY, checked_factors, checked_mask
from hf_clamu.checkpoint.parsed_config import ParsedConfig, cluster_names
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import CheckpointFormatError, RecipeError, first_line
from hf_clamu.exact import digest_tensors, narrowest_dtype, sha256_files, sha256_hex
from hf_clamu.merging import ClamuArguments, MergedState, TaskRecord, depends_on_environment, keeps_base_features
from hf_clamu.storage import read_tensors
from hf_clamu.storage.replace import finish_replacement
from hf_clamu.training import Environment

__all__ = ["read_checkpoint", "read_tensor_file"]

_WIDTHS = (torch.int32, torch.int64)
# Bytes. Files that a processor's own `save_pretrained` wrote again have another size than the recorded one.
_LARGEST_PROCESSOR_FILE = 2**28


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a saved model; nothing is returned unless everything fits.

    Args:
        folder (`Path`): a folder that `write_checkpoint` wrote.

    Raises:
        CheckpointFormatError: if a file is missing, truncated, tampered with, or of a newer format.
    """
    finish_replacement(folder)
    if not folder.is_dir():
        raise CheckpointFormatError(f"{folder} is not a folder. Expected a saved ClAMU model.")
    values = _read_config(folder)
    ledger = read_ledger(folder)
    version = _format_version(folder, values, ledger)
    listed = listed_files(folder, ledger)
    rewritten = _check_files(folder, listed)
    records, clusters = records_of(ledger)
    parsed = _parse_config(values, len(records), len(clusters))
    if parsed.base.embedded:
        _check_base_index(folder, listed)
    delta = _read_delta(folder / delta_name(version), ledger, parsed.config, records)
    masks, task_masks = _read_masks(folder, parsed.arguments, clusters, records, delta)
    features, base_features = None, None
    if VECTORS_NAME in listed:
        features, base_features = _read_features(folder, len(records), parsed.arguments, parsed.task_spec.kind)
    state = MergedState(
        delta=delta,
        records=records,
        task_features=features,
        clusters=clusters,
        alpha=parsed.config.alpha,
        global_alpha=parsed.config.global_alpha,
        masks=masks,
        factors=_read_factors(folder, parsed.arguments, len(masks), delta),
        scores=parsed.config.scores,
        task_masks=task_masks,
        delta_digest=parsed.config.delta_digest,
        cluster_names=cluster_names(parsed, records, clusters),
        base_features=base_features,
    )
    parsed.config.cluster_names = list(state.cluster_names)
    fresh = read_tensor_file(folder / FRESH_NAME) if FRESH_NAME in listed else {}
    environment, localized_in = _read_environments(ledger, records, parsed.arguments)
    return Checkpoint(
        config=parsed.config,
        state=state,
        environment=environment,
        source=ledger.get("source"),
        fresh=fresh,
        anchors=_read_anchors(folder, listed, parsed.arguments, features),
        localized_in=localized_in,
        files=SavedFiles(format_version=version, digest=str(ledger["digest"]), entries=listed, rewritten=rewritten),
        parsed=parsed,
    )


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


def _read_config(folder: Path) -> dict[str, Any]:
    values = read_json(folder / CONFIG_NAME)
    if values.get("model_type") != ClamuConfig.model_type:
        raise CheckpointFormatError(
            f"{folder} holds a model of type {values.get('model_type')!r}, expected 'clamu'. Load it with "
            "transformers, or give the folder that `clamu train` or ClamuModel.save_pretrained wrote."
        )
    return values


def _format_version(folder: Path, values: Mapping[str, Any], ledger: Mapping[str, Any]) -> int:
    """Return the version of a saved model's files."""
    version, of_ledger = format_version(values, folder / CONFIG_NAME), format_version(ledger, folder / LEDGER_NAME)
    if version != of_ledger:
        raise CheckpointFormatError(
            f"{folder} mixes files of two models: {CONFIG_NAME} has format version {version}, {LEDGER_NAME} "
            f"{of_ledger}. Take an undamaged copy."
        )
    return version


def _parse_config(values: Mapping[str, Any], num_tasks: int, num_clusters: int) -> ParsedConfig:
    """Return the configuration that a file holds, if a model can be made of it."""
    found = current_entries(values)
    for key in ("model_type", "architectures"):
        found.pop(key, None)
    expected = ClamuConfig(public_rows={}).to_file_dict()
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise CheckpointFormatError(f"{CONFIG_NAME} has the unknown entry {unknown[0]!r}. Upgrade hf_clamu.")
    kinds: dict[str, type] = {"architecture": str, "delta_digest": str, "alpha": float, "global_alpha": float}
    kinds |= dict.fromkeys(("base_model", "base_config", "arguments", "task_spec"), dict)
    odd = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    odd = odd or [key for key in ("alpha", "global_alpha") if not math.isfinite(found[key])]
    odd += [key for key, n in (("num_tasks", num_tasks), ("num_clusters", num_clusters)) if found.get(key) != n]
    if odd:
        raise _misfit(odd[0], found)
    try:
        parsed = ParsedConfig(ClamuConfig(**found))
    except Exception as error:  # transformers raises what the value of a key of its own happens to lack
        raise CheckpointFormatError(
            f"{CONFIG_NAME} holds a base_config that no model has ({first_line(error)}). Take an undamaged copy."
        ) from error
    try:
        _ = parsed.base
    except ValueError as error:
        raise _misfit("base_model", found) from error
    try:
        _ = parsed.arguments, parsed.task_spec
    except (RecipeError, TypeError) as error:
        raise CheckpointFormatError(f"{CONFIG_NAME} holds settings that this release cannot use: {error}") from error
    return parsed


def _misfit(key: str, found: Mapping[str, Any]) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{CONFIG_NAME} lacks {key!r}, or its value does not fit the ledger or is of the wrong kind: "
        f"{str(found.get(key))[:80]}. Take an undamaged copy."
    )


def _read_environments(
    ledger: Mapping[str, Any], records: Mapping[str, TaskRecord], arguments: ClamuArguments
) -> tuple[Environment | None, Environment | None]:
    """Return the environment of the build, and the one where clusters, masks and scores were derived if elsewhere."""
    try:
        recorded = ledger["environment"]
        environment = None if recorded is None else Environment.from_dict(recorded)
        localized_in = Environment.from_dict(ledger["localized_in"]) if "localized_in" in ledger else None
    except (KeyError, TypeError) as error:
        raise CheckpointFormatError(f"{LEDGER_NAME} lacks a part of the environment ({error!r}).") from error
    if environment is None and depends_on_environment(records, arguments):
        raise CheckpointFormatError(
            f"{LEDGER_NAME} names no environment, and the bits of this model depend on it. Take an undamaged copy."
        )
    return environment, localized_in


def _check_files(folder: Path, listed: Mapping[str, FileEntry]) -> frozenset[str]:
    """Compare a folder with the files that its ledger lists; return those that their processor has written again."""
    require_data_names(listed)
    for name, entry in listed.items():
        path = folder / name
        # The files of a Hub cache are links to blobs elsewhere, so they are not resolved.
        if not path.is_file():
            raise CheckpointFormatError(f"{path} is missing: the ledger lists it. Take an undamaged copy.")
        size = path.stat().st_size
        # First the sizes: a file of zeros may have any size and takes no space, but hashing it takes hours.
        if size != entry.size and not (is_processor_file(name) and size <= _LARGEST_PROCESSOR_FILE):
            raise CheckpointFormatError(
                f"{path} has {size} bytes, the ledger says {entry.size}: it is truncated or was changed. Take an "
                "undamaged copy."
            )
    refuse_unlisted(folder, listed)
    digests = sha256_files(folder / name for name in listed)
    changed = {name: digest for name, digest in zip(listed, digests, strict=True) if digest != listed[name].sha256}
    for name, digest in changed.items():
        path, expected = folder / name, listed[name].sha256
        if not _is_processor_with(path, name, expected):
            raise CheckpointFormatError(
                f"{path} has SHA-256 {digest[:16]}…, the ledger says {expected[:16]}…: it is truncated or was "
                "changed. Take an undamaged copy."
                + (" Another tokenizer or processor is not saved over a model's own." * is_processor_file(name))
            )
    return frozenset(changed)


def _is_processor_with(path: Path, name: str, digest: str) -> bool:
    """Whether a file has the content that was saved, and was only written again by its own `save_pretrained`."""
    if not is_processor_file(name) or path.suffix != ".json":
        return False
    try:
        return bool(sha256_hex(normalized_bytes(path)) == digest)
    except Exception:  # tokenizers raises nothing more special; what cannot be read is another file
        return False


def _check_base_index(folder: Path, listed: Collection[str]) -> None:
    """Check that the shards of an embedded base model are files that the ledger lists."""
    name = f"{BASE_FOLDER}/{WEIGHTS_INDEX_NAME}"
    if name not in listed:
        return
    shards = read_json(folder / name).get("weight_map")
    shards = list(shards.values()) if isinstance(shards, dict) else [None]
    odd = [shard for shard in shards if not isinstance(shard, str) or f"{BASE_FOLDER}/{shard}" not in listed]
    if odd:
        raise CheckpointFormatError(
            f"{folder / name} names {odd[0]!r}, which is no file of this model. Take an undamaged copy."
        )


def _read_delta(
    path: Path, ledger: Mapping[str, Any], config: ClamuConfig, records: Mapping[str, TaskRecord]
) -> dict[str, torch.Tensor]:
    delta = read_tensor_file(path)
    # Hashed once as a file and once as tensors: the file's digest proves every byte of it, the tensors' digest is what
    # mask adapters and receipts name.
    if sorted(delta) != ledger["parameters"] or digest_tensors(delta) != config.delta_digest:
        raise CheckpointFormatError(f"{path} is not the delta that {CONFIG_NAME} names.")
    _check_bounds(delta, records)
    return delta


def _check_bounds(delta: Mapping[str, torch.Tensor], records: Mapping[str, TaskRecord]) -> None:
    """Check that the delta keeps within the bounds of the tasks' vectors, and is as wide as they ask for."""
    for name, steps in delta.items():
        bound = sum(record.bounds[name] for record in records.values())
        found = max(int(steps.max()), -int(steps.min())) if steps.dtype in _WIDTHS and steps.numel() else 0
        if steps.dtype != narrowest_dtype(bound) or found > bound:
            raise CheckpointFormatError(
                f"The merged delta of {name!r} is {steps.dtype} with entries up to {found}, the ledger's bounds say "
                f"{narrowest_dtype(bound)} and {bound} at most. Take an undamaged copy."
            )


def _read_masks(
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


def _read_factors(
    folder: Path, arguments: ClamuArguments, num_masks: int, names: Collection[str]
) -> tuple[dict[str, float], ...]:
    """Return what alpha is multiplied by under each mask, where that is learned."""
    if not arguments.localization_method.has_factors(arguments):
        return ()
    paths = [folder / mask_folder(cluster) / MASK_CONFIG_NAME for cluster in range(num_masks)]
    return tuple(checked_factors(path, read_json(path).get(FACTORS_KEY), names) for path in paths)


def _read_anchors(
    folder: Path, listed: Collection[str], arguments: ClamuArguments, vectors: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Read what tasks are clustered by, from public rows, if the clustering has such anchors."""
    found = read_tensor_file(folder / ANCHORS_NAME) if ANCHORS_NAME in listed else {}
    if not arguments.clustering_method.fits_anchors(found, None if vectors is None else vectors.shape[-1]):
        raise CheckpointFormatError(
            f"{folder / ANCHORS_NAME} holds no anchors of these tasks' clustering. Take an undamaged copy."
        )
    return found


def _read_features(
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
