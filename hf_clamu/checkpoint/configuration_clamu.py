"""The configuration of a saved model: which base, which recipe, how many clusters."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

__all__ = ["FORMAT_VERSION", "ClamuConfig"]

FORMAT_VERSION = 1


class ClamuConfig(PreTrainedConfig):
    """Configuration of a saved ClAMU model.

    A loaded model carries the configuration of its base architecture as `model.config`, as every tool expects; this
    one is `model.clamu_config`.

    Args:
        format_version (`int`): version of the file format.
        architecture (`str`): class name of the base model in transformers.
        base_model (*dict*): `name_or_path`, `revision` (commit of the Hub repo), `digest` (SHA-256 of all weights) and
            `embedded` (whether the base model is inside this folder, at `base_model/`).
        base_config (*dict*): the base model's own configuration.
        generation_config (*dict*, *optional*): the base model's defaults for `generate`.
        arguments (*dict*): the settings of the build, see `ClamuArguments`.
        task_spec (*dict*): how rows became tasks, see `TaskSpec`.
        delta_digest (`str`): SHA-256 of the merged delta.
        alpha (`float`): the scaling coefficient of the merged delta.
        num_tasks (`int`): merged tasks.
        num_clusters (`int`): clusters, each with a mask unless the localization is `global`.
        scores (*dict*, *optional*): held-out scores of the merged tasks, see `score_clusters`.
        task_ids (`str`): `"plain"`, or `"hmac-sha256"` if the ids in the ledger are keyed commitments.
        peft_config (*dict*, *optional*): the PEFT adapter that tasks are finetuned through, if there is one.
        peft_merging (`str`, *optional*): how it is merged, see `ClamuTrainer`.
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
    num_tasks: int = 0
    num_clusters: int = 0
    scores: dict[str, Any] | None = None
    task_ids: str = "plain"
    peft_config: dict[str, Any] | None = None
    peft_merging: str | None = None
    card: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
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
            "base_config": self.base_config,
            "generation_config": self.generation_config,
            "arguments": self.arguments,
            "task_spec": self.task_spec,
            "delta_digest": self.delta_digest,
            "alpha": self.alpha,
            "num_tasks": self.num_tasks,
            "num_clusters": self.num_clusters,
            "scores": self.scores,
            "task_ids": self.task_ids,
            "peft_config": self.peft_config,
            "peft_merging": self.peft_merging,
            "card": self.card,
        }


AutoConfig.register("clamu", ClamuConfig, exist_ok=True)
