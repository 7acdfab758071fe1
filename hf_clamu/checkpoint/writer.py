"""Writing a saved model: the same merged state gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.card.model_card import model_card
from hf_clamu.checkpoint.checkpoint import LINEAR_DIGESTS_KEY, Checkpoint
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
from hf_clamu.checkpoint.files.proofs import PROOFS_KEY, proofs
from hf_clamu.checkpoint.files.shards import save_shards
from hf_clamu.checkpoint.files.written import WrittenFiles
from hf_clamu.checkpoint.layout import (
    ANCHORS_NAME,
    CARD_NAME,
    CONFIG_NAME,
    DELTA_NAME,
    FRESH_NAME,
    LEDGER_NAME,
    LINEAR_DIGESTS_NAME,
    MASK_CONFIG_NAME,
    MASK_NAME,
    VECTORS_NAME,
    files_of,
    mask_folder,
    require_data_names,
    rule_of,
    task_mask_name,
)
from hf_clamu.checkpoint.ledger import ledger_entries, sealed
from hf_clamu.checkpoint.masks import (
    EMBEDDED_BASE,
    FACTORS_KEY,
    MASK_KEY,
    REQUIRED_IMPORT,
    TASK_MASK_KEY,
    digest_mask,
    join_mask,
)
from hf_clamu.exact import canonical_json
from hf_clamu.storage import save_tensors

__all__ = ["write_checkpoint"]


def write_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    written: WrittenFiles,
    base_values: Mapping[str, bytes] | None = None,
) -> str:
    """Write the files of a saved model, and last a ledger that lists every file of the folder.

    Args:
        folder (`Path`): a folder with nothing in it but the tokenizer or image processor, and the base model if it is
            embedded.
        checkpoint (`Checkpoint`): what to write.
        written (`WrittenFiles`): hashes the files.
        base_values (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the values of each weight that an
            embedded base model has when it is loaded from the folder.

    Returns:
        `str`: the ledger's own digest.
    """
    state = checkpoint.state
    (folder / CONFIG_NAME).write_bytes(canonical_json(checkpoint.config.to_file_dict()))
    (folder / CARD_NAME).write_text(model_card(checkpoint), encoding="utf-8")
    save_shards(folder / DELTA_NAME, state.delta, checkpoint.max_shard_size)
    written.begin(folder)
    if checkpoint.fresh:
        save_tensors(folder / FRESH_NAME, checkpoint.fresh)
    if checkpoint.stored_features:
        save_tensors(folder / VECTORS_NAME, checkpoint.stored_features)
    if checkpoint.anchors:
        save_tensors(folder / ANCHORS_NAME, dict(checkpoint.anchors))
    if state.linear_digests is not None:
        save_tensors(folder / LINEAR_DIGESTS_NAME, {LINEAR_DIGESTS_KEY: state.linear_digests})
    _write_masks(folder, checkpoint)
    ledger = sealed(_ledger(folder, checkpoint, written, base_values))
    (folder / LEDGER_NAME).write_bytes(canonical_json(ledger))
    return str(ledger["digest"])


def _write_masks(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a file for each mask: one mask at a time is in memory."""
    state = checkpoint.state
    for cluster, mask in enumerate(state.masks):
        target = folder / mask_folder(cluster)
        target.mkdir(parents=True)
        joined, factors = join_mask(mask), state.mask(cluster).factors
        mask_config = _mask_config(checkpoint, cluster, digest_mask(joined, factors))
        if factors is not None:
            mask_config[FACTORS_KEY] = factors
        (target / MASK_CONFIG_NAME).write_bytes(canonical_json(mask_config))
        save_tensors(target / MASK_NAME, {MASK_KEY: joined})
    for index, mask in enumerate(checkpoint.stored_task_masks):
        path = folder / task_mask_name(index)
        path.parent.mkdir(exist_ok=True)
        save_tensors(path, {TASK_MASK_KEY: join_mask(mask)})


def _mask_config(checkpoint: Checkpoint, cluster: int, mask_digest: str) -> dict[str, Any]:
    base = checkpoint.base
    return {
        "peft_type": "CLAMU_MASK",
        # AutoPeftModel loads the base model with this class.
        "auto_mapping": {"base_model_class": checkpoint.config.architecture, "parent_library": "transformers"},
        "base_model_name_or_path": base.name_or_path or EMBEDDED_BASE,
        "revision": base.revision,
        "cluster": cluster,
        "cluster_name": checkpoint.state.cluster_names[cluster],
        "delta_digest": checkpoint.config.delta_digest,
        "mask_digest": mask_digest,
        "alpha": checkpoint.state.alpha,
        "inference_mode": True,
        "requires_import": REQUIRED_IMPORT,
    }


def _ledger(
    folder: Path, checkpoint: Checkpoint, written: WrittenFiles, base_values: Mapping[str, bytes] | None
) -> dict[str, Any]:
    rules = {name: rule_of(name) for name in files_of(folder)}
    listed = [name for name, rule in rules.items() if rule is None or rule.is_listed]
    require_data_names(listed)
    digests = dict(zip(listed, written.digests([folder / name for name in listed]), strict=True))
    return {
        "format_version": FORMAT_VERSION,
        "environment": None if checkpoint.environment is None else checkpoint.environment.to_dict(),
        **({} if checkpoint.localized_in is None else {"localized_in": checkpoint.localized_in.to_dict()}),
        "source": checkpoint.source,
        "files": {
            name: {"sha256": digest, "size": (folder / name).stat().st_size} for name, digest in digests.items()
        },
        PROOFS_KEY: proofs(digests, checkpoint.config.delta_digest, base_values),
        **ledger_entries(checkpoint.state),
    }
