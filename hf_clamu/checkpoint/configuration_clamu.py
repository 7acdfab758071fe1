"""The configuration of a saved model: which base, which recipe, how many clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hf_clamu.errors import CheckpointFormatError

__all__ = ["DEFAULT_MAX_SHARD_SIZE", "FORMAT_VERSION", "ClamuConfig", "current_entries", "format_version"]

FORMAT_VERSION = 4

# Bytes: "50GB", as transformers has it; here it stays what it is, because where a shard ends are saved bytes.
DEFAULT_MAX_SHARD_SIZE = 50 * 10**9

# What entries and settings that a version lacks stand for: the behaviour of its time, whatever the defaults are today.
_LACKING_ENTRIES: dict[int, dict[str, Any]] = {1: {}, 2: {}, 3: {}}
_LACKING_SETTINGS: dict[int, dict[str, Any]] = {
    1: {"global_scaling": "same", "keep_features": False},
    2: {
        "integer_bits": 32,
        # Some models of format 2 have these.
        "mask_factors": "none",
        "mask_gradient_norm": "raw",
        "mask_learning_rate": None,
        "mask_scaling_schedule": "constant",
        "mask_ramp_start": 0.05,
        "mask_ramp_length": 0.7,
        "scaling_search": "full",
    },
    3: {"linear_digest": False},
}

# A class of transformers that is asked for a saved model looks for weights in the file that this entry names, and
# raises an error that shows it.
_WEIGHTS_ENTRY = "transformers_weights"
_NO_WEIGHTS = (
    "none, this is a ClAMU model: load it with hf_clamu.ClamuModel.from_pretrained, or after `import hf_clamu` with "
    "an Auto class or pipeline of transformers; `clamu export` makes a plain checkpoint of it"
)


def format_version(values: Mapping[str, Any], path: object) -> int:
    """Return the version that a `config.json` or a ledger is written in.

    Args:
        values (*mapping*): its content.
        path (`Path`): for the message.

    Raises:
        CheckpointFormatError: if this release does not know it.
    """
    version = values.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointFormatError(
            f"{path} has format version {version!r}, this release reads up to {FORMAT_VERSION}. Upgrade hf_clamu."
        )
    return version


def current_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a `config.json` as the present format has them, whichever version wrote them.

    This is the one place that knows what older versions lack.

    Args:
        values (*mapping*): the content of a `config.json`; it stays as it is.
    """
    version = values.get("format_version")
    entries = {key: value for key, value in values.items() if key != _WEIGHTS_ENTRY}
    if type(version) is not int or not 1 <= version < FORMAT_VERSION:
        return entries
    arguments = values.get("arguments")
    for older in range(version, FORMAT_VERSION):
        entries = {**_LACKING_ENTRIES[older], **entries}
        if older == 1 and "alpha" in entries:  # one coefficient was that of the masks and of the global model
            entries.setdefault("global_alpha", entries["alpha"])
        if isinstance(arguments, dict):
            arguments = {**_LACKING_SETTINGS[older], **arguments}
    return {**entries, "arguments": arguments, "format_version": FORMAT_VERSION}


class ClamuConfig(PreTrainedConfig):
    """Configuration of a saved ClAMU model.

    A loaded model carries the configuration of its base architecture as `model.config`, as every tool expects; this
    one is `model.clamu_config`.

    Args:
        format_version (`int`): version of the file format.
        architecture (`str`): class name of the base model in transformers.
        base_model (*dict*): `name_or_path`, `revision` (commit of the Hub repo), `digest` (SHA-256 of all weights) and
            `embedded` (whether the base model is inside this folder, at `base_model/`); and `quantization_config`, if
            it is quantised at each load.
        base_config (*dict*): the base model's own configuration.
        generation_config (*dict*, *optional*): the base model's defaults for `generate`.
        arguments (*dict*): the settings of the build, see `ClamuArguments`.
        task_spec (*dict*): how rows became tasks, see `TaskSpec`.
        delta_digest (`str`): SHA-256 of the merged delta.
        alpha (`float`): the scaling coefficient of the merged delta under the masks.
        global_alpha (`float`): that of the merged delta without a mask, which is the global model.
        num_tasks (`int`): merged tasks.
        num_clusters (`int`): clusters, each with a mask unless the localization is `global`.
        cluster_names (*list* of `str`, *optional*): their names, no two alike; format 1 had none.
        scores (*dict*, *optional*): held-out scores of the merged tasks, see `score_clusters`.
        task_ids (`str`): `"plain"`, or `"hmac-sha256"` if the ids in the ledger are keyed commitments.
        peft_config (*dict*, *optional*): the PEFT adapter that tasks are finetuned through, if there is one.
        peft_merging (`str`, *optional*): how it is merged, see `ClamuTrainer`.
        public_rows (*dict*, *optional*): `digest` (SHA-256 of their tokenised form) and `num_rows` of the rows that
            anchors were placed in; written only if there are any.
        max_shard_size (`int`): bytes of a file of the merged delta and of an embedded base model at most.
        card (*dict*, *optional*): what the model card shows besides, see `CardSettings`.
    """

    model_type = "clamu"

    format_version: int = FORMAT_VERSION
    architecture: str = ""
    base_model: dict[str, Any] | None = None
    base_config: dict[str, Any] | None = None
    generation_config: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    task_spec: dict[str, Any] | None = None
    delta_digest: str = ""
    alpha: float = 0.0
    global_alpha: float = 0.0
    num_tasks: int = 0
    num_clusters: int = 0
    cluster_names: list[str] | None = None
    scores: dict[str, Any] | None = None
    task_ids: str = "plain"
    peft_config: dict[str, Any] | None = None
    peft_merging: str | None = None
    public_rows: dict[str, Any] | None = None
    max_shard_size: int = DEFAULT_MAX_SHARD_SIZE
    card: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of the content of a `config.json`, of any version, as transformers does."""
        made: Any = super().from_dict(current_entries(config_dict), **kwargs)
        return made

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.base_config, dict):
            self.base_config = {key: value for key, value in self.base_config.items() if key != _WEIGHTS_ENTRY}
        # Tools ask the configuration for the labels before they load a model.
        if self.id2label is None and self.base_config is not None:
            self.id2label, self.label2id = (self.base_config.get(key) for key in ("id2label", "label2id"))
        post_init: Any = super().__post_init__
        post_init(**kwargs)

    def to_file_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: only our own fields, so that the same model gives the same bytes."""
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "format_version": self.format_version,
            "architecture": self.architecture,
            "base_model": self.base_model,
            # transformers may take this for the configuration of the whole model.
            "base_config": None if self.base_config is None else {**self.base_config, _WEIGHTS_ENTRY: _NO_WEIGHTS},
            "generation_config": self.generation_config,
            "arguments": self.arguments,
            "task_spec": self.task_spec,
            "delta_digest": self.delta_digest,
            "alpha": self.alpha,
            "global_alpha": self.global_alpha,
            "num_tasks": self.num_tasks,
            "num_clusters": self.num_clusters,
            "cluster_names": self.cluster_names,
            "scores": self.scores,
            "task_ids": self.task_ids,
            "peft_config": self.peft_config,
            "peft_merging": self.peft_merging,
            **({} if self.public_rows is None else {"public_rows": self.public_rows}),
            "max_shard_size": self.max_shard_size,
            "card": self.card,
            _WEIGHTS_ENTRY: _NO_WEIGHTS,
        }


AutoConfig.register("clamu", ClamuConfig, exist_ok=True)
