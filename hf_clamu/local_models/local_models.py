"""Local models that were finetuned elsewhere, as a source of task vectors.

They are read one after the other, tensor by tensor, into buffers that all of them share: memory is one vector,
whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hf_clamu.checkpoint.layout import is_processor_file
from hf_clamu.errors import CheckpointFormatError, FixedPointOverflowError, IncompatibleBaseError, TaskDataError
from hf_clamu.exact import FixedPoint, TaskVector, digest_json, encode_vector, sha256_file
from hf_clamu.hub.pull import download, is_repo_id
from hf_clamu.local_models.adapter_checkpoint import AdapterCheckpoint, is_adapter
from hf_clamu.local_models.likeness import other_processor
from hf_clamu.local_models.model_names import ModelNames
from hf_clamu.local_models.plain_checkpoint import PlainCheckpoint, open_tensors
from hf_clamu.training import Workspace

__all__ = ["LocalModels", "require_named"]


def require_named(checkpoints: Any) -> None:
    """Check that checkpoints are given by the ids of their tasks.

    Raises:
        TaskDataError: if they are not.
    """
    if not isinstance(checkpoints, Mapping):
        raise TaskDataError(
            f"checkpoints must be a mapping of task ids to folders or Hub ids, got {type(checkpoints).__name__}."
        )


class LocalModels:
    """Local models by task id; a `LocalVectors`.

    Args:
        folders (*mapping* of `str` to `Path`): each with a plain transformers checkpoint.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._checkpoints: dict[str, PlainCheckpoint | AdapterCheckpoint] = {
            task_id: _checkpoint(task_id, folders[task_id]) for task_id in sorted(folders)
        }
        self._fingerprints: dict[str, str] = {}
        self._names: tuple[Any, ModelNames] | None = None
        # What the model calls the tensors of each checkpoint, and of which state of its files that was found.
        self._own_names: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    @classmethod
    def find(
        cls, checkpoints: Mapping[str, Any], *, token: str | bool | None = None, cache_dir: Any = None
    ) -> LocalModels:
        """Find local models on the disk or on the Hub.

        Args:
            checkpoints (*mapping* of `str` to `str` or `Path`): task id to a folder, or to a Hub id.
            token (`str` or `bool`, *optional*): for private repos.
            cache_dir (*optional*): of huggingface_hub.

        Raises:
            TaskDataError: if one is no folder.
            HubError: if one cannot be downloaded.
        """
        require_named(checkpoints)
        folders = {}
        for task_id, where in checkpoints.items():
            if not isinstance(task_id, str) or not task_id:
                raise TaskDataError(f"A task id must be a string that is not empty, found {task_id!r}.")
            if not isinstance(where, (str, Path)):
                raise TaskDataError(f"Task {task_id!r}: expected a folder or Hub id, got {type(where).__name__}.")
            folder = Path(where)
            if is_repo_id(str(where)) and not folder.parent.is_dir():  # a misspelt folder is not for the Hub
                folder, _ = download(str(where), token=token, cache_dir=cache_dir)
            if not folder.is_dir():
                raise TaskDataError(
                    f"Task {task_id!r}: there is no folder {folder}. Give the folder of a checkpoint that "
                    "transformers' save_pretrained wrote, or a Hub id (org/name)."
                )
            folders[task_id] = folder
        return cls(folders)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._checkpoints

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, task_id: str) -> PlainCheckpoint | AdapterCheckpoint:
        return self._checkpoints[task_id]

    def select(self, task_ids: Iterable[str]) -> LocalModels:
        """Return those of these tasks that are here."""
        return LocalModels({one: self[one].folder for one in task_ids if one in self})

    def fingerprint(self, task_id: str) -> str:
        """Return a digest of which weight files a checkpoint has, as the file system knows them.

        Nothing can write to a file or replace it without a new time of change (ctime). A file that was only moved
        counts as another one, and is read again.
        """
        if task_id not in self._fingerprints:
            self._fingerprints[task_id] = _fingerprint(self[task_id])
        return self._fingerprints[task_id]

    def is_computed(self, task_id: str) -> bool:
        """Whether libraries and device may show in the bits of a task's vector."""
        found = self[task_id]
        return isinstance(found, AdapterCheckpoint) and found.is_computed

    def release(self) -> None:
        """Give back the memory that vectors are read to; the last vector is gone."""
        self._buffers.clear()

    def check(self, model: Any, kind: str, processor: Any = None) -> None:
        """Check by their headers that all local models are of a base model's kind, before any of them is read.

        Args:
            model (`transformers.PreTrainedModel`): the base model.
            kind (`str`): of the tasks.
            processor (*tokenizer or image processor*, *optional*): the base model's; without it, those of the local
                models have to agree with each other.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            IncompatibleBaseError: if architecture, settings, names, shapes, types or processors differ.
        """
        for task_id in self:
            self._checked(task_id, model)
        equal: set[str] = set()
        for task_id in self:
            files = _processor_digest(self[task_id].folder)
            found = None if files in equal else self[task_id].processor(kind)
            if found is None:
                continue
            equal.add(files)
            difference = None if processor is None else other_processor(processor, found)
            if difference is not None:
                raise IncompatibleBaseError(
                    f"Task {task_id!r}: the tokenizer or image processor in {self[task_id].folder} {difference}. Its "
                    "weights mean other inputs: merge models that were finetuned from this base with its processor, "
                    "or take the processor's files out of the folder if it was never used."
                )
            processor = found if processor is None else processor

    def _names_of(self, model: Any) -> ModelNames:
        if self._names is None or self._names[0] is not model:
            self._names = (model, ModelNames.of(model))
            self._own_names.clear()
        return self._names[1]

    def _checked(self, task_id: str, model: Any) -> dict[str, str]:
        """Check a checkpoint unless its files are as they were when it was checked; return the model's own names."""
        names, state = self._names_of(model), None
        with suppress(OSError, CheckpointFormatError):  # the check says it better
            state = _fingerprint(self[task_id])
        known_state, own_names = self._own_names.get(task_id, (None, {}))
        if state is None or known_state != state:
            own_names = self[task_id].check(names, type(model).__name__, model.config.to_dict())
            self._own_names[task_id] = (state, own_names)
        return own_names

    @torch.no_grad()
    def read(self, task_id: str, workspace: Workspace, codec: FixedPoint) -> TaskVector:
        """Return a task's vector on the integer grid; the next call overwrites it.

        Args:
            task_id (`str`): the task.
            workspace (`Workspace`): the base model.
            codec (`FixedPoint`): the integer grid.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            FixedPointOverflowError: if a value is NaN, infinite or too far away; the message names the task.
            IncompatibleBaseError: if names or shapes differ, or a buffer does.
        """
        checkpoint, names = self[task_id], self._names_of(workspace.model)
        if isinstance(checkpoint, AdapterCheckpoint):
            return self._read_adapter(checkpoint, names, workspace, codec)
        own_names = self._checked(task_id, workspace.model)
        chosen = _one_of_each(names, own_names)

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            for path, found in checkpoint.by_file:
                with open_tensors(path) as file:
                    for name in found:
                        own = own_names.get(name, "")
                        if own in names.buffers:
                            _require_buffer(task_id, path, name, file.get_tensor(name), names.buffers[own])
                        elif name in chosen and chosen[name] in workspace.theta_0:
                            yield chosen[name], file.get_tensor(name)

        try:
            vector = encode_vector(codec, weights(), workspace.theta_0, buffers=self._buffers)
        except FixedPointOverflowError as error:
            path = next(checkpoint.files[name] for name, own in chosen.items() if own == error.parameter)
            raise FixedPointOverflowError(f"Task {task_id!r}, {path}: {error}") from None
        _require_ties(checkpoint, names, own_names, chosen)
        return vector

    def _read_adapter(
        self, checkpoint: AdapterCheckpoint, names: ModelNames, workspace: Workspace, codec: FixedPoint
    ) -> TaskVector:
        workspace.reset()  # what some adapters change depends on the weights that they are put around
        changed = checkpoint.weights(names)
        weights = {name: changed.get(name, theta) for name, theta in workspace.theta_0.items()}
        try:
            return encode_vector(codec, weights.items(), workspace.theta_0, buffers=self._buffers)
        except FixedPointOverflowError as error:
            raise FixedPointOverflowError(f"Task {checkpoint.task_id!r}, {checkpoint.folder}: {error}") from None


def _checkpoint(task_id: str, folder: Path) -> PlainCheckpoint | AdapterCheckpoint:
    return AdapterCheckpoint(task_id, folder) if is_adapter(folder) else PlainCheckpoint(task_id, folder)


def _fingerprint(checkpoint: PlainCheckpoint | AdapterCheckpoint) -> str:
    states = [(path.name, path.stat()) for path in sorted(set(checkpoint.files.values()))]
    return digest_json([[name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in states])


def _processor_digest(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and is_processor_file(path.name))
    return digest_json([[name, sha256_file(folder / name)] for name in names])


def _require_buffer(task_id: str, path: Path, name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    own = expected.cpu()
    if found.shape != own.shape or not torch.equal(found.to(own.dtype), own):
        raise IncompatibleBaseError(
            f"Task {task_id!r}: {path} has other values in {name!r} than the base model. It is a buffer, such as the "
            "running statistics of batch normalisation: no parameter, so it cannot be merged. Finetune with these "
            "layers in evaluation mode."
        )


def _one_of_each(names: ModelNames, own_names: Mapping[str, str]) -> dict[str, str]:
    """Return which tensors of a checkpoint are read, and the parameters that they are; of tied ones one."""
    found: dict[str, str] = {}
    for name, own in sorted(own_names.items(), key=lambda item: (item[1] in names.aliases, item)):
        if names.first_name(own) in names.parameters and names.first_name(own) not in found:
            found[names.first_name(own)] = name
    return {name: own for own, name in found.items()}


def _require_ties(
    checkpoint: PlainCheckpoint, names: ModelNames, own_names: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    """Check that what the model ties is one tensor in a checkpoint, or equal ones."""
    first = {own: name for name, own in chosen.items()}
    for name, own in own_names.items():
        if own not in names.aliases or name in chosen:
            continue
        other = first[names.first_name(own)]
        with open_tensors(checkpoint.files[other]) as one, open_tensors(checkpoint.files[name]) as two:
            same = torch.equal(one.get_tensor(other), two.get_tensor(name))
        if not same:
            raise IncompatibleBaseError(
                f"Task {checkpoint.task_id!r}: {checkpoint.files[name]} has {name!r} with other values than "
                f"{other!r}, but the base model ties them. Merge checkpoints whose weights are tied as the base "
                "model's are."
            )
