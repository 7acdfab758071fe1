"""Bringing a merged model to its folder, whether it is served or was only built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_clamu.base_models.adapters.export import plain_model
from hf_clamu.base_models.library_calls import suppress_load_report
from hf_clamu.base_models.processors import save_processor
from hf_clamu.base_models.saved import require_base
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.files.shards import reshard
from hf_clamu.checkpoint.files.written import WrittenFiles
from hf_clamu.checkpoint.layout import (
    BASE_FOLDER,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    LEDGER_NAME,
    WEIGHTS_NAME,
    is_ours,
)
from hf_clamu.checkpoint.ledger import ledger_digest, listed_files, read_json, require_sealed
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.checkpoint.writer import write_checkpoint
from hf_clamu.errors import CheckpointFormatError, SaveConflictError
from hf_clamu.exact import canonical_json
from hf_clamu.storage.replace import require_replaceable, staged_folder

__all__ = ["SavePlace", "save_checkpoint", "save_plain", "save_unserved"]

# Bytes, more than any model has.
_ONE_FILE = 2**62


@dataclass(frozen=True, kw_only=True)
class SavePlace:
    """A folder that a model may be saved to; `checked` looks at what is there.

    Args:
        folder (`Path`): the folder. Files of others in it are kept.
        known (`str`, *optional*): the digest of the ledger that was last seen there.
        overwrite (`bool`, *optional*): `True` replaces any model, `False` none but the same; by default one that is
            known, or any if none is.
        listed (*frozenset* of `str`): files of the model that is there; a processor may have names of its own.
    """

    folder: Path
    known: str | None
    overwrite: bool | None
    listed: frozenset[str]

    @classmethod
    def checked(
        cls, folder: Path, checkpoint: Checkpoint, *, known: str | None = None, overwrite: bool | None = None
    ) -> SavePlace:
        """Check that a save undoes nothing that something else saved, before anything is written.

        Args:
            folder (`Path`): the folder.
            checkpoint (`Checkpoint`): what is to be saved.
            known (`str`, *optional*): as above.
            overwrite (`bool`, *optional*): as above.

        Raises:
            SaveConflictError: if another model is there, which may not be replaced.
            FileExistsError: if the folder holds files but no ClAMU model.
            OSError: if nothing can be written there.
        """
        require_replaceable(folder)
        found = _ledger_at(folder)
        place = cls(folder=folder, known=known, overwrite=overwrite, listed=_listed(folder, found, known))
        if place.forbids(found) and not _holds(folder, checkpoint):
            raise place.conflict()
        return place

    def forbids(self, ledger: Mapping[str, Any] | None) -> bool:
        """Whether a model with this ledger, found in the folder, may not be replaced by another one."""
        if ledger is None or self.overwrite:
            return False
        return self.overwrite is False or (self.known is not None and ledger.get("digest") != self.known)

    def guard(self, stage: Path) -> None:
        """Check once more, just before a new folder comes to its place: writing takes a while."""
        found = _ledger_at(self.folder)
        if found is not None and self.forbids(found) and found.get("digest") != ledger_digest(stage):
            raise self.conflict()

    def conflict(self) -> SaveConflictError:
        """Return the error for another model at this place."""
        return SaveConflictError(
            f"{self.folder} holds another state than the one that this model was loaded from or last saved as there: "
            "something else was saved in between, and saving would undo it. Nothing was overwritten. Load it again "
            "and repeat the request, save to another folder, or replace it with overwrite=True (`clamu train "
            "--overwrite`)."
        )


def save_checkpoint(
    place: SavePlace, checkpoint: Checkpoint, processor: Any, write_base: Callable[[Path, int], object]
) -> str:
    """Write a merged model; an existing one at this place is replaced as a whole or not at all.

    Args:
        place (`SavePlace`): where to.
        checkpoint (`Checkpoint`): what is merged.
        processor (*optional*): tokenizer or image processor to save with it.
        write_base (*callable*): writes the base model into a folder, in shards of so many bytes at most, if it goes
            with the merged one.

    Returns:
        `str`: the digest of the ledger that is there now.

    Raises:
        SaveConflictError: if another model came there meanwhile, which may not be replaced; it was not touched.
        WeightsChangedError: if the base model that was to be written is not the one that was merged into.
        OSError: if something cannot be written; then the folder is as it was.
    """
    with (
        staged_folder(place.folder, lambda name: is_ours(name) or name in place.listed, place.guard) as stage,
        WrittenFiles() as written,
    ):
        if processor is not None:
            save_processor(processor, stage)
        values = None
        if checkpoint.base.embedded:
            write_base(stage / BASE_FOLDER, checkpoint.max_shard_size)
            written.begin(stage)
            values = _finish_base(stage / BASE_FOLDER, checkpoint)
        return write_checkpoint(stage, checkpoint, written, values)


def _finish_base(folder: Path, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Prove that a base model that was just written loads as the one that was merged into; write its settings.

    Returns:
        *dict* of `str` to `bytes`: the SHA-256 of the values of each of its weights.
    """
    config = checkpoint.config
    with suppress_load_report():
        values = require_base(folder, checkpoint)
    # transformers writes its own release and whatever was set on the live objects; the recorded configuration does not
    # change from one process to the next.
    (folder / CONFIG_NAME).write_bytes(canonical_json(config.base_config))
    (folder / GENERATION_CONFIG_NAME).unlink(missing_ok=True)
    if config.generation_config is not None:
        (folder / GENERATION_CONFIG_NAME).write_bytes(canonical_json(config.generation_config))
    return values


def _ledger_at(folder: Path) -> dict[str, Any] | None:
    """Return the ledger at a place, an empty one if it is damaged; None if nothing is there.

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
        return read_json(folder / LEDGER_NAME) if visible else None
    except CheckpointFormatError:
        return {}


def _listed(folder: Path, ledger: Mapping[str, Any] | None, known: str | None) -> frozenset[str]:
    """Return the files that a ledger lists, if it was not changed since it was written."""
    try:
        if ledger is not None and ledger.get("digest") != known:  # what is known was checked when it was read
            require_sealed(folder / LEDGER_NAME, ledger)
        return frozenset(() if ledger is None else listed_files(folder, ledger))
    except CheckpointFormatError:
        return frozenset()


def _holds(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder holds this very state."""
    try:
        return read_checkpoint(folder).state_digest == checkpoint.state_digest
    except CheckpointFormatError:
        return False


def save_unserved(
    target: Path, checkpoint: Checkpoint, base: Any, processor: Any, *, overwrite: bool | None = None
) -> None:
    """As `ClamuModel.save_pretrained`, of a model that was only built: no weight is switched, no memory taken.

    Args:
        target (`Path`): the folder.
        checkpoint (`Checkpoint`): what is merged.
        base (`transformers.PreTrainedModel`): holding the base weights, without an adapter inside.
        processor (*optional*): tokenizer or image processor to save with it.
        overwrite (`bool`, *optional*): as in `SavePlace`.

    Raises:
        SaveConflictError: if another model is there, and `overwrite` is `False`.
        OSError: if something cannot be written; then the folder is as it was.
    """
    with suppress_load_report():
        place = SavePlace.checked(target, checkpoint, overwrite=overwrite)
        write_base = partial(save_plain, base, type(base), has_adapter=False, merge=False)
        save_checkpoint(place, checkpoint, processor, write_base)


def save_plain(
    model: Any, plain_class: Any, folder: Path, max_shard_size: int, *, has_adapter: bool, merge: bool
) -> None:
    """Write the live weights as a plain transformers checkpoint.

    Args:
        model (`transformers.PreTrainedModel`): the live model.
        plain_class (`type`): of the checkpoint.
        folder (`Path`): of the checkpoint.
        max_shard_size (`int`): bytes of a file of weights at most.
        has_adapter (`bool`): the model has an adapter inside.
        merge (`bool`): merge the adapter into the weights; otherwise leave it out.
    """
    # The shards of transformers depend on the storage that the tensors lie in, which differs from process to process.
    options = {"max_shard_size": _ONE_FILE}
    with suppress_load_report():
        if has_adapter:
            plain_model(model, plain_class, merge=merge).save_pretrained(folder, **options)
        else:
            plain_class.save_pretrained(model, folder, **options)
    reshard(folder / WEIGHTS_NAME, max_shard_size)
