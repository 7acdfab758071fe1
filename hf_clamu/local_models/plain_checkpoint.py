"""A plain transformers checkpoint: which file holds which tensor, and whether all of them fit a base model.

Headers are read and no tensor is loaded; no code of a checkpoint runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.foreign import foreign_files, require_no_pointers
from hf_clamu.base_models.processors import saved_processor
from hf_clamu.checkpoint.layout import CONFIG_NAME, MASK_CONFIG_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError
from hf_clamu.local_models.likeness import other_setting
from hf_clamu.local_models.model_names import ModelNames
from hf_clamu.storage import opened_tensors

__all__ = ["PlainCheckpoint", "open_tensors"]

_FLOATS = ("F64", "F32", "F16", "BF16")


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Map a safetensors file while a block reads from it.

    Raises:
        CheckpointFormatError: if it is missing or damaged.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened_tensors(path))
        except FileNotFoundError:
            raise CheckpointFormatError(f"{path} is missing. Take an undamaged copy of the checkpoint.") from None
        except (OSError, ValueError) as error:
            raise CheckpointFormatError(
                f"{path} cannot be read as safetensors ({error}). Take an undamaged copy of the checkpoint."
            ) from error
        yield file


@dataclass(frozen=True)
class PlainCheckpoint:
    """A folder that transformers' `save_pretrained` wrote.

    Args:
        task_id (`str`): for messages.
        folder (`Path`): with `config.json` and safetensors files.
    """

    task_id: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as it is written.

        Raises:
            CheckpointFormatError: if there is none, or the folder does not hold a plain checkpoint.
        """
        path = self.folder / CONFIG_NAME
        if not path.is_file():
            raise CheckpointFormatError(
                f"Task {self.task_id!r}: {self.folder} has neither {CONFIG_NAME} nor {MASK_CONFIG_NAME}. Expected a "
                "checkpoint that save_pretrained of transformers wrote, or an adapter that PEFT's wrote."
            )
        values = read_json(path)
        if values.get("model_type") == "clamu":
            raise CheckpointFormatError(
                f"Task {self.task_id!r}: {self.folder} holds a merged ClAMU model and no local one. `clamu export` "
                "makes a plain checkpoint of it."
            )
        return values

    @property
    def architectures(self) -> list[str]:
        """The classes that the checkpoint says it is of."""
        found = self.config.get("architectures")
        return [str(one) for one in found] if isinstance(found, list) else []

    @cached_property
    def labels(self) -> list[str]:
        """The names of the labels, in the order of their numbers.

        Raises:
            CheckpointFormatError: if the configuration cannot be read.
        """
        import transformers

        with foreign_files(self._refused):
            config = transformers.AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            return [str(config.id2label[number]) for number in range(config.num_labels)]

    def _refused(self, cause: str) -> CheckpointFormatError:
        return CheckpointFormatError(f"Task {self.task_id!r}: {self.folder} cannot be read as a checkpoint: {cause}")

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor, by its name there.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
        """
        require_no_pointers(self.folder, self._refused)
        if (self.folder / WEIGHTS_NAME).is_file():
            with open_tensors(self.folder / WEIGHTS_NAME) as file:
                return dict.fromkeys(sorted(file.keys()), self.folder / WEIGHTS_NAME)
        if (self.folder / WEIGHTS_INDEX_NAME).is_file():
            return self._sharded()
        others = [path.name for path in sorted(self.folder.glob("*.bin"))]
        raise CheckpointFormatError(
            f"Task {self.task_id!r}: {self.folder} has neither {WEIGHTS_NAME} nor {WEIGHTS_INDEX_NAME}"
            + (f" (only {others[0]}, which can run code)" if others else "")
            + ". Save the checkpoint with transformers' save_pretrained."
        )

    def _sharded(self) -> dict[str, Path]:
        index = read_json(self.folder / WEIGHTS_INDEX_NAME).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise CheckpointFormatError(
                f"{self.folder / WEIGHTS_INDEX_NAME} has no weight_map. Take an undamaged copy."
            )
        for shard in sorted(set(index.values())):
            if Path(shard).name != shard:
                raise CheckpointFormatError(
                    f"{self.folder / WEIGHTS_INDEX_NAME} names {shard!r}, which is outside the folder."
                )
            with open_tensors(self.folder / shard) as file:
                present = set(file.keys())
            absent = sorted(name for name, other in index.items() if other == shard and name not in present)
            if absent:
                raise CheckpointFormatError(
                    f"{self.folder / shard} lacks {absent[0]!r}, which {WEIGHTS_INDEX_NAME} says is in it. Take an "
                    "undamaged copy."
                )
        return {name: self.folder / index[name] for name in sorted(index)}

    @property
    def by_file(self) -> list[tuple[Path, list[str]]]:
        """The names of the tensors in each file."""
        found: dict[Path, list[str]] = {}
        for name, path in self.files.items():
            found.setdefault(path, []).append(name)
        return sorted(found.items())

    def processor(self, kind: str) -> Any:
        """Return the tokenizer or image processor that was saved with the checkpoint, if one was.

        Args:
            kind (`str`): of the tasks.

        Raises:
            IncompatibleBaseError: if it cannot be loaded.
        """
        return saved_processor(self.folder, kind)

    def check(self, names: ModelNames, architecture: str, config: Mapping[str, Any]) -> dict[str, str]:
        """Check that the checkpoint is of a base model's kind, and return its `own_names`.

        Args:
            names (`ModelNames`): of the base model.
            architecture (`str`): its class.
            config (*mapping*): its configuration.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            IncompatibleBaseError: if architecture, names, shapes or types differ.
        """
        self._check_config(architecture, names.model.config, config)
        model_names = self.own_names(names)
        for path, stored in self.by_file:
            with open_tensors(path) as file:
                for name in stored:
                    expected = names.parameters.get(names.first_name(model_names.get(name, "")))
                    if expected is not None:
                        self._check_header(path, name, file.get_slice(name), expected)
        return model_names

    def _check_config(self, architecture: str, base: Any, config: Mapping[str, Any]) -> None:
        where = f"Task {self.task_id!r}: {self.folder / CONFIG_NAME}"
        kinds = self.architectures or ["model of no named class"]
        if architecture not in kinds:
            raise IncompatibleBaseError(
                f"{where} says that the checkpoint is a {kinds[0]}, but the base model is loaded as a {architecture}. "
                "Local models must be of one architecture, with the same head."
            )
        if self.config.get("model_type", base.model_type) != base.model_type:
            raise IncompatibleBaseError(
                f"{where} has model_type = {self.config['model_type']!r}, the base model has {base.model_type!r}. "
                "Merge models that were finetuned from this base."
            )
        with foreign_files(self._refused):
            stated = type(base).from_dict(dict(self.config)).to_dict()
        difference = other_setting(
            json.loads(json.dumps(stated, default=str)), json.loads(json.dumps(config, default=str))
        )
        if difference is not None:
            key, stored, expected = difference
            raise IncompatibleBaseError(
                f"{where} has {key} = {stored!r}, the base model has {expected!r}. Merge models that were finetuned "
                "from this base."
            )

    def _check_header(self, path: Path, name: str, found: Any, expected: torch.Tensor) -> None:
        shape = tuple(found.get_shape())
        if shape != tuple(expected.shape):
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {path} has {name!r} of shape {shape}, the base model's has "
                f"{tuple(expected.shape)}. Merge models that were finetuned from this base, with the same vocabulary "
                "and labels."
            )
        if found.get_dtype() not in _FLOATS:
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {path} has {name!r} as {found.get_dtype()}; weights must be float32, "
                "bfloat16, float16 or float64. Save the checkpoint without quantisation."
            )

    def own_names(self, names: ModelNames) -> dict[str, str]:
        """Return the model's names of the tensors in the checkpoint, without what transformers passes over.

        Raises:
            IncompatibleBaseError: if a parameter is missing, or the checkpoint has others.
        """
        own, converted = names.of_stored(self.files)
        if converted:
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: transformers computes weights of a {type(names.model).__name__} from several "
                f"tensors of a checkpoint, such as {converted[0]!r}. Checkpoints of this architecture cannot be "
                "merged; finetune its tasks here."
            )
        present = set(map(names.first_name, own.values()))
        absent = [name for name in names.parameters if name not in present]
        if absent:
            where = ", ".join(path.name for path in sorted(set(self.files.values()))[:2])
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.folder} lacks the parameter {absent[0]!r} of the base model (it has "
                f"{len(self.files)} tensors, in {where or 'no file'}). Merge checkpoints of the same architecture, "
                "saved whole."
            )
        odd = [name for name, found in own.items() if not names.knows(found)]
        if odd:
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.files[odd[0]]} has the tensor {odd[0]!r}, which the base model does "
                f"not have{f', and {len(odd) - 1} more' if len(odd) > 1 else ''}. Merge checkpoints of the same "
                "architecture; an adapter must be merged into its base first."
            )
        return own
