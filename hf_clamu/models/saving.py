"""Bringing a merged model to its folder, whether it is served or was only built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_clamu.base_models.adapters.export import plain_model
from hf_clamu.base_models.library_calls import suppress_load_report
from hf_clamu.base_models.processors import save_processor
from hf_clamu.base_models.saved import require_base
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.layout import BASE_FOLDER, CONFIG_NAME, GENERATION_CONFIG_NAME, LEDGER_NAME, is_ours
from hf_clamu.checkpoint.ledger import ledger_digest, listed_files, read_ledger
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.checkpoint.writer import write_checkpoint
from hf_clamu.errors import CheckpointFormatError, SaveConflictError
from hf_clamu.exact import canonical_json
from hf_clamu.storage.replace import require_replaceable, staged_folder

__all__ = ["require_unchanged", "save_checkpoint", "save_plain", "save_unserved"]


def save_checkpoint(
    target: Path,
    checkpoint: Checkpoint,
    processor: Any,
    write_base: Callable[[Path], object],
    *,
    known: str | None = None,
    overwrite: bool | None = None,
) -> str:
    """Write a merged model; an existing one at this place is replaced as a whole or not at all.

    Args:
        target (`Path`): the folder. Files of others in it are kept.
        checkpoint (`Checkpoint`): what is merged.
        processor (*optional*): tokenizer or image processor to save with it.
        write_base (*callable*): writes the base model into a folder, if it goes with the merged one.
        known (`str`, *optional*): the digest of the ledger that was last seen at this place.
        overwrite (`bool`, *optional*): `True` replaces any model, `False` none but the same; by default one that is
            known, or any if none is.

    Returns:
        `str`: the digest of the ledger that is there now.

    Raises:
        SaveConflictError: if another model is there, which may not be replaced; it was not touched.
        WeightsChangedError: if the base model that was to be written is not the one that was merged into.
        OSError: if something cannot be written; then the folder is as it was.
    """
    config = checkpoint.config

    def write_others(folder: Path) -> None:
        if processor is not None:
            save_processor(processor, folder)
        if not checkpoint.base.embedded:
            return
        base = folder / BASE_FOLDER
        write_base(base)
        with suppress_load_report():
            require_base(base, checkpoint)
        # transformers writes its own release and whatever was set on the live objects; the recorded configuration
        # does not change from one process to the next.
        (base / CONFIG_NAME).write_bytes(canonical_json(config.base_config))
        (base / GENERATION_CONFIG_NAME).unlink(missing_ok=True)
        if config.generation_config is not None:
            (base / GENERATION_CONFIG_NAME).write_bytes(canonical_json(config.generation_config))

    def guard(stage: Path) -> None:
        if _is_other(target, known, overwrite) and _ledger_at(target) != ledger_digest(stage):
            raise _conflict(target)

    require_replaceable(target)
    require_unchanged(target, checkpoint, known, overwrite)  # first: writing takes a while
    listed = _listed_at(target)
    with staged_folder(target, lambda name: is_ours(name) or name in listed, guard) as stage:
        write_others(stage)
        return write_checkpoint(stage, checkpoint)


def require_unchanged(target: Path, checkpoint: Checkpoint, known: str | None, overwrite: bool | None) -> None:
    """Check that a save undoes nothing that something else saved.

    Args:
        target (`Path`): the folder to save to.
        checkpoint (`Checkpoint`): what is to be saved.
        known (`str`, *optional*): the digest of the ledger that was last seen there.
        overwrite (`bool`, *optional*): as in `save_checkpoint`.

    Raises:
        SaveConflictError: if another model is there, which may not be replaced.
        FileExistsError: if the folder holds files but no ClAMU model.
    """
    if not _is_other(target, known, overwrite):
        return
    try:
        is_same = read_checkpoint(target).state_digest == checkpoint.state_digest
    except CheckpointFormatError:
        is_same = False
    if not is_same:
        raise _conflict(target)


def _is_other(target: Path, known: str | None, overwrite: bool | None) -> bool:
    """Whether there is a model at a place that may not be replaced, unless it is the one to be saved."""
    found = _ledger_at(target)
    if found is None or overwrite:
        return False
    return overwrite is False or (known is not None and found != known)


def _conflict(target: Path) -> SaveConflictError:
    return SaveConflictError(
        f"{target} holds another state than the one that this model was loaded from or last saved as there: something "
        "else was saved in between, and saving would undo it. Nothing was overwritten. Load it again and repeat the "
        "request, save to another folder, or replace it with overwrite=True (`clamu train --overwrite`)."
    )


def _ledger_at(folder: Path) -> str | None:
    """Return the digest of the ledger at a place; None if nothing is there.

    Raises:
        FileExistsError: if the folder holds files but no ClAMU model: it is not ours to replace.
    """
    if not folder.is_dir():
        return None
    visible = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if visible and not (folder / LEDGER_NAME).exists():
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(sorted(visible)[:3])}) and no ClAMU model. Give a new folder."
        )
    try:
        return ledger_digest(folder) if visible else None
    except CheckpointFormatError:
        return "damaged"


def _listed_at(folder: Path) -> set[str]:
    """Return the files of the model at a place: processors may have some under names of their own."""
    try:
        return set(listed_files(folder, read_ledger(folder)))
    except CheckpointFormatError:
        return set()


def save_unserved(
    target: Path, checkpoint: Checkpoint, base: Any, processor: Any, *, overwrite: bool | None = None
) -> None:
    """As `ClamuModel.save_pretrained`, of a model that was only built: no weight is switched, no memory taken.

    Args:
        target (`Path`): the folder.
        checkpoint (`Checkpoint`): what is merged.
        base (`transformers.PreTrainedModel`): holding the base weights, without an adapter inside.
        processor (*optional*): tokenizer or image processor to save with it.
        overwrite (`bool`, *optional*): as in `save_checkpoint`.

    Raises:
        SaveConflictError: if another model is there, and `overwrite` is `False`.
        OSError: if something cannot be written; then the folder is as it was.
    """
    with suppress_load_report():
        save_checkpoint(target, checkpoint, processor, base.save_pretrained, overwrite=overwrite)


def save_plain(model: Any, plain_class: Any, folder: Path, *, has_adapter: bool, merge: bool) -> None:
    """Write the live weights as a plain transformers checkpoint.

    Args:
        model (`transformers.PreTrainedModel`): the live model.
        plain_class (`type`): of the checkpoint.
        folder (`Path`): of the checkpoint.
        has_adapter (`bool`): the model has an adapter inside.
        merge (`bool`): merge the adapter into the weights; otherwise leave it out.
    """
    with suppress_load_report():
        if has_adapter:
            plain_model(model, plain_class, merge=merge).save_pretrained(folder)
        else:
            plain_class.save_pretrained(model, folder)
