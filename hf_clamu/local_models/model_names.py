"""What a live model calls its tensors, and what its checkpoints call them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["ModelNames"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelNames:
    """What a live model calls its tensors; its checkpoints may use other names.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        parameters (*dict* of `str` to `torch.nn.Parameter`): each once, by its name.
        aliases (*dict* of `str` to `str`): other names of tied parameters.
        buffers (*dict* of `str` to `torch.Tensor`): what is saved besides parameters.
        computed (*frozenset* of `str`): buffers that are computed at each load.
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

    def first_name(self, name: str) -> str:
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

        # Made at each call: some rules remember what they have seen.
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
