"""Bringing a merged model to its folder, whether it is served or was only built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_clamu.errors import CheckpointFormatError
from hf_clamu.exact import canonical_json
from hf_clamu.models.card import model_card
from hf_clamu.models.checkpoint import Checkpoint, write_checkpoint
from hf_clamu.models.layout import BASE_FOLDER, LEDGER_NAME, is_ours
from hf_clamu.models.ledger import listed_files, read_ledger
from hf_clamu.models.processors import save_processor
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
    try:
        # Processors may have files under names of their own.
        listed = set(listed_files(old, read_ledger(old / LEDGER_NAME))) if visible else set()
    except CheckpointFormatError:
        listed = set()
    _carry_over(old, new, "", listed)


def _carry_over(old: Path, new: Path, inside: str, listed: set[str]) -> None:
    for path in (old / inside).iterdir():
        name = path.relative_to(old).as_posix()
        target = new / name
        if is_ours(name) or name in listed:
            continue
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True, parents=True)
            _carry_over(old, new, name, listed)
            shutil.copystat(path, target)
            if not any(target.iterdir()) and any(path.iterdir()):
                target.rmdir()  # nothing of others was in there
        elif not target.exists():
            shutil.copy2(path, target, follow_symlinks=False)
