"""The files of a live model: a saved model, a commit on the Hub, a plain checkpoint for other tools."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hf_clamu.base_models.adapters.export import require_whole
from hf_clamu.base_models.processors import save_processor
from hf_clamu.checkpoint.files.shards import reshard, shard_bytes
from hf_clamu.checkpoint.layout import BASE_FOLDER, LEDGER_NAME, WEIGHTS_NAME
from hf_clamu.errors import WeightsChangedError
from hf_clamu.hub.push import PushResult
from hf_clamu.models.exports.adapters import AdapterExport, export_adapters, plain_base_state, write_live_adapter
from hf_clamu.models.exports.proof import require_same_adapter, require_same_checkpoint
from hf_clamu.models.keeping import rows_kept
from hf_clamu.models.mixins.serving import ServingMixin, holds_model
from hf_clamu.models.pushing import PushOptions, push
from hf_clamu.models.saving import SavePlace, save_checkpoint, save_plain
from hf_clamu.models.state import Origin
from hf_clamu.signing import KeySource, load_signing_key
from hf_clamu.storage.replace import staged_folder
from hf_clamu.training import Workers

__all__ = ["FilesMixin"]

# What transformers' tools hand to every `save_pretrained`, and what decides nothing here: the weights are those that
# are merged, in files of our own.
_PUSH_OPTIONS = ("commit_message", "create_pr", "private", "repo_id", "revision", "token")
_IGNORED_SAVE_OPTIONS = ("safe_serialization", "save_function", "save_peft_format", "state_dict")


class FilesMixin(ServingMixin):
    """Saving, pushing and exporting."""

    # The class that the model had before tasks were merged into it; `clamu_class` sets it.
    _plain_class: ClassVar[Any]

    @holds_model
    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str | None = None, **kwargs: Any
    ) -> None:
        """Save the merged model; an existing one at this place is replaced as a whole or not at all.

        The same files are written whatever cluster is selected. Files of others in the folder are kept. Where several
        processes work on a run, the main one writes. If the model has a snapshot (see `ClamuTrainer`), there is one
        beside the new folder, too.

        Args:
            save_directory (`str` or `Path`): the folder.
            max_shard_size (`int` or `str`, *optional*): of a file of weights, such as `"5GB"`. Larger ones are written
                in shards with the Hub's index file. The model keeps it for later saves; 50 GB at first.
            kwargs: of transformers' `save_pretrained`. `is_main_process=False` writes nothing; `push_to_hub=True`
                pushes afterwards, with `repo_id` (by default the folder's name) and the other options of
                `push_to_hub`. `overwrite=True` replaces any model that is in the folder, `overwrite=False` none; by
                default one is replaced unless this model knows the folder and it was changed since.

        Raises:
            RecipeError: if `max_shard_size` is no size.
            SaveConflictError: if something else was saved there since this model was loaded from it or saved to it;
                nothing is overwritten.
            SnapshotError: if the model has a snapshot, and rows for it or its key are missing; nothing is written.
            WeightsChangedError: if the live weights were changed since the last switch. They are no merged model
                then, and the base class's own `save_pretrained(model, folder)` saves them as a plain one. So they are
                saved where transformers' `Trainer` asks for it, unless a merged model is at that place.
        """
        keep_origin, overwrite = kwargs.pop("keep_origin", False), kwargs.pop("overwrite", None)
        is_main_process, push = kwargs.pop("is_main_process", True), kwargs.pop("push_to_hub", False)
        push_options = {key: kwargs.pop(key) for key in _PUSH_OPTIONS if key in kwargs}
        by_trainer = "state_dict" in kwargs  # which transformers' Trainer gives and nobody else needs to
        odd = sorted(key for key, value in kwargs.items() if key not in _IGNORED_SAVE_OPTIONS and value is not None)
        if odd:
            raise TypeError(f"ClamuModel.save_pretrained does not know the option {odd[0]!r}.")
        if not is_main_process or (not keep_origin and not Workers.current().is_main):
            return
        target, merged, context = Path(save_directory), self.merged, self._live.context
        size = None if max_shard_size is None else shard_bytes(max_shard_size)
        checkpoint = merged.checkpoint.in_shards(size)
        try:
            merged.switch.check(self._parameters_by_name())
        except WeightsChangedError:
            if not by_trainer or not merged.switch.is_consistent or (target / LEDGER_NAME).exists():
                raise
            self._save_plain(target, merge=True)
            return
        origin = context.origin or Origin(folder=target)
        known = origin.ledgers.get(target.resolve())
        place = SavePlace.checked(target, checkpoint, known=known, overwrite=overwrite)
        parts = (checkpoint, context.processor, self._write_base)
        if keep_origin:
            save_checkpoint(place, *parts)
        else:
            with rows_kept(self._live, target):
                self._live.log.note_target(target)
                context.origin = origin.saved_to(target, save_checkpoint(place, *parts))
            self._live.log.finalize()
        self._live.merged = replace(merged, checkpoint=checkpoint)
        if push:
            self.push_to_hub(**{"repo_id": target.name, **push_options})

    @holds_model
    def push_to_hub(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        erase_history: bool = False,
        max_shard_size: int | str | None = None,
        signing_key: KeySource | None = None,
        receipt_dir: str | os.PathLike[str] | None = None,
    ) -> PushResult:
        """Push the merged model as one commit; on the Hub, too, there is the old state or the new one.

        Args:
            repo_id (`str`, *optional*): by default the repo that the model came from.
            private (`bool`, *optional*): for a new repo.
            revision (`str`, *optional*): the branch; `"main"` by default.
            commit_message (`str`, *optional*): by default says how many tasks are merged, and names none.
            create_pr (`bool`): open a pull request instead.
            token (`str` or `bool`, *optional*): by default the one that the model was loaded with.
            erase_history (`bool`): then remove everything but the new state, as far as the Hub allows (see
                `erase_history`); what still answers is in the result and in the last receipt. Cannot be undone.
            max_shard_size (`int` or `str`, *optional*): as in `save_pretrained`.
            signing_key (`str`, `Path` or `bytes`, *optional*): PEM file of a private key that signs the model and its
                receipts, see `clamu sign`. Without it a signature that the model has is taken along, if it fits.
            receipt_dir (`str` or `Path`, *optional*): folder of the receipts that are signed; by default where the
                last request wrote its own.

        Returns:
            `PushResult`: the commit, and with `erase_history` the report.

        Raises:
            HubConflictError: if something was pushed since this model was loaded; nothing is overwritten.
            HubError: if the Hub refuses or cannot be reached; the old state goes on serving.
        """
        options = PushOptions(
            repo_id=repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
            erase_history=erase_history,
            signing_key=None if signing_key is None else load_signing_key(signing_key),
            receipt_dir=None if receipt_dir is None else Path(receipt_dir),
        )
        return push(self._live, options, partial(self._write_copy, max_shard_size=max_shard_size))

    @holds_model
    def export(
        self,
        save_directory: str | os.PathLike[str],
        *,
        cluster: int | str | None = None,
        task: str | None = None,
        merge: bool = True,
    ) -> None:
        """Write a plain transformers checkpoint that any tool loads without hf_clamu.

        Args:
            save_directory (`str` or `Path`): a new or empty folder.
            cluster (`str` or `int`, *optional*): the cluster to write, by name or number; by default the global model.
            task (`str`, *optional*): the cluster that serves this task.
            merge (`bool`): where the model has a PEFT adapter inside, merge it into the base weights; `False` writes
                the adapter alone, as PEFT loads it onto the base model.

        Raises:
            ExactnessError: if what was written, loaded as others will load it, does not answer as the live model; it
                is removed then.
            RecipeError: if PEFT cannot load the adapter without hf_clamu, or it is to be merged into a quantised base.
        """
        space = self.merged.space
        require_whole(self, merge=merge)
        if not merge and space is None:
            raise ValueError("merge=False writes a PEFT adapter, but this model has none inside: leave it out.")
        target = _new_folder(save_directory)
        with self.serving(cluster, task=task), staged_folder(target) as stage:
            if space is not None and not merge:
                write_live_adapter(self, space, stage)
                with self.held():
                    base_state = plain_base_state(self, self._plain_class)
                require_same_adapter(self, self._plain_class, base_state, stage)
            else:
                self._save_plain(stage, merge=True)
                require_same_checkpoint(self, self._plain_class, stage, same_weights=space is None)
            processor = self._live.context.processor
            if processor is not None:
                save_processor(processor, stage)

    @holds_model
    def export_adapters(
        self,
        save_directory: str | os.PathLike[str],
        *,
        clusters: Iterable[int | str] | None = None,
        rank: int | None = None,
        format: str | None = None,
    ) -> AdapterExport:
        """Write the global model and clusters as plain PEFT adapters, for engines that serve many on one base model.

        Each comes into a folder of its own (`global`, `cluster_000`, …) as PEFT loads it without hf_clamu; beside them
        are `routes.json`, which says what answers for which task, the tokenizer, and the base model if this model
        embeds it. An adapter that is inside this model is written bit for bit.

        Args:
            save_directory (`str` or `Path`): a new or empty folder.
            clusters (*iterable* of `str` or `int`, *optional*): names or numbers; by default all.
            rank (`int`, *optional*): where clusters are whole weights, approximate each by a LoRA adapter of this
                rank. Linear layers are approximated and a classifier's head is kept; norms, embeddings and biases
                stay the base model's.
            format (`str`, *optional*): `"lora"` writes no other type of adapter, as engines take no other; by default
                what is inside the model.

        Returns:
            `AdapterExport`: what was written, with what approximations lose.

        Raises:
            ClusterNotFoundError: if there is no such cluster.
            ExactnessError: if the first adapter, loaded by PEFT, does not answer as the live model; nothing stays.
            RecipeError: if clusters are no adapters and no rank is given, or PEFT cannot load them without hf_clamu.
        """
        target = _new_folder(save_directory)
        state = self.merged.checkpoint.state
        chosen = None if clusters is None else [state.find_cluster(one) for one in clusters]
        size = self.merged.checkpoint.max_shard_size
        with self.held(), staged_folder(target) as stage:
            return export_adapters(
                self,
                self._plain_class,
                stage,
                clusters=chosen,
                rank=rank,
                kind=format,
                save_base=partial(self._write_base, max_shard_size=size),
            )

    # -- inside --------------------------------------------------------------------------------------------------

    def _write_copy(self, folder: Path, *, max_shard_size: int | str | None = None) -> None:
        """Save the merged model to a folder that is not its own."""
        self.save_pretrained(folder, max_shard_size=max_shard_size, keep_origin=True)

    def _write_base(self, folder: Path, max_shard_size: int) -> None:
        live: Any = self
        if live.dtype != self.merged.checkpoint.base.torch_dtype:
            self._copy_base(folder, max_shard_size)
            return
        with self.held():
            self.set_base()
            self._save_plain(folder, merge=False, max_shard_size=max_shard_size)

    def _copy_base(self, folder: Path, max_shard_size: int) -> None:
        """Take the embedded base model from where this model was loaded: the live weights were cast."""
        saved = self._live.context.folder
        if saved is None or not (saved / BASE_FOLDER).is_dir():
            raise WeightsChangedError(
                "The live weights were cast to another type and the saved model they came from is gone, so the base "
                "model cannot be written. Load it again without dtype=, then save."
            )
        shutil.copytree(saved / BASE_FOLDER, folder)
        reshard(folder / WEIGHTS_NAME, max_shard_size)

    def _save_plain(self, folder: Path, *, merge: bool, max_shard_size: int | None = None) -> None:
        save_plain(
            self,
            self._plain_class,
            folder,
            max_shard_size or self.merged.checkpoint.max_shard_size,
            has_adapter=self.merged.space is not None,
            merge=merge,
        )


def _new_folder(save_directory: str | os.PathLike[str]) -> Path:
    target = Path(save_directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there and not empty. Export to a new folder.")
    return target
