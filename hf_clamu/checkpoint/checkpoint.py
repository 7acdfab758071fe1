"""The files of a saved model: writing them byte for byte the same, and reading them with suspicion."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.checkpoint.card_settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION, ClamuConfig
from hf_clamu.checkpoint.layout import (
    BASE_FOLDER,
    CARD_NAME,
    CONFIG_NAME,
    DELTA_NAME,
    FRESH_NAME,
    MASK_CONFIG_NAME,
    MASK_NAME,
    VECTORS_NAME,
    files_of,
    is_processor_file,
    mask_folder,
    refuse_unlisted,
    require_data_names,
    rule_of,
    task_mask_name,
)
from hf_clamu.checkpoint.ledger import (
    LEDGER_NAME,
    ledger_entries,
    listed_files,
    read_json,
    read_ledger,
    records_of,
    sealed,
)
from hf_clamu.checkpoint.parsed_config import ParsedConfig
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import CheckpointFormatError, RecipeError, first_line
from hf_clamu.exact import (
    canonical_json,
    check_padding,
    digest_json,
    digest_tensors,
    narrowest_dtype,
    packed_size,
    sha256_files,
    sha256_hex,
)
from hf_clamu.merging import ClamuArguments, ClusteringMethod, MergedState, TaskRecord, depends_on_environment
from hf_clamu.storage.replace import finish_replacement
from hf_clamu.tasks import TaskSpec
from hf_clamu.training import Environment

__all__ = [
    "MASK_KEY",
    "Checkpoint",
    "join_mask",
    "read_checkpoint",
    "read_tensors",
    "split_mask",
    "write_checkpoint",
]

# PEFT's layout of an adapter: the model inside PeftModel, the side module, the parameter that holds the mask. One
# tensor and not one per weight: PEFT walks over all tensors of all adapters at each load.
MASK_KEY = "base_model.model.clamu_adapters.clamu_mask"
_VECTORS_KEY = "vectors"
_TASK_MASK_KEY = "mask"
_WIDTHS = (torch.int32, torch.int64)
# Bytes. Those that their own `save_pretrained` wrote anew have another size than the recorded one.
_LARGEST_PROCESSOR_FILE = 2**28


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a saved model consists of, without the base model's weights.

    Args:
        config (`ClamuConfig`): of the saved model.
        state (`MergedState`): delta, tasks, clusters and masks.
        environment (`Environment`, *optional*): fingerprint of the build; None if no bit depends on it.
        source (*dict*, *optional*): where the tasks' data came from, see `load_tasks`.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the base checkpoint lacks.
        localized_in (`Environment`, *optional*): where clusters, masks and scores were derived, if elsewhere.
        parsed (`ParsedConfig`, *optional*): the entries of the configuration, if they are parsed already.
    """

    config: ClamuConfig
    state: MergedState
    environment: Environment | None
    source: dict[str, Any] | None
    fresh: dict[str, torch.Tensor]
    localized_in: Environment | None = None
    parsed: ParsedConfig = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.parsed is None or self.parsed.config is not self.config:
            object.__setattr__(self, "parsed", ParsedConfig(self.config))

    @property
    def arguments(self) -> ClamuArguments:
        """The settings of the build."""
        return self.parsed.arguments

    @property
    def task_spec(self) -> TaskSpec:
        """How rows became tasks."""
        return self.parsed.task_spec

    @property
    def base(self) -> BaseReference:
        """Which base model the tasks were merged into."""
        return self.parsed.base

    def base_config(self) -> dict[str, Any]:
        """Return a copy of the base model's own configuration."""
        return self.parsed.base_config()

    @property
    def card(self) -> CardSettings:
        """What the model card shows besides."""
        return self.parsed.card

    @property
    def has_keyed_ids(self) -> bool:
        """Whether the ids of the tasks are keyed commitments."""
        return self.config.task_ids != "plain"

    @property
    def state_digest(self) -> str:
        """The SHA-256 of everything that is merged."""
        state, task_masks = self.state, _own_task_masks(self.state)
        return digest_json(
            {
                "alpha": state.alpha,
                "delta": self.config.delta_digest,  # computed with the state, or compared when it was read
                "ledger": ledger_entries(state),
                "masks": [digest_tensors(mask) for mask in state.masks],
                "scores": state.scores,
                **({"task_masks": [digest_tensors(mask) for mask in task_masks]} if task_masks else {}),
                "vectors": None if state.vectors is None else digest_tensors({_VECTORS_KEY: state.vectors}),
            }
        )


def _own_task_masks(state: MergedState) -> tuple[dict[str, torch.Tensor], ...]:
    """Return the task masks that are stored beside the cluster masks: none where these are the same."""
    return () if state.has_mask_per_task else state.task_masks


def write_checkpoint(folder: Path, checkpoint: Checkpoint, card: str, write_others: Callable[[Path], None]) -> None:
    """Write all files of a saved model into an empty folder.

    Args:
        folder (`Path`): an empty folder.
        checkpoint (`Checkpoint`): what to write.
        card (`str`): the model card.
        write_others (*callable*): writes the tokenizer or processor, and the base model if it is embedded.

    The ledger is written last: it lists the SHA-256 of every other file.
    """
    state = checkpoint.state
    write_others(folder)
    (folder / CONFIG_NAME).write_bytes(canonical_json(checkpoint.config.to_file_dict()))
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    _write_tensors(folder / DELTA_NAME, state.delta)
    if checkpoint.fresh:
        _write_tensors(folder / FRESH_NAME, checkpoint.fresh)
    if state.vectors is not None:
        _write_tensors(folder / VECTORS_NAME, {_VECTORS_KEY: state.vectors})
    for cluster, mask in enumerate(state.masks):
        target = folder / mask_folder(cluster)
        target.mkdir(parents=True)
        (target / MASK_CONFIG_NAME).write_bytes(canonical_json(_mask_config(checkpoint, cluster)))
        _write_tensors(target / MASK_NAME, {MASK_KEY: join_mask(mask)})
    for place, mask in enumerate(_own_task_masks(state)):
        # A file for each: one mask at a time is in memory.
        path = folder / task_mask_name(place)
        path.parent.mkdir(exist_ok=True)
        _write_tensors(path, {_TASK_MASK_KEY: join_mask(mask)})
    rules = {name: rule_of(name) for name in files_of(folder)}
    # The card is for people to edit; it is compared by `verify` but not needed to load.
    listed = [name for name, rule in rules.items() if rule is None or rule.is_listed]
    require_data_names(listed)
    digests = sha256_files(folder / name for name in listed)
    ledger = {
        "format_version": FORMAT_VERSION,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "source": checkpoint.source,
        "files": {
            name: {"sha256": digest, "size": (folder / name).stat().st_size}
            for name, digest in zip(listed, digests, strict=True)
        },
        **ledger_entries(state),
    }
    (folder / LEDGER_NAME).write_bytes(canonical_json(sealed(ledger)))


def _mask_config(checkpoint: Checkpoint, cluster: int) -> dict[str, Any]:
    base = checkpoint.base
    return {
        "peft_type": "CLAMU_MASK",
        # AutoPeftModel loads the base model with this class.
        "auto_mapping": {"base_model_class": checkpoint.config.architecture, "parent_library": "transformers"},
        "base_model_name_or_path": base.name_or_path or None,
        "revision": base.revision,
        "cluster": cluster,
        "delta_digest": checkpoint.config.delta_digest,
        "mask_digest": digest_tensors({MASK_KEY: join_mask(checkpoint.state.masks[cluster])}),
        "alpha": checkpoint.state.alpha,
        "inference_mode": True,
    }


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # One metadata key at most: safetensors writes several in a random order.
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, metadata={"format": "pt"})


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
    values = read_json(folder / CONFIG_NAME)
    if values.get("model_type") != ClamuConfig.model_type:
        raise CheckpointFormatError(
            f"{folder} holds a model of type {values.get('model_type')!r}, expected 'clamu'. Load it with "
            "transformers, or give the folder that `clamu train` or ClamuModel.save_pretrained wrote."
        )
    ledger = read_ledger(folder / LEDGER_NAME)
    for name, version in ((CONFIG_NAME, values.get("format_version")), (LEDGER_NAME, ledger.get("format_version"))):
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise CheckpointFormatError(
                f"{folder / name} has format version {version!r}, this release reads up to {FORMAT_VERSION}. Upgrade "
                "hf_clamu."
            )
    listed = listed_files(folder, ledger)
    _check_files(folder, listed)
    records, clusters = records_of(ledger)
    parsed = _parse_config(values, len(records), len(clusters))
    config, arguments = parsed.config, parsed.arguments
    if parsed.base.embedded:
        _check_base_index(folder, listed)
    delta = read_tensors(folder / DELTA_NAME)
    if sorted(delta) != ledger["parameters"] or digest_tensors(delta) != config.delta_digest:
        raise CheckpointFormatError(f"{folder / DELTA_NAME} is not the delta that {CONFIG_NAME} names.")
    _check_bounds(delta, records)
    method = arguments.localization_method
    names = [f"{mask_folder(cluster)}/{MASK_NAME}" for cluster in range(len(clusters))]
    masks = tuple(_read_mask(folder / name, MASK_KEY, delta) for name in names) if method.makes_masks else ()
    task_masks = masks if method.keeps_task_masks else ()
    if len(task_masks) < len(records) and method.keeps_task_masks:
        names = [task_mask_name(place) for place in range(len(records))]
        task_masks = tuple(_read_mask(folder / name, _TASK_MASK_KEY, delta) for name in names)
    vectors = _read_vectors(folder, len(records), arguments.clustering_method) if VECTORS_NAME in listed else None
    state = MergedState(
        delta=delta,
        records=records,
        vectors=vectors,
        clusters=clusters,
        alpha=config.alpha,
        masks=masks,
        scores=config.scores,
        task_masks=task_masks,
    )
    fresh = read_tensors(folder / FRESH_NAME) if FRESH_NAME in listed else {}
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
    return Checkpoint(
        config=config,
        state=state,
        environment=environment,
        source=ledger.get("source"),
        fresh=fresh,
        localized_in=localized_in,
        parsed=parsed,
    )


def _parse_config(values: Mapping[str, Any], num_tasks: int, num_clusters: int) -> ParsedConfig:
    """Return the configuration that a file holds, if a model can be made of it."""
    found = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
    expected = ClamuConfig().to_file_dict()
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise CheckpointFormatError(f"{CONFIG_NAME} has the unknown entry {unknown[0]!r}. Upgrade hf_clamu.")
    kinds: dict[str, type] = {"architecture": str, "delta_digest": str, "alpha": float}
    kinds |= dict.fromkeys(("base_model", "base_config", "arguments", "task_spec"), dict)
    odd = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if not odd and not math.isfinite(found["alpha"]):
        odd = ["alpha"]
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
        parsed.base  # noqa: B018
    except ValueError as error:
        raise _misfit("base_model", found) from error
    try:
        parsed.arguments, parsed.task_spec  # noqa: B018
    except (RecipeError, TypeError) as error:
        raise CheckpointFormatError(f"{CONFIG_NAME} holds settings that this release cannot use: {error}") from error
    return parsed


def _misfit(key: str, found: Mapping[str, Any]) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{CONFIG_NAME} lacks {key!r}, or its value does not fit the ledger or is of the wrong kind: "
        f"{str(found.get(key))[:80]}. Take an undamaged copy."
    )


def _check_files(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a folder with the files that its ledger lists."""
    require_data_names(listed)
    for name, entry in listed.items():
        path = folder / name
        # The files of a Hub cache are links to blobs elsewhere, so they are not resolved.
        if not path.is_file():
            raise CheckpointFormatError(f"{path} is missing: the ledger lists it. Take an undamaged copy.")
        size = path.stat().st_size
        # First the sizes: a file of zeros may have any size and takes no room, but to hash it takes hours.
        if size != entry["size"] and not (is_processor_file(name) and size <= _LARGEST_PROCESSOR_FILE):
            raise CheckpointFormatError(
                f"{path} has {size} bytes, the ledger says {entry['size']}: it is truncated or was changed. Take an "
                "undamaged copy."
            )
    refuse_unlisted(folder, listed)
    for name, found in zip(listed, sha256_files(folder / name for name in listed), strict=True):
        path, expected = folder / name, listed[name]["sha256"]
        if found != expected and not _is_processor_with(path, name, expected):
            raise CheckpointFormatError(
                f"{path} has SHA-256 {found[:16]}…, the ledger says {expected[:16]}…: it is truncated or was changed. "
                "Take an undamaged copy."
                + (" Another tokenizer or processor is not saved over a model's own." * is_processor_file(name))
            )


def _is_processor_with(path: Path, name: str, digest: str) -> bool:
    """Whether a file is what was saved, only written anew by the tokenizer's own `save_pretrained`."""
    if not is_processor_file(name) or path.suffix != ".json":
        return False
    try:
        return bool(sha256_hex(normalized_bytes(path)) == digest)
    except Exception:  # tokenizers raises nothing more special; what cannot be read is another file
        return False


def _check_base_index(folder: Path, listed: Collection[str]) -> None:
    """Check that the shards of an embedded base model are files that the ledger lists."""
    name = f"{BASE_FOLDER}/{DELTA_NAME}.index.json"
    if name not in listed:
        return
    shards = read_json(folder / name).get("weight_map")
    shards = list(shards.values()) if isinstance(shards, dict) else [None]
    odd = [shard for shard in shards if not isinstance(shard, str) or f"{BASE_FOLDER}/{shard}" not in listed]
    if odd:
        raise CheckpointFormatError(
            f"{folder / name} names {odd[0]!r}, which is no file of this model. Take an undamaged copy."
        )


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


def _read_vectors(folder: Path, num_tasks: int, clustering: ClusteringMethod) -> torch.Tensor:
    """Read what the tasks are clustered by."""
    path = folder / VECTORS_NAME
    vectors = read_tensors(path).get(_VECTORS_KEY)
    if vectors is None:
        raise CheckpointFormatError(f"{path} has no tensor {_VECTORS_KEY!r}. Take an undamaged copy.")
    if vectors.ndim != 2 or len(vectors) != num_tasks:
        rows = len(vectors) if vectors.ndim else 0
        raise CheckpointFormatError(f"{path} has {rows} rows for {num_tasks} tasks. Take an undamaged copy.")
    expected = clustering.row_dtype
    if vectors.dtype != expected or not vectors.isfinite().all():
        raise CheckpointFormatError(
            f"{path} holds {vectors.dtype}, or values that are not finite; clustering {clustering.name!r} has "
            f"{expected or 'no such file'}. Take an undamaged copy."
        )
    return vectors


def _read_mask(path: Path, key: str, delta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = read_tensors(path)
    if sorted(found) != [key]:
        raise CheckpointFormatError(
            f"The mask in {path} must be one tensor {key!r}, found {sorted(found)[:3]}. Take an undamaged copy."
        )
    mask = split_mask(found[key], {name: steps.numel() for name, steps in delta.items()})
    for name, bits in mask.items():
        check_padding(name, bits, delta[name].numel())
    return mask


def join_mask(mask: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a mask as one tensor: the packed bits of each weight, sorted by name; each starts a new byte.

    Args:
        mask (*mapping* of `str` to `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): packed bits per weight.

    Returns:
        `torch.Tensor` of shape `(bytes,)`, uint8.
    """
    return torch.cat([mask[name] for name in sorted(mask)])


def split_mask(joined: torch.Tensor, num_weights: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Undo `join_mask`; the results are views.

    Args:
        joined (`torch.Tensor` of shape `(bytes,)`, uint8): the mask as one tensor.
        num_weights (*mapping* of `str` to `int`): weights per name.

    Raises:
        CheckpointFormatError: if the size differs.
    """
    names = sorted(num_weights)
    sizes = [packed_size(num_weights[name]) for name in names]
    if joined.dtype != torch.uint8 or joined.shape != (sum(sizes),):
        raise CheckpointFormatError(
            f"The mask must be uint8 of shape ({sum(sizes)},) for this merged delta, found {joined.dtype} of shape "
            f"{tuple(joined.shape)}. It belongs to another model or is damaged."
        )
    return dict(zip(names, joined.split(sizes), strict=True))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointFormatError: if it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except FileNotFoundError:
        raise CheckpointFormatError(f"{path} is missing. Take an undamaged copy.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointFormatError(
            f"{path} cannot be read as safetensors ({error}). Take an undamaged copy."
        ) from error
