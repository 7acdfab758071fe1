"""Finetuning in the space of a PEFT adapter: which parameters an adapter adds, and how tasks are added up there.

Three ways to merge, all of them exact unlearning:

- `"parameters"`: the adapter is part of the live model; its parameters are finetuned, merged and masked like any
  others. With LoRA the merged product is `(B_0 + sum B_t)(A_0 + sum A_t)`, which is no sum of products.
- `"frozen_a"` (LoRA): the same with `A` drawn once, frozen and shared by all tasks, so that the merged adapter
  `(sum B_t) A` is the sum of the tasks' products `B_t A`. Of an embedding it is `B` that is drawn and frozen.
- `"product"`: the adapter exists while a task is finetuned and is merged into the base weights then; the task vector
  is the materialised product (`scaling * B_t A_t`), and the merged model is a plain one without an adapter.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import enum
import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_clamu.base_models.making import making_models
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, RecipeError
from hf_clamu.exact import canonical_json
from hf_clamu.training import derive_seed, seeded

__all__ = ["PEFT_MERGING", "LocalAdapter", "PeftSpace", "plain_name"]

PEFT_MERGING = ("frozen_a", "parameters", "product")

_ADAPTER = "default"
# The factors that start at random. Of an embedding that is B: PEFT starts its A at zero, so A has to learn.
_FROZEN_PARTS = ("lora_A", "lora_embedding_B")
# Of a base model, a call or a release, not of the adapter's shape.
_VOLATILE = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode")
# They need steps of their own while training (a rank schedule, routing) or parameters that are added in another way.
_REFUSED_TYPES = ("ADALORA", "XLORA", "CLAMU_MASK")
_REFUSED_FIELDS = ("target_parameters", "trainable_token_indices", "layer_replication", "megatron_config")
# They train with hooks and starting values that no state dict has, so a saved model could not train on.
_PRODUCT_ALONE = ("OSF",)
_HEADS = ("classifier", "score", "head", "fc")


def plain_name(name: str) -> str:
    """Return what a parameter is called without the adapter around its module."""
    return name.replace(".base_layer.", ".")


@dataclass(frozen=True, kw_only=True)
class PeftSpace:
    """An adapter's shape and how its tasks are merged.

    Make one with `PeftSpace.of`.

    Args:
        peft_type (`str`): PEFT's name of the method, such as `"LORA"`.
        options (*dict*): fields of its configuration that differ from PEFT's defaults.
        merging (`str`): `"frozen_a"`, `"parameters"` or `"product"`.
    """

    peft_type: str
    options: dict[str, Any]
    merging: str

    @classmethod
    def of(cls, config: Any, merging: str | None = None) -> PeftSpace | None:
        """Check and take over a PEFT configuration.

        Args:
            config (`peft.PeftConfig` or *mapping*, *optional*): with a `peft_type`; `None` for no adapter.
            merging (`str`, *optional*): `"frozen_a"` (the default for LoRA), `"parameters"` (for the others) or
                `"product"`.

        Raises:
            RecipeError: if PEFT does not know it, or it cannot be merged by adding.
        """
        if config is None:
            if merging is not None:
                raise RecipeError(
                    f"peft_merging={merging!r} says how adapters are added, but there is no peft_config."
                )
            return None
        values = dict(config) if isinstance(config, Mapping) else config.to_dict()
        kind = values.get("peft_type")
        kind = kind.value if isinstance(kind, enum.Enum) else kind
        _check_type(kind)
        made = _make(str(kind), {key: value for key, value in values.items() if key not in _VOLATILE})
        for name in _REFUSED_FIELDS:
            if getattr(made, name, None):
                raise RecipeError(f"peft_config: {name} cannot be merged by adding. Leave it out.")
        if kind in _PRODUCT_ALONE and merging != "product":
            raise RecipeError(
                f"Parameters of {kind} cannot be trained again after a model was saved, so no task could be "
                "forgotten. Choose peft_merging='product'."
            )
        if merging is None:
            merging = "frozen_a" if kind == "LORA" else "parameters"
        if merging not in PEFT_MERGING:
            raise RecipeError(f"peft_merging must be one of {', '.join(PEFT_MERGING)}, got {merging!r}.")
        if merging == "frozen_a" and kind != "LORA":
            raise RecipeError(f"peft_merging='frozen_a' is for LORA; for {kind} choose 'parameters' or 'product'.")
        return cls(peft_type=str(kind), options=_changed(made), merging=merging)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> PeftSpace | None:
        """Return the adapter that a saved model's tasks are finetuned through; the same one each time."""
        config = checkpoint.config
        return _recorded(canonical_json(config.peft_config), config.peft_merging)

    def require_fixed_signs(self, localization: str) -> None:
        """Check that task vectors can keep to fixed signs while they are finetuned.

        Args:
            localization (`str`): the setting that needs them.

        Raises:
            RecipeError: if the task vector is a product, whose signs follow from no signs of its factors.
        """
        if not self.is_live:
            raise RecipeError(
                f"localization={localization!r} holds trained parameters to fixed signs, and "
                f"peft_merging={self.merging!r} merges products of them, whose signs it cannot hold. Choose "
                "'frozen_a' or 'parameters', or another localization."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values of the configuration that `of` reads."""
        return {"peft_type": self.peft_type, **self.options}

    @property
    def is_live(self) -> bool:
        """Whether the merged model has the adapter inside."""
        return self.merging != "product"

    def peft_config(self) -> Any:
        """Return PEFT's configuration; trained heads are not part of it."""
        return _make(self.peft_type, {k: v for k, v in self.options.items() if k != "modules_to_save"})

    # -- at the build --------------------------------------------------------------------------------------------

    def enter(self, model: Any, run_seed: int) -> tuple[PeftSpace, dict[str, torch.Tensor]]:
        """Put the adapter into a base model and mark what is trained.

        Beside the adapter that is `modules_to_save`; unless it is given, the head of a classifier. With `"product"`
        the model stays as it is, and the weights that the adapter would change are marked.

        Args:
            model (`transformers.PreTrainedModel`): the base model; changed in place. It may be without data (on the
                meta device), to see what would be trained.
            run_seed (`int`): the adapter's first values are drawn from it.

        Returns:
            `PeftSpace`, *dict* of `str` to `torch.Tensor`: with the modules that PEFT chose spelled out, and the
            adapter's first values.

        Raises:
            RecipeError: if the adapter does not fit the model, or changes its weights before any training.
        """
        heads = self._heads(model)
        base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        tuner = self._insert(model, run_seed)
        _require_own_targets(model)
        if self.options.get("lora_bias"):
            _require_mergeable(model)  # a live adapter, too: export(merge=True) merges it
        trained = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
        adapter = self.adapter_state(model, base.keys())
        for name, tensor in model.state_dict().items():
            if name not in adapter and not tensor.is_meta and not torch.equal(tensor, base[plain_name(name)]):
                raise RecipeError(
                    f"peft_config changes the base weight {plain_name(name)!r} before any training (its way to draw "
                    "the first values does that). Choose one that leaves the base model as it is."
                )
        chosen = tuner.peft_config[_ADAPTER].target_modules
        options = dict(self.options)
        if chosen is not None:
            options["target_modules"] = sorted(chosen) if not isinstance(chosen, str) else chosen
        space = dataclasses.replace(self, options=options)
        if not self.is_live:
            wrapped = {plain_name(name) for name, _ in model.named_parameters() if ".base_layer." in name}
            _unload(tuner, model)
            trained, adapter = (trained & base.keys()) | wrapped, {}
        for name, parameter in model.named_parameters():
            taken = plain_name(name) in trained and not (self.merging == "frozen_a" and _is_frozen_part(name))
            parameter.requires_grad_(parameter.is_floating_point() and (taken or plain_name(name) in heads))
        return space, {name: tensor.detach().clone() for name, tensor in adapter.items()}

    def _heads(self, model: Any) -> set[str]:
        names = [name for name, _ in model.named_parameters()]
        wanted = self.options.get("modules_to_save")
        if wanted is None:
            prefix = f"{model.base_model_prefix}."
            if not any(name.startswith(prefix) for name in names):
                return {name for name in names if name.split(".")[0] in _HEADS}
            if "Classification" not in type(model).__name__:
                return set()
            return {name for name in names if not name.startswith(prefix)}
        found: set[str] = set()
        for module in wanted:
            own = {name for name in names if f".{module}." in f".{name}"}
            if not own:
                raise RecipeError(
                    f"peft_config: modules_to_save names {module!r}, which the base model does not have; its "
                    f"parameters look like {', '.join(names[-3:])}."
                )
            found |= own
        return found

    # -- at every load -------------------------------------------------------------------------------------------

    def restore(self, model: Any, values: Mapping[str, torch.Tensor]) -> frozenset[str]:
        """Put the adapter into a base model with its recorded first values.

        Args:
            model (`transformers.PreTrainedModel`): the base model; changed in place.
            values (*mapping* of `str` to `torch.Tensor`): with the adapter's first values; others are left alone.

        Returns:
            *frozenset* of `str`: the adapter's names in the model's state dict.

        Raises:
            CheckpointFormatError: if a value is missing or has another shape.
            IncompatibleBaseError: if the adapter does not fit the model.
        """
        if not self.is_live:
            return frozenset()
        base = set(model.state_dict())
        try:
            self._insert(model, 0)  # the values drawn here are replaced at once
        except RecipeError as error:
            raise IncompatibleBaseError(f"The recorded adapter does not fit the base model: {error}") from error
        adapter = self.adapter_state(model, base)
        with torch.no_grad():
            for name, tensor in adapter.items():
                if name not in values or values[name].shape != tensor.shape:
                    raise CheckpointFormatError(
                        f"The first value of the adapter's {name!r}, of shape {tuple(tensor.shape)}, is not in the "
                        "saved model. Take an undamaged copy, or the release of PEFT that it was built with."
                    )
                tensor.copy_(values[name])
        return frozenset(adapter)

    @staticmethod
    def adapter_state(model: Any, base: Any) -> dict[str, torch.Tensor]:
        """Return the state of the adapter alone.

        Args:
            model (`transformers.PreTrainedModel`): with the adapter inside.
            base (*collection* of `str`): names in the state dict of the model without it.
        """
        return {name: value for name, value in model.state_dict().items() if plain_name(name) not in base}

    def local_adapter(self, run_seed: int) -> LocalAdapter | None:
        """Return what finetunes each task through an adapter of its own, if the product is merged."""
        return None if self.is_live else LocalAdapter(self, run_seed)

    def _insert(self, model: Any, run_seed: int) -> Any:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        config = self.peft_config()
        with seeded(derive_seed(run_seed, "adapter_init")), warnings.catch_warnings():
            # PEFT sets the option right by itself.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            # Such targets are refused.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
            try:
                return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, _ADAPTER)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise RecipeError(
                    f"PEFT cannot put a {self.peft_type} adapter into a {type(model).__name__}: "
                    f"{str(error).splitlines()[0] if str(error) else error!r}"
                ) from error

    # -- out of the space ----------------------------------------------------------------------------------------

    @staticmethod
    def plain_model(live: Any, architecture: Any, *, merge: bool) -> Any:
        """Return the model without the adapter, sharing tensors with the live one.

        Args:
            live (`transformers.PreTrainedModel`): with the adapter inside.
            architecture (`type`): class of the plain model.
            merge (`bool`): merge the adapter into the base weights; otherwise leave it out.
        """
        state = {plain_name(name): value for name, value in live.state_dict().items()}
        if merge:
            for name, layer in _merged_layers(live).items():
                for key, value in layer.state_dict().items():
                    state[f"{name}.{key}"] = value
        with torch.device("meta"), making_models():
            plain = architecture._from_config(copy.deepcopy(live.config))
        names = plain.state_dict().keys()
        plain.load_state_dict({name: state[name] for name in names}, assign=True)
        plain.tie_weights()
        plain.generation_config = getattr(live, "generation_config", None)
        return plain.eval()

    def save_adapter(self, live: Any, folder: Path, base_model: str | None, revision: str | None) -> None:
        """Write the live adapter, and trained heads, as an adapter that PEFT loads without hf_clamu.

        Args:
            live (`transformers.PreTrainedModel`): with the adapter inside.
            folder (`Path`): an empty folder.
            base_model (`str`, *optional*): Hub id or folder of the base model.
            revision (`str`, *optional*): its commit.

        Raises:
            RecipeError: if layers share a part of the adapter, which PEFT writes from its own wrapper only.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        own = live.state_dict()
        names = {plain_name(name) for name in self._heads(live) if f".{_ADAPTER}" not in name}
        heads = {name: own[name] for name in names if name in own}
        # PEFT has no module that is both trained and adapted: a head that is both is written with its adapter merged.
        merged = {name: layer for name, layer in _merged_layers(live).items() if f"{name}.weight" in names}
        for module, layer in merged.items():
            heads |= {f"{module}.{key}": value for key, value in layer.state_dict().items()}
        try:
            adapter = get_peft_model_state_dict(live, adapter_name=_ADAPTER, save_embedding_layers=False)
        except (KeyError, ValueError) as error:
            # It looks for what all layers share (VeRA's projections, VB-LoRA's bank) on a wrapper around the model.
            raise RecipeError(
                f"PEFT cannot write a {self.peft_type} adapter out of a model that it does not wrap: {error} Export "
                "it merged into the base weights (merge=True)."
            ) from error
        adapter = {key: value for key, value in adapter.items() if not key.startswith(tuple(f"{m}." for m in merged))}
        state = {**adapter, **heads}
        tensors = {f"base_model.model.{name}": state[name].contiguous().clone() for name in sorted(state)}
        config = copy.deepcopy(live.peft_config[_ADAPTER])  # with what PEFT settled for this model
        config.base_model_name_or_path, config.revision, config.inference_mode = base_model, revision, True
        config.modules_to_save = sorted({name.rsplit(".", 1)[0].split(".")[0] for name in heads}) or None
        if self.options.get("modules_to_save"):
            config.modules_to_save = list(self.options["modules_to_save"])
        if merged:
            config.exclude_modules = _excluding(config.exclude_modules, sorted(merged))
        config.save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class LocalAdapter:
    """Finetunes one task at a time through an adapter that is merged into the weights when the task is done.

    Args:
        space (`PeftSpace`): its shape.
        run_seed (`int`): every task's adapter starts from the same values, drawn from it.
    """

    space: PeftSpace
    run_seed: int

    def check(self, model: nn.Module) -> None:
        """Check that the weights that are merged into take part.

        Raises:
            RecipeError: naming one that is frozen, or if PEFT cannot merge the adapter into a layer.
        """
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        tuner = self.space._insert(model, self.run_seed)
        try:
            for name in _require_mergeable(model):
                if not flags[name]:
                    raise RecipeError(
                        f"peft_merging='product' merges the adapter into {name!r}, which is frozen. Leave it out of "
                        "freeze, or its layer out of target_modules."
                    )
        finally:
            _unload(tuner, model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])

    @contextmanager
    def inserted(self, model: nn.Module) -> Iterator[list[nn.Parameter]]:
        """Put the adapter in, yield the parameters to train, and merge it into the weights on leaving."""
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        tuner = self.space._insert(model, self.run_seed)
        for name, parameter in model.named_parameters():
            if flags.get(name) and ".base_layer." not in name:
                parameter.requires_grad_(True)  # a head, which PEFT froze
            elif not flags.get(plain_name(name), True):
                parameter.requires_grad_(False)  # a bias, which PEFT would train
        try:
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            tuner.merge_and_unload(progressbar=False)
            _forget(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])


@functools.lru_cache(maxsize=8)
def _recorded(config: bytes, merging: str | None) -> PeftSpace | None:
    return PeftSpace.of(json.loads(config), merging)


def _merged_layers(live: Any) -> dict[str, Any]:
    """Return the layers that an adapter is put into, by name, as copies with the adapter merged into their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in live.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = copy.deepcopy(module)
            layer.merge()
            found[name] = layer.get_base_layer()
    return found


def _excluding(excluded: Any, names: list[str]) -> Any:
    """Return PEFT's `exclude_modules`, a list of names or a pattern, with more names."""
    if isinstance(excluded, str):
        return "|".join([f"(?:{excluded})", *map(re.escape, names)])
    return sorted({*(excluded or ()), *names})


def _unload(tuner: Any, model: Any) -> None:
    tuner.unload()
    _forget(model)


def _forget(model: Any) -> None:
    # The tuner leaves its configuration on the model, which makes the next one believe that it is the second.
    model.__dict__.pop("peft_config", None)


def _require_own_targets(model: nn.Module) -> None:
    """Refuse targets whose weights the model uses under another name as well."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        target = next((name for name in same if ".base_layer." in name), None)
        other = next((name for name in same if name != target), None)
        if target is not None and other is not None:
            raise RecipeError(
                f"peft_config: the target {plain_name(target)!r} shares its weight with {plain_name(other)!r} (tied "
                "embeddings, say), so an adapter of one would have to change both. Leave it out of target_modules, or "
                "take a base model that does not tie them."
            )


def _require_mergeable(model: nn.Module) -> list[str]:
    """Check that the adapter can be merged, and return the weights that this writes to, as they are called without it.

    It is tried on copies, with other values than the first ones, which change nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    written: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = copy.deepcopy(module)
            before = {key: value.detach().clone() for key, value in layer.get_base_layer().named_parameters()}
            with torch.no_grad():
                for key, value in layer.named_parameters():
                    if not key.startswith("base_layer.") and value.is_floating_point():
                        value.add_(torch.linspace(0.1, 0.4, value.numel(), device=value.device).view_as(value))
            try:
                layer.merge()
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
                raise RecipeError(
                    f"PEFT cannot merge the adapter into {name!r}, which an export or peft_merging='product' needs: "
                    f"{' '.join(str(error).split())[:200]}"
                ) from error
            own = layer.get_base_layer().named_parameters()
            written += [f"{name}.{key}" for key, value in own if value.is_meta or not torch.equal(value, before[key])]
    return written


def _is_frozen_part(name: str) -> bool:
    return any(f".{part}." in name for part in _FROZEN_PARTS)


def _check_type(kind: Any) -> None:
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    known = [str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING]
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known ones: {', '.join(sorted(known))}."
        raise RecipeError(f"peft_config needs a peft_type that PEFT knows, got {kind!r}.{hint}")
    refused = kind in _REFUSED_TYPES or kind not in PEFT_TYPE_TO_TUNER_MAPPING
    if refused or issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[kind], PromptLearningConfig):
        raise RecipeError(
            f"Tasks that were finetuned with {kind} cannot be merged by adding parameters. Take a method that puts "
            "its parameters into the layers and trains them as they are, such as LORA."
        )


def _make(kind: str, values: Mapping[str, Any]) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    known = [field.name for field in dataclasses.fields(made)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"peft_config: {kind} has no setting {name!r}.{hint}")
    try:
        return made(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"peft_config: {kind} does not take these settings: {error}") from error


def _changed(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that differ from PEFT's defaults, as JSON-able values."""
    found = {}
    for field in dataclasses.fields(config):
        if field.name in _VOLATILE or field.name == "task_type":
            continue
        value = _jsonable(getattr(config, field.name))
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default is dataclasses.MISSING or value != _jsonable(default):
            found[field.name] = value
    return dict(sorted(found.items()))


def _jsonable(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in sorted(value.items())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
