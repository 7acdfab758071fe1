"""The entries of a saved model's configuration, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.merging import ClamuArguments, TaskRecord, is_plain, names_of
from hf_clamu.tasks import TaskSpec

__all__ = ["ParsedConfig", "cluster_names"]


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


def cluster_names(
    parsed: ParsedConfig, records: Mapping[str, TaskRecord], clusters: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    """Return the names of the clusters; a model of format 1, which had none, gets those that a build gives them now.

    Args:
        parsed (`ParsedConfig`): the configuration.
        records (*mapping* of `str` to `TaskRecord`): the merged tasks.
        clusters (*tuple* of *tuple* of `str`): their members.

    Raises:
        CheckpointFormatError: if they are no names of these clusters.
    """
    names = parsed.config.cluster_names
    if names is None:
        keys = {task_id: record.cluster_key for task_id, record in records.items()}
        return names_of(clusters, keys, None, parsed.arguments)
    is_list = isinstance(names, list) and all(isinstance(name, str) and is_plain(name) for name in names)
    if not is_list or len(set(names)) != len(names) or len(names) != len(clusters):
        raise CheckpointFormatError(
            f"config.json must have a different name for each of {len(clusters)} clusters in 'cluster_names', and "
            f"none that reads as a number; found {str(names)[:80]}. Take an undamaged copy."
        )
    return tuple(names)
