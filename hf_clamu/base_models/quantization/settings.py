"""`Quantization`: how frozen weights of a base model are stored, as transformers' `quantization_config` says it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.errors import ClamuError, IncompatibleBaseError, RecipeError
from hf_clamu.exact import canonical_json
from hf_clamu.known_names import hint_for

__all__ = ["Quantization"]

_METHOD = "bitsandbytes"
_TYPES = ("fp4", "nf4")
_COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
# What each key may be, and transformers' default of it. Keys of the other width decide nothing and are left out.
_OF_4_BITS = {"bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
_OF_8_BITS = {"llm_int8_threshold": 6.0}
# They must have these values: with others, weights are no frozen bytes (the first), do not all lie on one device, or
# pass for floating-point weights.
_FIXED = {
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "bnb_4bit_quant_storage": "uint8",
}
_WIDTHS = {"load_in_4bit": 4, "load_in_8bit": 8}
_SKIPPED = "llm_int8_skip_modules"
_KNOWN = (*_WIDTHS, *_OF_4_BITS, *_OF_8_BITS, _SKIPPED, *_FIXED, "quant_method")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the linear layers of a base model are stored.

    Make one with `Quantization.of` or `Quantization.recorded`.

    Args:
        bits (`int`): 4 or 8, of a weight.
        options (*dict*): transformers' settings for this width, all of them.
    """

    bits: int
    options: dict[str, Any]

    @classmethod
    def of(cls, config: Any) -> Quantization | None:
        """Check and take over what a user gives.

        Args:
            config (`transformers.BitsAndBytesConfig` or *mapping*, *optional*): `None` for a base model as it is.

        Raises:
            RecipeError: if it is another quantiser, has an unknown key, or its library is not installed.
        """
        if config is None:
            return None
        values = config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)()
        found = cls._read(values, RecipeError, "quantization_config")
        found.require_installed()
        return found

    @classmethod
    def recorded(cls, values: Any, where: str) -> Quantization | None:
        """Read what a configuration file says; nothing that it names is imported.

        Args:
            values (*mapping*, *optional*): its `quantization_config`.
            where (`str`): what the configuration is of, for the message.

        Raises:
            IncompatibleBaseError: if it is another quantiser or has an unknown key.
        """
        return None if not values else cls._read(values, IncompatibleBaseError, f"{where}, quantization_config")

    @classmethod
    def _read(cls, values: Any, error: Callable[[str], ClamuError], where: str) -> Quantization:
        if not isinstance(values, Mapping) or not values:
            raise error(f"{where} must be a mapping such as {{load_in_4bit: true}}, got {values!r:.80}.")
        # transformers writes its private attributes, too.
        values = {str(key): value for key, value in values.items() if str(key).removeprefix("_") not in _WIDTHS} | {
            key: values.get(key, values.get(f"_{key}", False)) for key in _WIDTHS
        }
        method = values.get("quant_method", _METHOD)
        if getattr(method, "value", method) != _METHOD:
            raise error(
                f"{where}: quant_method is {method!r}, and bitsandbytes alone is covered. Give the model that it was "
                "made from, with load_in_4bit: true or load_in_8bit: true."
            )
        for key in values:
            if key not in _KNOWN:
                raise error(f"{where} has the unknown key {key!r}.{hint_for(key, _KNOWN)}")
        for key, expected in _FIXED.items():
            if _plain(values.get(key, expected)) not in (expected, None):
                raise error(f"{where}: {key} must be {expected!r}, got {values[key]!r}. Leave it out.")
        chosen = [key for key in _WIDTHS if values[key] is True]
        if len(chosen) != 1 or any(not isinstance(values[key], bool) for key in _WIDTHS):
            raise error(f"{where} needs one of load_in_4bit: true and load_in_8bit: true.")
        bits = _WIDTHS[chosen[0]]
        defaults = _OF_4_BITS if bits == 4 else _OF_8_BITS
        options = {key: _plain(values.get(key)) for key in defaults}
        options = {key: defaults[key] if value is None else value for key, value in options.items()}
        options[_SKIPPED] = values.get(_SKIPPED)
        made = cls(bits=bits, options=dict(sorted(options.items())))
        made._check(error, where)
        return made

    def _check(self, error: Callable[[str], ClamuError], where: str) -> None:
        for key, known in (("bnb_4bit_quant_type", _TYPES), ("bnb_4bit_compute_dtype", _COMPUTE_DTYPES)):
            value = self.options.get(key)
            if value is not None and value not in known:
                raise error(f"{where}: {key} must be one of {', '.join(known)}, got {value!r}.")
        if not isinstance(self.options.get("bnb_4bit_use_double_quant", False), bool):
            raise error(f"{where}: bnb_4bit_use_double_quant must be true or false.")
        threshold = self.options.get("llm_int8_threshold", 0.0)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
            raise error(f"{where}: llm_int8_threshold must be a number from 0 on, got {threshold!r}.")
        if self.bits == 8:
            self.options["llm_int8_threshold"] = float(threshold)
        skipped = self.options[_SKIPPED]
        is_list = isinstance(skipped, list | tuple) and all(isinstance(name, str) and name for name in skipped)
        if skipped is not None and not is_list:
            raise error(f"{where}: {_SKIPPED} must be a list of module names, got {skipped!r:.80}.")

    def require_installed(self) -> None:
        """Check that the library is there.

        Raises:
            RecipeError: naming what installs it.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RecipeError(
                f"A base model in {self.bits} bits needs bitsandbytes, which is not installed. Install it: "
                "pip install 'hf-clamu[quantization]'."
            )

    def require_adapter(self, space: PeftSpace | None) -> None:
        """Check that tasks are finetuned through an adapter that leaves the weights of the base model alone.

        Args:
            space (`PeftSpace`, *optional*): the adapter.

        Raises:
            RecipeError: if weights of the base model would be added to, or the adapter is no LoRA.
        """
        if space is None:
            found = "all weights are finetuned"
        elif space.merging == "product":
            found = "peft_merging='product' adds to the weights of the base model"
        elif space.peft_type != "LORA":
            found = f"the adapter is {space.peft_type}"
        else:
            return
        raise RecipeError(
            f"A base model in {self.bits} bits stays as it is, so its tasks are finetuned through LoRA inside the "
            f"model, but {found}. Choose preset: adapters, or a peft_config with peft_type: LORA and peft_merging: "
            "frozen_a or parameters; or leave quantization out."
        )

    def require_weights(self, base: Any) -> None:
        """Check that the base model comes from a folder or the Hub: transformers quantises while it loads files.

        Args:
            base (`str`, `Path`, *mapping* or *model*): what is given as the base model.

        Raises:
            RecipeError: if it does not.
        """
        import os

        if not isinstance(base, (str, os.PathLike)):
            raise RecipeError(
                "quantization_config is for a base model from a folder or the Hub, which is quantised while it is "
                f"loaded, and this one is a {type(base).__name__}. Save it with save_pretrained and give the folder."
            )

    def require_settings(self, *, portable: bool, bf16: bool) -> None:
        """Check the settings of a build that decide how layers compute.

        Args:
            portable (`bool`): bits must not depend on the processor.
            bf16 (`bool`): autocast over the weights.

        Raises:
            RecipeError: if they do not go with quantised layers.
        """
        if portable:
            raise RecipeError(
                "portable=True holds the kernels of torch to one set of instructions, and those of bitsandbytes "
                "follow the processor. Leave it out, or quantization_config."
            )
        if bf16 and self.bits == 8:
            raise RecipeError(
                "bf16=True (autocast) gives layers in 8 bits inputs of two types, which change their biases. Choose "
                "dtype: bfloat16 instead."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values that `of` and `recorded` read, and transformers, too."""
        return {"quant_method": _METHOD, f"load_in_{self.bits}bit": True, **self.options}

    def transformers_config(self) -> Any:
        """Return transformers' configuration."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**{key: value for key, value in self.to_dict().items() if key != "quant_method"})

    @property
    def bytes(self) -> bytes:
        """What stands for the settings where bytes of a base model are compared."""
        return canonical_json(self.to_dict())


def _plain(value: Any) -> Any:
    """Return the name of a torch type; other values as they are."""
    name = str(value)
    return name.removeprefix("torch.") if name.startswith("torch.") else value
