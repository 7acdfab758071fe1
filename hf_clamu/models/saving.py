"""Bringing a merged model to its folder, whether it is served or was only built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_clamu.exact import canonical_json
from hf_clamu.models.base import save_processor
from hf_clamu.models.card import model_card
from hf_clamu.models.checkpoint import BASE_FOLDER, Checkpoint, keep_foreign_files, write_checkpoint
from hf_clamu.models.quiet import without_report
from hf_clamu.models.replace import staged_folder

__all__ = ["save_checkpoint", "save_unserved"]


def save_checkpoint(
    target: Path, checkpoint: Checkpoint, processor: Any, write_base: Callable[[Path], object]
) -> None:
    """Write a merged model; an existing one at this place is replaced as a whole or not at all.

    Args:
        target (`Path`): the folder. Files of others in it are kept.
        checkpoint (`Checkpoint`): what is merged.
        processor (*optional*): tokenizer or image processor to save with it.
        write_base (*callable*): writes the base model into a folder, if it goes with the merged one.

    Raises:
        OSError: if something cannot be written; then the folder is as it was.
    """
    config = checkpoint.config

    def write_others(folder: Path) -> None:
        if processor is not None:
            save_processor(processor, folder)
        if not (config.base_model or {}).get("embedded"):
            return
        base = folder / BASE_FOLDER
        write_base(base)
        # transformers writes its own release and whatever was set on the live objects; the recorded configuration
        # does not change from one process to the next.
        (base / "config.json").write_bytes(canonical_json(config.base_config))
        (base / "generation_config.json").unlink(missing_ok=True)
        if config.generation_config is not None:
            (base / "generation_config.json").write_bytes(canonical_json(config.generation_config))

    card = model_card(config, checkpoint.state, checkpoint.source)
    with staged_folder(target) as stage:
        write_checkpoint(stage, checkpoint, card, write_others)
        keep_foreign_files(target, stage)


def save_unserved(target: Path, checkpoint: Checkpoint, base: Any, processor: Any) -> None:
    """As `ClamuModel.save_pretrained`, of a model that was only built: no weight is switched, no memory taken.

    Args:
        target (`Path`): the folder.
        checkpoint (`Checkpoint`): what is merged.
        base (`transformers.PreTrainedModel`): holding the base weights, without an adapter inside.
        processor (*optional*): tokenizer or image processor to save with it.

    Raises:
        OSError: if something cannot be written; then the folder is as it was.
    """
    with without_report():
        save_checkpoint(target, checkpoint, processor, base.save_pretrained)
