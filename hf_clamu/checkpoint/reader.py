"""Reading a saved model with suspicion: nothing is returned unless everything fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hf_clamu.checkpoint.checkpoint import Checkpoint, SavedFiles
from hf_clamu.checkpoint.configuration_clamu import (
    DEFAULT_MAX_SHARD_SIZE,
    ClamuConfig,
    current_entries,
    format_version,
)
from hf_clamu.checkpoint.files.integrity import checked_files
from hf_clamu.checkpoint.files.proofs import base_values_of, is_proven_delta
from hf_clamu.checkpoint.files.shards import check_shards, read_tensors_at
from hf_clamu.checkpoint.files.tensors import (
    read_anchors,
    read_factors,
    read_features,
    read_linear_digests,
    read_masks,
    read_tensor_file,
)
from hf_clamu.checkpoint.layout import (
    BASE_FOLDER,
    CONFIG_NAME,
    FRESH_NAME,
    LEDGER_NAME,
    VECTORS_NAME,
    WEIGHTS_NAME,
    delta_name,
)
from hf_clamu.checkpoint.ledger import FileEntry, listed_files, read_json, read_ledger, records_of
from hf_clamu.checkpoint.parsed_config import ParsedConfig, cluster_names
from hf_clamu.errors import CheckpointFormatError, RecipeError, first_line
from hf_clamu.exact import digest_tensors, narrowest_dtype
from hf_clamu.merging import ClamuArguments, MergedState, TaskRecord, depends_on_environment
from hf_clamu.storage.replace import finish_replacement
from hf_clamu.training import Environment

__all__ = ["opened_checkpoint", "read_checkpoint"]

_WIDTHS = (torch.int8, torch.int16, torch.int32, torch.int64)


def read_checkpoint(folder: Path, *, strict: bool = False) -> Checkpoint:
    """Read a saved model; nothing is returned unless everything fits.

    Args:
        folder, strict: see `opened_checkpoint`.

    Raises:
        CheckpointFormatError: if a file is missing, truncated, tampered with, or of a newer format.
    """
    with opened_checkpoint(folder, strict=strict) as checkpoint:
        return checkpoint


@contextmanager
def opened_checkpoint(folder: Path, *, strict: bool = False) -> Iterator[Checkpoint]:
    """Read a saved model; its large files are hashed while a block loads what goes with it.

    What the block makes may be used only after the block has ended: if a file does not fit, it ends in an error.

    Args:
        folder (`Path`): a folder that `write_checkpoint` wrote.
        strict (`bool`): hash the tensors of delta and base model, too, and read files that this process has read and
            that are unchanged since. Otherwise the ledger says which files hold which tensors.

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
    with checked_files(folder, listed, strict=strict) as rewritten:
        digests = {name: entry.sha256 for name, entry in listed.items()}
        files = SavedFiles(
            format_version=version,
            digest=str(ledger["digest"]),
            entries=listed,
            rewritten=rewritten,
            base_values=None if strict else base_values_of(ledger, digests),
        )
        yield _checkpoint_of(folder, values, ledger, files, strict=strict)


def _checkpoint_of(
    folder: Path, values: Mapping[str, Any], ledger: Mapping[str, Any], files: SavedFiles, *, strict: bool
) -> Checkpoint:
    version, listed = files.format_version, files.entries
    records, clusters = records_of(ledger)
    parsed = _parse_config(values, len(records), len(clusters))
    if parsed.base.embedded:
        check_shards(folder / BASE_FOLDER / WEIGHTS_NAME, folder, listed)
    check_shards(folder / delta_name(version), folder, listed)
    delta = _read_delta(folder / delta_name(version), listed, ledger, parsed.config, strict=strict)
    _check_bounds(delta, records, parsed.arguments.integer_bits)
    masks, task_masks = read_masks(folder, parsed.arguments, clusters, records, delta)
    features, base_features = None, None
    if VECTORS_NAME in listed:
        features, base_features = read_features(folder, len(records), parsed.arguments, parsed.task_spec.kind)
    state = MergedState(
        delta=delta,
        records=records,
        task_features=features,
        clusters=clusters,
        alpha=parsed.config.alpha,
        global_alpha=parsed.config.global_alpha,
        masks=masks,
        factors=read_factors(folder, parsed.arguments, len(masks), delta),
        scores=parsed.config.scores,
        task_masks=task_masks,
        delta_digest=parsed.config.delta_digest,
        cluster_names=cluster_names(parsed, records, clusters),
        base_features=base_features,
        linear_digests=read_linear_digests(folder, listed, len(records), parsed.arguments),
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
        anchors=read_anchors(folder, listed, parsed.arguments, features),
        localized_in=localized_in,
        files=files,
        parsed=parsed,
    )


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
    size = found.get("max_shard_size", DEFAULT_MAX_SHARD_SIZE)  # models from before it have none
    odd += [] if type(size) is int and size > 0 else ["max_shard_size"]
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


def _read_delta(
    path: Path,
    listed: Mapping[str, FileEntry],
    ledger: Mapping[str, Any],
    config: ClamuConfig,
    *,
    strict: bool,
) -> dict[str, torch.Tensor]:
    delta = read_tensors_at(path, listed)
    digests = {name: entry.sha256 for name, entry in listed.items()}
    # The tensors' digest is what mask adapters and receipts name. Which files have it was recorded when they were
    # written, and the files are hashed.
    is_proven = not strict and is_proven_delta(ledger, digests, config.delta_digest)
    if sorted(delta) != ledger["parameters"] or not (is_proven or digest_tensors(delta) == config.delta_digest):
        raise CheckpointFormatError(f"{path} is not the delta that {CONFIG_NAME} names.")
    return delta


def _check_bounds(delta: Mapping[str, torch.Tensor], records: Mapping[str, TaskRecord], least_bits: int) -> None:
    """Check that the delta keeps within the bounds of the tasks' vectors, and is as wide as they ask for."""
    for name, steps in delta.items():
        bound = sum(record.bounds[name] for record in records.values())
        low, high = map(int, steps.aminmax()) if steps.dtype in _WIDTHS and steps.numel() else (0, 0)
        found = max(high, -low)
        expected = narrowest_dtype(bound, least_bits)
        if steps.dtype != expected or found > bound:
            raise CheckpointFormatError(
                f"The merged delta of {name!r} is {steps.dtype} with entries up to {found}, the ledger's bounds say "
                f"{expected} and {bound} at most. Take an undamaged copy."
            )
