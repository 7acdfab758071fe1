"""An adapter that PEFT saved, as a local model: its task vector is what it changes in the base model's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import ADAPTER_NAME, is_frozen_part, plain_name
from hf_clamu.base_models.adapters.outside import OutsideAdapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.foreign import require_no_pointers
from hf_clamu.base_models.processors import saved_processor
from hf_clamu.checkpoint.layout import CONFIG_NAME, MASK_CONFIG_NAME, MASK_NAME
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, RecipeError
from hf_clamu.local_models.model_names import ModelNames
from hf_clamu.local_models.plain_checkpoint import open_tensors
from hf_clamu.tasks import task_kinds, traits_of

__all__ = ["AdapterCheckpoint", "is_adapter", "same_bits"]

# What only training looks at, or says which modules there are: their tensors are compared one by one.
_HARMLESS = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "task_type"),
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "bias"),
    *("lora_dropout", "init_lora_weights", "fan_in_fan_out", "runtime_config", "eva_config", "corda_config"),
    *("loftq_config", "ensure_weight_tying"),
)
# Of those, what is passed over once there are factors, and what their names tell by themselves.
_TOLD_BY_FACTORS = (
    *("exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "init_lora_weights"),
    *("fan_in_fan_out", "runtime_config", "eva_config", "corda_config", "loftq_config"),
)
# Where PEFT's classes keep the layer that gives a class its score.
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / MASK_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file()


@dataclass(frozen=True)
class AdapterCheckpoint:
    """A folder that PEFT's `save_pretrained` wrote.

    Args:
        task_id (`str`): for messages.
        folder (`Path`): with `adapter_config.json` and `adapter_model.safetensors`.
    """

    task_id: str
    folder: Path

    def _refused(self, cause: object) -> IncompatibleBaseError:
        return IncompatibleBaseError(f"Task {self.task_id!r}: the adapter in {self.folder} cannot be merged: {cause}.")

    def _damaged(self, cause: str) -> CheckpointFormatError:
        return CheckpointFormatError(f"Task {self.task_id!r}: {self.folder} cannot be read as an adapter: {cause}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as it is written."""
        return read_json(self.folder / MASK_CONFIG_NAME)

    @cached_property
    def space(self) -> PeftSpace:
        """The adapter's shape.

        Raises:
            IncompatibleBaseError: if it is of a type that changes no weights, or has settings that PEFT does not know.
        """
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        types: dict[Any, Any] = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
        made = types.get(str(self.config.get("peft_type")))
        known = getattr(made, "__dataclass_fields__", self.config)
        # A later PEFT writes its own new settings, too, where they say nothing.
        values = {key: value for key, value in self.config.items() if key in known or value}
        try:
            space = PeftSpace.of(values, "product")
        except RecipeError as error:
            raise self._refused(str(error).rstrip(".")) from None
        assert space is not None, "there is a configuration"
        return space

    @property
    def base_model(self) -> str | None:
        """The Hub id or folder of the base model, as the configuration has it."""
        found = self.config.get("base_model_name_or_path")
        return found if isinstance(found, str) and found else None

    @property
    def architectures(self) -> list[str]:
        """None is written with an adapter."""
        return []

    @property
    def kind(self) -> str:
        """The kind of its task.

        Raises:
            IncompatibleBaseError: if the configuration does not say it.
        """
        stated = self.config.get("task_type")
        found = next((kind for kind in task_kinds() if stated and traits_of(kind).peft_task == stated), None)
        if found is None:
            kinds = ", ".join(name for kind in task_kinds() if (name := traits_of(kind).peft_task))
            raise IncompatibleBaseError(
                f"Task {self.task_id!r}: {self.folder / MASK_CONFIG_NAME} has task_type = {stated!r}; to merge "
                f"without data it must be one of {kinds}. Set it there, or give the tasks' data with --recipe."
            )
        return found

    @cached_property
    def labels(self) -> list[str]:
        """Names of the labels: numbered, as an adapter has none; counted by its head.

        Raises:
            IncompatibleBaseError: if it has no head.
        """
        with open_tensors(self.folder / MASK_NAME) as file:
            for name in sorted(file.keys()):
                if name.endswith(_HEADS):
                    return [f"LABEL_{number}" for number in range(file.get_slice(name).get_shape()[0])]
        raise self._refused(
            "it has no classifier's head, so nothing says how many labels there are. Give the tasks' data "
            "with --recipe"
        )

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor, by its name there; the configuration, which decides what they mean, has none.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
        """
        require_no_pointers(self.folder, self._damaged)
        path = self.folder / MASK_NAME
        if not path.is_file() and (self.folder / "adapter_model.bin").is_file():
            raise self._damaged(
                f"it has adapter_model.bin alone, which can run code. Save it as {MASK_NAME} "
                "(safe_serialization=True)."
            )
        with open_tensors(path) as file:
            return {"": self.folder / MASK_CONFIG_NAME, **dict.fromkeys(sorted(file.keys()), path)}

    def processor(self, kind: str) -> Any:
        """Return the tokenizer or image processor that was saved with the adapter, if one was.

        Args:
            kind (`str`): of the tasks.

        Raises:
            IncompatibleBaseError: if it cannot be loaded.
        """
        return saved_processor(self.folder, kind)

    def adapter(self) -> OutsideAdapter:
        """Return its shape and tensors, mapped from the file."""
        with open_tensors(self.folder / MASK_NAME) as file:
            return OutsideAdapter(self.space, {name: file.get_tensor(name) for name in sorted(file.keys())})

    def check(self, names: ModelNames, architecture: str, config: Mapping[str, Any]) -> dict[str, str]:
        """Check that the adapter fits a base model.

        Args:
            names (`ModelNames`): of the base model.
            architecture (`str`): its class; an adapter names none.
            config (*mapping*): its configuration; an adapter has none.

        Returns:
            *dict*: empty; the tensors of an adapter are no parameters of the model.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            IncompatibleBaseError: if it does not fit.
        """
        assert self.files
        with self._naming():
            if _has_adapter(names.model):
                self._live_weights(names)
            else:
                self.adapter().check(names.model)
        return {}

    def weights(self, names: ModelNames) -> dict[str, torch.Tensor]:
        """Return the parameters that differ from the base model's, by the model's own first names.

        With an adapter inside the model they are the adapter's parameters, otherwise what it changes in the weights.

        Args:
            names (`ModelNames`): of the base model, which has the base weights.

        Raises:
            CheckpointFormatError: if a file is missing or damaged.
            IncompatibleBaseError: if it does not fit, or changes a tied weight in two ways.
        """
        with self._naming():
            model = names.model
            changed = self._live_weights(names) if _has_adapter(model) else self.adapter().changed(model)
            found: dict[str, torch.Tensor] = {}
            given: dict[str, str] = {}
            for name in sorted(changed):
                own = names.first_name(name)
                if own in found and not torch.equal(found[own], changed[name]):
                    raise IncompatibleBaseError(
                        f"it has {name!r} with other values than {given[own]!r}, but the base model ties them"
                    )
                found[own], given[own] = changed[name], name
            return found

    @property
    def own_factors(self) -> dict[str, torch.Tensor]:
        """LoRA's factors that start at random, by the names in the file; adapters of equal ones add up as they are."""
        return {name: one for name, one in self.adapter().tensors.items() if is_frozen_part(name)}

    @cached_property
    def shared_space(self) -> PeftSpace:
        """The shape of the model's adapter if the factors are added up as they are.

        It has nothing that may differ between adapters that are added: any of them may be forgotten.
        """
        options = {key: value for key, value in self.space.options.items() if key not in _TOLD_BY_FACTORS}
        modules = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in self.own_factors}
        options |= {"target_modules": sorted(modules)}
        options.pop("modules_to_save", None)
        if self._saved_modules:
            options["modules_to_save"] = sorted(set(self._saved_modules.values()))
        return dataclasses.replace(self.space, options=dict(sorted(options.items())), merging="frozen_a")

    @cached_property
    def no_sharing(self) -> str | None:
        """Why its factors cannot be added up as they are, whatever the others are, if so."""
        adapter = self.adapter()
        if not adapter.is_plain_lora or not self.own_factors:
            return f"{self.folder} is no LoRA adapter of linear layers alone"
        if adapter.changes_base:
            return f"PEFT changes the base weights when it loads {self.folder}"
        if self.space.options.get("bias", "none") != "none" or self.space.options.get("lora_bias"):
            return f"{self.folder} trained biases"
        if not all(bool(one.double().isfinite().all()) for one in self.own_factors.values()):
            return f"{self.folder} has a factor A with values that are not finite"
        return None

    @property
    def _saved_modules(self) -> dict[str, str]:
        """The weights of modules that were trained whole, each with its module.

        A configuration may name more modules than there are.
        """
        wanted = tuple(map(str, self.space.options.get("modules_to_save") or ()))
        found = {}
        for name in (name.removeprefix("base_model.model.") for name in self.files if ".lora_" not in name):
            parts = name.split(".")
            above = [".".join(parts[:number]) for number in range(1, len(parts))]
            module = next((one for one in above if one.endswith(wanted)), None)
            if module is not None:
                found[name] = module
        return found

    @property
    def is_computed(self) -> bool:
        """Whether libraries and device may show in the bits of its change."""
        return not self.adapter().is_plain_lora

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the task and the folder in what is raised."""
        try:
            yield
        except RecipeError as error:
            raise self._refused(str(error).rstrip(".")) from None
        except IncompatibleBaseError as error:
            raise (error if str(self.folder) in str(error) else self._refused(str(error).rstrip("."))) from None

    def _live_weights(self, names: ModelNames) -> dict[str, torch.Tensor]:
        """Return the adapter's parameters by the names that they have in a model with the same adapter inside."""
        adapter, model = self.adapter(), names.model
        shares = any(is_frozen_part(name) and not one.requires_grad for name, one in names.parameters.items())
        if shares and self.no_sharing is not None:
            raise IncompatibleBaseError(f"{self.no_sharing}, and the model adds up factors as they are")
        difference = _other_shape(model.peft_config[ADAPTER_NAME], self.space.peft_config())
        if difference is not None:
            raise IncompatibleBaseError(difference)
        own, whole = adapter.split(model)
        live = dict(model.named_parameters(remove_duplicate=False))
        by_key = {name.replace(f".{ADAPTER_NAME}", ""): name for name in live if f".{ADAPTER_NAME}" in name}
        by_plain = {plain_name(name): name for name in live}
        odd, absent = sorted(own.keys() - by_key.keys()), sorted(by_key.keys() - own.keys())
        if odd or absent:
            raise IncompatibleBaseError(f"it has {odd[0]!r}, the model does not" if odd else f"it lacks {absent[0]!r}")
        adapter.require_ties(model, whole)
        learning = {name for name, one in names.parameters.items() if one.requires_grad} - set(by_key.values())
        saved = {names.first_name(by_plain.get(name, name)) for name in self._saved_modules}
        for name in sorted(learning ^ saved):
            what = "the model trains and it does not" if name in learning else "it trained and the model does not"
            raise IncompatibleBaseError(f"there is {name!r}, which {what}: all have to train the same modules")
        found = {by_key[key]: tensor for key, tensor in own.items()}
        found |= {by_plain[name]: tensor for name, tensor in whole.items()}
        for name, tensor in found.items():
            if tensor.shape != live[name].shape:
                raise IncompatibleBaseError(
                    f"it has {name!r} of shape {tuple(tensor.shape)}, the model's has {tuple(live[name].shape)}"
                )
            if not live[name].requires_grad and not same_bits(tensor, live[name].detach().cpu()):
                raise IncompatibleBaseError(
                    f"its {name!r} has other values than the model's, which all tasks share; merge it into a model of "
                    "whole weights (--peft-merging product)"
                )
        return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same values, with the signs of zeros; their types may differ."""
    first, second = one.double(), other.double()
    return torch.equal(first, second) and torch.equal(first.signbit(), second.signbit())


def _has_adapter(model: Any) -> bool:
    return ADAPTER_NAME in (getattr(model, "peft_config", None) or {})


def _other_shape(ours: Any, theirs: Any) -> str | None:
    """Say in which setting two adapters differ that changes what they compute, if in any."""
    if ours.peft_type != theirs.peft_type:
        return f"it is a {theirs.peft_type.value} adapter, the model has a {ours.peft_type.value} one inside"
    for field in dataclasses.fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name, None)
        if field.name not in _HARMLESS and one != other:
            return f"it has {field.name} = {other!r}, the adapter inside the model has {one!r}"
    return None
