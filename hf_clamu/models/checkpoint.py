"""The files of a saved model: writing them byte for byte the same, and reading them with suspicion."""

from __future__ import annotations

import fnmatch
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.exact import (
    canonical_json,
    check_padding,
    digest_json,
    digest_tensors,
    packed_size,
    sha256_files,
    sha256_hex,
)
from hf_clamu.merging import ClamuArguments, MergedState, depends_on_environment
from hf_clamu.models.base import settled_bytes
from hf_clamu.models.configuration_clamu import FORMAT_VERSION, ClamuConfig
from hf_clamu.models.ledger import LEDGER_NAME, ledger_entries, read_json, read_ledger, records_of, sealed
from hf_clamu.tasks import TaskSpec
from hf_clamu.training import Environment

__all__ = [
    "MASK_KEY",
    "Checkpoint",
    "join_mask",
    "mask_folder",
    "read_checkpoint",
    "split_mask",
    "write_checkpoint",
]

CONFIG_NAME = "config.json"
DELTA_NAME = "model.safetensors"
FRESH_NAME = "base_init.safetensors"
VECTORS_NAME = "features.safetensors"
TASK_MASKS_FOLDER = "task_masks"
BASE_FOLDER = "base_model"
CARD_NAME = "README.md"
MASK_CONFIG_NAME = "adapter_config.json"
MASK_NAME = "adapter_model.safetensors"
# PEFT's layout of an adapter: the model inside PeftModel, the side module, the parameter that holds the mask. One
# tensor and not one per weight: PEFT walks over all tensors of all adapters at each load.
MASK_KEY = "base_model.model.clamu_adapters.clamu_mask"
PROCESSOR_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_VECTORS_KEY = "vectors"
_TASK_MASK_KEY = "mask"


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
    """

    config: ClamuConfig
    state: MergedState
    environment: Environment | None
    source: dict[str, Any] | None
    fresh: dict[str, torch.Tensor]
    localized_in: Environment | None = None

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


def mask_folder(cluster: int) -> str:
    """Return the folder of a cluster's mask adapter inside a saved model."""
    return f"masks/cluster_{cluster:03d}"


def task_mask_name(place: int) -> str:
    """Return the file of a task's mask inside a saved model, by the task's place in the order of the ids."""
    return f"{TASK_MASKS_FOLDER}/task_{place:03d}.safetensors"


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
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    # The card is for people to edit; it is compared by `verify` but not needed to load.
    listed = [name for name in files if name != CARD_NAME]
    ledger = {
        "format_version": FORMAT_VERSION,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "source": checkpoint.source,
        "files": dict(zip(listed, sha256_files(folder / name for name in listed), strict=True)),
        **ledger_entries(state),
    }
    (folder / LEDGER_NAME).write_bytes(canonical_json(sealed(ledger)))


def _mask_config(checkpoint: Checkpoint, cluster: int) -> dict[str, Any]:
    base = checkpoint.config.base_model or {}
    return {
        "peft_type": "CLAMU_MASK",
        # AutoPeftModel loads the base model with this class.
        "auto_mapping": {"base_model_class": checkpoint.config.architecture, "parent_library": "transformers"},
        "base_model_name_or_path": base.get("name_or_path") or None,
        "revision": base.get("revision"),
        "cluster": cluster,
        "delta_digest": checkpoint.config.delta_digest,
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
    _check_files(folder, ledger.get("files"))
    records, clusters = records_of(ledger)
    config = _config_of(values, len(records), len(clusters))
    delta = read_tensors(folder / DELTA_NAME)
    if sorted(delta) != ledger["parameters"] or digest_tensors(delta) != config.delta_digest:
        raise CheckpointFormatError(f"{folder / DELTA_NAME} is not the delta that {CONFIG_NAME} names.")
    method = (config.arguments or {}).get("localization")
    names = [f"{mask_folder(cluster)}/{MASK_NAME}" for cluster in range(len(clusters))]
    masks = tuple(_read_mask(folder / name, MASK_KEY, delta) for name in names) if method != "global" else ()
    task_masks = masks if method == "sift" else ()
    if len(task_masks) < len(records) and method == "sift":
        names = [task_mask_name(place) for place in range(len(records))]
        task_masks = tuple(_read_mask(folder / name, _TASK_MASK_KEY, delta) for name in names)
    vectors = None
    if (folder / VECTORS_NAME).exists():
        vectors = read_tensors(folder / VECTORS_NAME).get(_VECTORS_KEY)
        if vectors is None:
            raise CheckpointFormatError(f"{folder / VECTORS_NAME} has no tensor {_VECTORS_KEY!r}.")
        if len(vectors) != len(records):
            raise CheckpointFormatError(
                f"{folder / VECTORS_NAME} has {len(vectors)} rows for {len(records)} tasks. Take an undamaged copy."
            )
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
    fresh = read_tensors(folder / FRESH_NAME) if (folder / FRESH_NAME).exists() else {}
    try:
        recorded = ledger["environment"]
        environment = None if recorded is None else Environment.from_dict(recorded)
        localized_in = Environment.from_dict(ledger["localized_in"]) if "localized_in" in ledger else None
    except (KeyError, TypeError) as error:
        raise CheckpointFormatError(f"{LEDGER_NAME} lacks a part of the environment ({error!r}).") from error
    if environment is None and depends_on_environment(records, ClamuArguments.from_dict(config.arguments or {})):
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
    )


def _config_of(values: Mapping[str, Any], num_tasks: int, num_clusters: int) -> ClamuConfig:
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
    if not odd and not all(isinstance(found["base_model"].get(key), str) for key in ("name_or_path", "digest")):
        odd = ["base_model"]
    odd += [key for key, n in (("num_tasks", num_tasks), ("num_clusters", num_clusters)) if found.get(key) != n]
    if odd:
        raise CheckpointFormatError(
            f"{CONFIG_NAME} lacks {odd[0]!r}, or its value does not fit the ledger or is of the wrong kind: "
            f"{str(found.get(odd[0]))[:80]}. Take an undamaged copy."
        )
    try:
        ClamuArguments.from_dict(found["arguments"])
        TaskSpec.from_dict(found["task_spec"])
    except (RecipeError, TypeError) as error:
        raise CheckpointFormatError(f"{CONFIG_NAME} holds settings that this release cannot use: {error}") from error
    return ClamuConfig(**found)


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise CheckpointFormatError(f"{folder / LEDGER_NAME} lists no files. Take an undamaged copy.")
    for name in sorted(files):
        path = folder / name
        # By its parts, not resolved: the files of a Hub cache are links to blobs elsewhere.
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise CheckpointFormatError(f"{folder / LEDGER_NAME} names {name!r}, which is outside the folder.")
        if not path.is_file():
            raise CheckpointFormatError(f"{path} is missing: the ledger lists it. Take an undamaged copy.")
    for name, found in zip(sorted(files), sha256_files(folder / name for name in sorted(files)), strict=True):
        path, expected = folder / name, files[name]
        if found != expected and not _is_processor_with(path, expected):
            raise CheckpointFormatError(
                f"{path} has SHA-256 {found[:16]}…, the ledger says {str(expected)[:16]}…: it is truncated or was "
                "changed. Take an undamaged copy."
                + (" Another tokenizer or processor is not saved over a model's own." * (path.name in PROCESSOR_FILES))
            )


def _is_processor_with(path: Path, digest: Any) -> bool:
    """Whether a file is what was saved, only written anew by the tokenizer's own `save_pretrained`."""
    if path.name not in PROCESSOR_FILES:
        return False
    try:
        return bool(sha256_hex(settled_bytes(path)) == digest)
    except Exception:  # tokenizers raises nothing more special; what cannot be read is another file
        return False


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


# What an older save, or transformers' own, may have left here.
_OURS = (
    *(CONFIG_NAME, CARD_NAME, LEDGER_NAME, "masks", TASK_MASKS_FOLDER, BASE_FOLDER, *PROCESSOR_FILES),
    *(DELTA_NAME, "model-*-of-*.safetensors", "*.safetensors.index.json", FRESH_NAME, VECTORS_NAME),
)


def keep_foreign_files(old: Path, new: Path) -> None:
    """Carry files that are not ours over to the folder that replaces the old one.

    Args:
        old (`Path`): the folder to be replaced; it need not exist.
        new (`Path`): the staged one.

    Raises:
        FileExistsError: if the old folder holds files but no ClAMU model: it is not ours to replace.
    """
    if not old.is_dir():
        return
    visible = [path.name for path in old.iterdir() if not path.name.startswith(".")]
    if visible and not (old / LEDGER_NAME).exists():
        raise FileExistsError(
            f"{old} holds other files ({', '.join(sorted(visible)[:3])}) and no ClAMU model. Give a new folder."
        )
    for path in old.iterdir():
        if any(fnmatch.fnmatchcase(path.name, ours) for ours in _OURS) or (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)
