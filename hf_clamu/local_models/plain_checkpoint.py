"""A plain transformers checkpoint: which file holds which tensor, and whether all of them fit a base model.

Headers are read and no tensor is loaded; no code of a checkpoint runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_clamu.base_models.foreign import foreign_files, require_no_pointers
from hf_clamu.base_models.processors import has_processor_files, load_processor
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError
from hf_clamu.local_models.likeness import other_setting

__all__ = ["ModelNames", "PlainCheckpoint", "open_tensors"]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


def open_tensors(path: Path) -> Any:
    """Map a safetensors file.

    Raises:
        CheckpointFormatError: if it is missing or damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointFormatError(f"{path} is missing. Take an undamaged copy of the checkpoint.") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointFormatError(
            f"{path} cannot be read as safetensors ({error}). Take an undamaged copy of the checkpoint."
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelNames:
    """What a live model calls its tensors; its checkpoints may call them otherwise.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        parameters (*dict* of `str` to `torch.nn.Parameter`): each once, by its name.
        aliases (*dict* of `str` to `str`): other names of tied parameters.
        buffers (*dict* of `str` to `torch.Tensor`): what is saved beside parameters.
        computed (*frozenset* of `str`): buffers that are computed anew at each load.
    """

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    aliases: dict[str, str]
    buffers: dict[str, torch.Tensor]
    computed: frozenset[str]

    @classmethod
    def of(cls, model: Any) -> ModelNames:
        """Read them from a live model."""
        parameters = dict(model.named_parameters())
        first = {id(parameter): name for name, parameter in parameters.items()}
        every = dict(model.named_parameters(remove_duplicate=False))
        saved, buffers = model.state_dict().keys(), dict(model.named_buffers())
        return cls(
            model=model,
            parameters=parameters,
            aliases={name: first[id(one)] for name, one in every.items() if name not in parameters},
            buffers={name: buffer for name, buffer in buffers.items() if name in saved},
            computed=frozenset(name for name in buffers if name not in saved),
        )

    def own(self, name: str) -> str:
        """Return the first name of a tied parameter, or the name itself."""
        return self.aliases.get(name, name)

    def knows(self, name: str) -> bool:
        """Whether the model has such a parameter or saved buffer."""
        return name in self.parameters or name in self.aliases or name in self.buffers

    def of_stored(self, stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Return what the model calls the tensors of a checkpoint, as transformers finds it when it loads one.

        Args:
            stored (*iterable* of `str`): names in the checkpoint.

        Returns:
            *dict* of `str` to `str`, *list* of `str`: names of the model by those of the checkpoint, without what
            transformers passes over; and those whose tensors it would compute from others.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        # Made anew each time: some rules remember what they have seen.
        rules = get_model_conversion_mapping(self.model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        known = dict.fromkeys([*self.parameters, *self.aliases, *self.buffers], True)
        prefix, patterns = self.model.base_model_prefix, self.model._keys_to_ignore_on_load_unexpected or ()
        found: dict[str, str] = {}
        converted = []
        for name in sorted(stored, key=dot_natural_key):
            own, converter = rename_source_key(name, renamings, converters, prefix, known)
            if own not in known and name in known:
                own, converter = name, None
            if converter is not None:
                converted.append(name)
            elif own in known or not (own in self.computed or any(re.search(pattern, own) for pattern in patterns)):
                found[name] = own
        return found, converted


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
            CheckpointFormatError: if there is none, or the folder holds something else than a plain checkpoint.
        """
        path = self.folder / _CONFIG
        if not path.is_file():
            found = (
                "holds a PEFT adapter and no whole model. Merge it into its base model first (merge_and_unload), and "
                "save that."
                if (self.folder / "adapter_config.json").is_file()
                else f"has no {_CONFIG}. Expected a checkpoint that transformers' save_pretrained wrote."
            )
            raise CheckpointFormatError(f"Task {self.task_id!r}: {self.folder} {found}")
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
        if (self.folder / _WEIGHTS).is_file():
            with open_tensors(self.folder / _WEIGHTS) as file:
                return dict.fromkeys(sorted(file.keys()), self.folder / _WEIGHTS)
        if (self.folder / _INDEX).is_file():
            return self._sharded()
        others = [path.name for path in sorted(self.folder.glob("*.bin"))]
        raise CheckpointFormatError(
            f"Task {self.task_id!r}: {self.folder} has neither {_WEIGHTS} nor {_INDEX}"
            + (f" (only {others[0]}, which can run code)" if others else "")
            + ". Save the checkpoint with transformers' save_pretrained."
        )

    def _sharded(self) -> dict[str, Path]:
        index = read_json(self.folder / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise CheckpointFormatError(f"{self.folder / _INDEX} has no weight_map. Take an undamaged copy.")
        for shard in sorted(set(index.values())):
            if Path(shard).name != shard:
                raise CheckpointFormatError(f"{self.folder / _INDEX} names {shard!r}, which is outside the folder.")
            with open_tensors(self.folder / shard) as file:
                present = set(file.keys())
            absent = sorted(name for name, other in index.items() if other == shard and name not in present)
            if absent:
                raise CheckpointFormatError(
                    f"{self.folder / shard} lacks {absent[0]!r}, which {_INDEX} says is in it. Take an undamaged copy."
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
        return load_processor(str(self.folder), kind) if has_processor_files(str(self.folder), kind) else None

    def check(self, names: ModelNames, architecture: str, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is of a base model's kind.

        Args:
            names (`ModelNames`): of the base model.
            architecture (`str`): its class.
            config (*mapping*): its configuration.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            IncompatibleBaseError: if architecture, names, shapes or types differ.
        """
        kinds = self.architectures or ["model of no named class"]
        if architecture not in kinds:
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.folder / _CONFIG} says that the checkpoint is a {kinds[0]}, but the "
                f"base model is loaded as a {architecture}. Local models must be of one architecture, with the same "
                "head."
            )
        base = names.model.config
        if self.config.get("model_type", base.model_type) != base.model_type:
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.folder / _CONFIG} has model_type = {self.config['model_type']!r}, the "
                f"base model has {base.model_type!r}. Merge models that were finetuned from this base."
            )
        with foreign_files(self._refused):
            stated = type(base).from_dict(dict(self.config)).to_dict()
        difference = other_setting(
            json.loads(json.dumps(stated, default=str)), json.loads(json.dumps(config, default=str))
        )
        if difference is not None:
            key, found, expected = difference
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.folder / _CONFIG} has {key} = {found!r}, the base model has "
                f"{expected!r}. Merge models that were finetuned from this base."
            )
        own = self.own_names(names)
        for path, found in self.by_file:
            with open_tensors(path) as file:
                for name in found:
                    expected = names.parameters.get(names.own(own.get(name, "")))
                    if expected is not None:
                        self._check_header(path, name, file.get_slice(name), expected)

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
        present = set(map(names.own, own.values()))
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
