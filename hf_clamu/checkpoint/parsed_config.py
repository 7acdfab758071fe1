"""The entries of a saved model's configuration, parsed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.merging import ClamuArguments
from hf_clamu.tasks import TaskSpec

__all__ = ["ParsedConfig"]


class ParsedConfig:
    """A configuration whose entries are parsed when they are first asked for.

    The configuration itself keeps them as they stand in the file, so that saving a loaded model gives the same bytes.

    Args:
        config (`ClamuConfig`): of a saved or built model.
    """

    def __init__(self, config: ClamuConfig) -> None:
        self.config = config

    @cached_property
    def arguments(self) -> ClamuArguments:
        """The settings of the build."""
        return ClamuArguments.from_dict(_entry(self.config.arguments))

    @cached_property
    def task_spec(self) -> TaskSpec:
        """How rows became tasks."""
        return TaskSpec.from_dict(_entry(self.config.task_spec))

    @cached_property
    def base(self) -> BaseReference:
        """The base model."""
        return BaseReference.from_dict(_entry(self.config.base_model))

    def base_config(self) -> dict[str, Any]:
        """Return a copy of the base model's own configuration: classes of transformers change what they read."""
        return dict(_entry(self.config.base_config))

    @cached_property
    def card(self) -> CardSettings:
        """What the model card shows besides."""
        return CardSettings.from_dict(_entry(self.config.card))


def _entry(values: dict[str, Any] | None) -> dict[str, Any]:
    return {} if values is None else values
