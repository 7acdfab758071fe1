"""A merged model without its base model's weights: what is built, saved and read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.ledger import FileEntry, ledger_entries
from hf_clamu.checkpoint.parsed_config import ParsedConfig
from hf_clamu.exact import digest_json, digest_tensors
from hf_clamu.merging import ClamuArguments, MergedState, routing_features
from hf_clamu.tasks import TaskSpec
from hf_clamu.training import Environment

__all__ = ["FEATURES_KEY", "LINEAR_DIGESTS_KEY", "VECTORS_KEY", "Checkpoint", "SavedFiles"]

# What tasks are clustered by, and the base model's features where those are kept besides.
VECTORS_KEY = "vectors"
FEATURES_KEY = "features"
LINEAR_DIGESTS_KEY = "digests"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFiles:
    """What was found in the folder that a checkpoint was read from.

    Args:
        format_version (`int`): in which the files are written.
        digest (`str`): the ledger's own digest, which covers everything but the model card.
        entries (*mapping* of `str` to `FileEntry`): the files that the ledger lists, by name.
        rewritten (*frozenset* of `str`): those that their tokenizer's or image processor's own `save_pretrained` has
            written again: other bytes, the same content.
        base_values (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the values of each weight that the
            files of an embedded base model are recorded to hold.
    """

    format_version: int
    digest: str
    entries: Mapping[str, FileEntry]
    rewritten: frozenset[str]
    base_values: Mapping[str, bytes] | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a saved model consists of, without the base model's weights.

    Args:
        config (`ClamuConfig`): of the saved model.
        state (`MergedState`): delta, tasks, clusters and masks.
        environment (`Environment`, *optional*): fingerprint of the build; None if no bit depends on it.
        source (*dict*, *optional*): where the tasks' data came from, see `load_tasks`.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the base checkpoint lacks.
        anchors (*mapping* of `str` to `torch.Tensor`): what tasks are clustered by, from public rows; perhaps empty.
        localized_in (`Environment`, *optional*): where clusters, masks and scores were derived, if elsewhere.
        files (`SavedFiles`, *optional*): of the folder that it was read from; None for one that was built.
        known_masks (*mapping* of `str` to `str`): SHA-256 of task masks that stayed as they were, by task id.
        parsed (`ParsedConfig`, *optional*): the entries of the configuration, if they are parsed already.
    """

    config: ClamuConfig
    state: MergedState
    environment: Environment | None
    source: dict[str, Any] | None
    fresh: dict[str, torch.Tensor]
    anchors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    localized_in: Environment | None = None
    files: SavedFiles | None = field(default=None, repr=False, compare=False)
    known_masks: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    parsed: ParsedConfig = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.parsed is None or self.parsed.config is not self.config:
            object.__setattr__(self, "parsed", ParsedConfig(self.config))

    @property
    def arguments(self) -> ClamuArguments:
        """The settings of the build."""
        return self.parsed.arguments

    @property
    def task_spec(self) -> TaskSpec:
        """How rows became tasks."""
        return self.parsed.task_spec

    @property
    def base(self) -> BaseReference:
        """Which base model the tasks were merged into."""
        return self.parsed.base

    def base_config(self) -> dict[str, Any]:
        """Return a copy of the base model's own configuration."""
        return self.parsed.base_config()

    @property
    def base_bits(self) -> int | None:
        """The bits that a weight of the base model's linear layers is stored in; `None` if it is not quantised."""
        settings = self.base.quantization_config or self.base_config().get("quantization_config")
        return None if not settings else 4 if settings.get("load_in_4bit") else 8

    @property
    def max_shard_size(self) -> int:
        """Bytes of a file of the delta and of an embedded base model at most; larger ones are written in shards."""
        return self.config.max_shard_size

    def in_shards(self, max_shard_size: int | None) -> Checkpoint:
        """Return the same merged model, to be saved in files of another size; `None` is the one that it has."""
        if max_shard_size in (None, self.max_shard_size):
            return self
        config = copy.copy(self.config)
        config.max_shard_size = max_shard_size
        return replace(self, config=config)

    @property
    def card(self) -> CardSettings:
        """What the model card shows besides."""
        return self.parsed.card

    @property
    def has_keyed_ids(self) -> bool:
        """Whether the ids of the tasks are keyed commitments."""
        return self.config.task_ids != "plain"

    @property
    def stored_task_masks(self) -> tuple[dict[str, torch.Tensor], ...]:
        """The task masks that are stored besides the cluster masks; empty if they are the same masks."""
        return () if self.state.has_mask_per_task else self.state.task_masks

    @property
    def stored_features(self) -> dict[str, torch.Tensor]:
        """The features of the tasks by their names in the file; empty if there are none."""
        rows = {VECTORS_KEY: self.state.task_features, FEATURES_KEY: self.state.base_features}
        return {name: tensor for name, tensor in rows.items() if tensor is not None}

    @property
    def routing_features(self) -> torch.Tensor | None:
        """What `cluster="auto"` compares an input with, see `hf_clamu.merging.routing_features`."""
        return routing_features(self.state, self.arguments, self.task_spec.kind)

    @cached_property
    def task_mask_digests(self) -> dict[str, str]:
        """The SHA-256 of each task's mask, by task id; empty unless the localization keeps them."""
        masks = dict(zip(self.state.task_ids, self.state.task_masks, strict=True)) if self.state.task_masks else {}
        return {one: self.known_masks[one] if one in self.known_masks else digest_tensors(masks[one]) for one in masks}

    def masks_kept_in(self, state: MergedState) -> dict[str, str]:
        """Return the digests of those task masks that a later state has as they are here."""
        if not self.state.task_masks or not state.task_masks:
            return {}
        ours = dict(zip(self.state.task_ids, self.state.task_masks, strict=True))
        theirs = dict(zip(state.task_ids, state.task_masks, strict=True))
        return {one: self.task_mask_digests[one] for one in theirs if ours.get(one) is theirs[one]}

    @cached_property
    def state_digest(self) -> str:
        """The SHA-256 of everything that is merged."""
        state, features, digests = self.state, self.stored_features, self.state.linear_digests
        by_task = list(self.task_mask_digests.values())
        known = {id(mask): digest for mask, digest in zip(state.task_masks, by_task, strict=True)}
        # A cluster of one task has the task's own mask.
        masks = [known[id(mask)] if id(mask) in known else digest_tensors(mask) for mask in state.masks]
        return digest_json(
            {
                "alpha": state.alpha,
                **({"anchors": digest_tensors(self.anchors)} if self.anchors else {}),
                **({"factors": list(state.factors)} if state.factors else {}),
                **({"global_alpha": state.global_alpha} if state.global_alpha != state.alpha else {}),
                "delta": self.config.delta_digest,  # computed with the state, or compared when it was read
                "ledger": ledger_entries(state),
                **({} if digests is None else {"linear_digests": digest_tensors({LINEAR_DIGESTS_KEY: digests})}),
                "masks": masks,
                "scores": state.scores,
                **({"task_masks": by_task} if self.stored_task_masks else {}),
                "vectors": digest_tensors(features) if features else None,
            }
        )
