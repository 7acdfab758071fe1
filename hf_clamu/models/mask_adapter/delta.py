"""The merged delta that all mask adapters of one model share: found, checked and attached once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import base_digest
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig, current_entries, format_version
from hf_clamu.checkpoint.files.shards import index_of, read_shards
from hf_clamu.checkpoint.files.tensors import read_tensor_file
from hf_clamu.checkpoint.layout import CONFIG_NAME, FRESH_NAME, delta_name
from hf_clamu.checkpoint.ledger import read_json
from hf_clamu.checkpoint.masks import checked_factors, split_mask
from hf_clamu.errors import CheckpointFormatError, HubError, IncompatibleBaseError, RecipeError, StaleMaskError
from hf_clamu.exact import NO_WEIGHTS, PackedMask, WeightSwitch, digest_tensors, packed_size
from hf_clamu.hub.pull import download_file
from hf_clamu.merging import ClamuArguments
from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["DeltaSource", "SharedDelta"]


@dataclass(frozen=True)
class DeltaSource:
    """Where a saved ClAMU model is.

    Args:
        name_or_path (`str`): a folder, or the id of a Hub repo.
        revision (`str`, *optional*): branch, tag or commit of the repo.
        subfolder (`str`): where in the repo the saved model is.
        options (*mapping*): `token`, `cache_dir` and other options of `hf_hub_download`.
    """

    name_or_path: str
    revision: str | None = None
    subfolder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def on_hub(self) -> bool:
        """Whether others find it too."""
        return not Path(self.name_or_path).exists()

    def file(self, name: str) -> Path | None:
        """Return the local path of a file, downloaded if need be; `None` if the saved model has none of that name.

        Raises:
            HubError: if it cannot be fetched, so that it is not known.
            CheckpointFormatError: if there is no such place.
        """
        if not self.on_hub:
            path = Path(self.name_or_path) / self.subfolder / name
            return path if path.is_file() else None
        return download_file(
            self.name_or_path, name, revision=self.revision, subfolder=self.subfolder, options=self.options
        )

    def pinned(self) -> DeltaSource:
        """Return the same place with the commit in place of a branch, so that all files are of one commit."""
        from transformers.utils.hub import extract_commit_hash

        path = self.file(CONFIG_NAME) if self.on_hub else None
        commit = None if path is None else extract_commit_hash(str(path), None)
        return self if commit is None else replace(self, revision=commit)


@dataclass
class SharedDelta:
    """A merged delta on a live model, with the one switch that flips its weights.

    Args:
        digest (`str`): SHA-256 of the merged delta.
        alpha (`float`): the scaling coefficient.
        num_weights (*dict* of `str` to `int`): weights per parameter that takes part.
        switch (`WeightSwitch`): made for the live model.
        rest (`PackedMask`): what the weights hold without an adapter.
        source (`DeltaSource`, *optional*): where it was loaded from.
    """

    digest: str
    alpha: float
    num_weights: dict[str, int]
    switch: WeightSwitch
    rest: PackedMask
    source: DeltaSource | None = None

    @classmethod
    def load(cls, model: Any, source: DeltaSource) -> SharedDelta:
        """Load the delta of a saved model for a base model, which must be the one that was merged into.

        Args:
            model (`transformers.PreTrainedModel`): the base model. Parameters that its checkpoint lacks (a fresh
                head) are taken from the saved model.
            source (`DeltaSource`): where the saved model is.

        Raises:
            CheckpointFormatError: if there is no saved model, or it is damaged.
            IncompatibleBaseError: if the base model has other weights; nothing is changed then.
        """
        pinned = source.pinned()
        config = _read_config(pinned)
        space = PeftSpace.of(config["peft_config"], config["peft_merging"])
        if space is not None and space.is_live:
            raise IncompatibleBaseError(
                f"The merged delta of {source.name_or_path} is of a {space.peft_type} adapter's parameters, which a "
                "base model does not have. Load it with ClamuModel.from_pretrained, or let ClamuModel.export(..., "
                "merge=False) write a cluster's adapter for PEFT."
            )
        arguments = config["arguments"]
        path, delta = _read_delta(pinned, delta_name(config["format_version"]))
        digest = digest_tensors(delta)
        if digest != config["delta_digest"]:
            raise CheckpointFormatError(f"{path} is not the delta that {CONFIG_NAME} names. Take an undamaged copy.")
        _restore_base(model, config, _read_fresh(pinned, model, config))
        parameters = dict(model.named_parameters())
        missing = sorted(delta.keys() - parameters.keys())
        if missing:
            raise IncompatibleBaseError(
                f"The merged delta has the parameters {missing[:3]}, which this {type(model).__name__} lacks. Load a "
                f"{config['architecture']}."
            )
        switch = WeightSwitch(parameters, delta, config["alpha"], arguments.codec)
        num_weights = {name: steps.numel() for name, steps in delta.items()}
        # The place as it was named, not the commit: after a request the repo has another delta, and masks that were
        # saved with this one must be refused, not served from the old commit.
        return cls(
            digest=digest,
            alpha=config["alpha"],
            num_weights=num_weights,
            switch=switch,
            rest=NO_WEIGHTS,
            source=source,
        )

    @classmethod
    def of_clamu_model(cls, model: ClamuModel) -> SharedDelta:
        """Return the delta that a `ClamuModel` has attached; without an adapter it stays as it is now."""
        config, switch = model.clamu_config, model.merged.switch
        num_weights = {name: steps.numel() for name, steps in model.merged.state.delta.items()}
        return cls(config.delta_digest, config.alpha, num_weights, switch, switch.selected)

    @property
    def num_bytes(self) -> int:
        """Bytes of one mask."""
        return sum(map(packed_size, self.num_weights.values()))

    def require(self, config: Any) -> None:
        """Check that a mask was made for this delta.

        Raises:
            StaleMaskError: if it was made for another one, or with another scaling coefficient.
            CheckpointFormatError: if its factors are not those of this delta's parameters.
        """
        for what, found, expected in (
            ("merged delta", config.delta_digest, self.digest),
            ("scaling coefficient", config.alpha, self.alpha),
        ):
            if found != expected:
                raise StaleMaskError(
                    f"The mask of cluster {config.cluster} was made for another {what}: expected {expected}, found "
                    f"{found}. Tasks were merged or unmerged in between: take the mask from the same saved model as "
                    "the delta."
                )
        if config.factors is not None:
            checked_factors(f"the mask of cluster {config.cluster}", config.factors, self.num_weights)

    def is_attached_to(self, model: Any) -> bool:
        """Whether the model still serves this delta; a `ClamuModel` gets another with every request."""
        return not isinstance(model, ClamuModel) or model.merged.switch is self.switch

    def mask(self, bits: torch.Tensor, factors: Mapping[str, float] | None) -> PackedMask:
        """Return an adapter's tensor and factors as a mask over all parameters that take part."""
        return PackedMask(bits=split_mask(bits.detach(), self.num_weights), factors=factors)


def _read_config(source: DeltaSource) -> dict[str, Any]:
    """Return the entries of a saved model's `config.json` that adapters need."""
    path = source.file(CONFIG_NAME)
    values = {} if path is None else read_json(path)
    if values.get("model_type") != ClamuConfig.model_type:
        raise CheckpointFormatError(
            f"{source.name_or_path} holds no saved ClAMU model, so there is no merged delta for the mask. Give the "
            "saved model with hf_clamu.models.mask_adapter.attach_delta(model, folder_or_hub_id) first."
        )
    found: dict[str, Any] = {"format_version": format_version(values, path)}
    values = current_entries(values)
    try:
        found |= {key: values[key] for key in ("delta_digest", "alpha", "base_model", "architecture")}
        found |= {key: values.get(key) for key in ("peft_config", "peft_merging")}
        found["base_model"]["digest"]
        found["arguments"] = ClamuArguments.from_dict(values["arguments"])
    except (KeyError, TypeError, RecipeError) as error:
        raise CheckpointFormatError(f"{path} lacks an entry or holds an unknown one: {error}.") from error
    return found


def _read_delta(source: DeltaSource, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a saved model's merged delta, and the file that it was read from or the index of its shards."""

    def place_of(shard: str) -> Path:
        path = source.file(shard)
        if path is None:
            raise CheckpointFormatError(f"{source.name_or_path} has no {shard}. Take an undamaged copy.")
        return path

    path = source.file(name)
    if path is not None:
        return path, read_tensor_file(path)
    index = source.file(index_of(Path(name)).name)
    return (place_of(name), {}) if index is None else (index, read_shards(index, place_of))


def _read_fresh(source: DeltaSource, model: Any, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the values of parameters that the base checkpoint lacks; most saved models have none."""
    try:
        path = source.file(FRESH_NAME)
    except HubError as error:
        if base_digest(model) == config["base_model"]["digest"]:
            return {}  # nothing in it could matter
        raise HubError(
            f"This {type(model).__name__} has other weights than the base model that was merged into. The values in "
            f"{FRESH_NAME} may make it that one, but it cannot be told: {error}"
        ) from error
    return {} if path is None else read_tensor_file(path)


def _restore_base(model: Any, config: Mapping[str, Any], fresh: Mapping[str, torch.Tensor]) -> None:
    """Give the model the recorded values of parameters that its checkpoint lacks, and prove that it is `M0`."""
    own = model.state_dict()
    odd = [name for name, value in fresh.items() if name not in own or own[name].shape != value.shape]
    if odd:
        raise IncompatibleBaseError(
            f"The saved model has {odd[0]!r} of shape {tuple(fresh[odd[0]].shape)}, the base model has not. Load a "
            f"{config['architecture']} with as many labels (num_labels=) as the saved model."
        )
    before = {name: own[name].clone() for name in fresh}
    with torch.no_grad():
        for name, value in fresh.items():
            own[name].copy_(value)
        if base_digest(model) == config["base_model"]["digest"]:
            return
        for name, value in before.items():
            own[name].copy_(value)
    expected = config["base_model"].get("dtype")
    found = str(model.dtype).removeprefix("torch.")
    raise IncompatibleBaseError(
        f"This {type(model).__name__} ({found}) has other weights than the base model that was merged into "
        f"({config['architecture']}, {expected}): its digest differs. Load "
        f"{config['base_model'].get('name_or_path') or 'the base model in the folder base_model'} at revision "
        f"{config['base_model'].get('revision')} with dtype=torch.{expected}."
    )
