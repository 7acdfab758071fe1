"""The configuration of a merged model: at its build, and brought up to date with every change of its state."""

from __future__ import annotations

from hf_clamu.base_models.identity import BaseModel
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_tensors
from hf_clamu.merging import ClamuArguments, MergedState
from hf_clamu.tasks import TaskDataset

__all__ = ["initial_config", "refreshed_config"]


def initial_config(base: BaseModel, tasks: TaskDataset, arguments: ClamuArguments, card: CardSettings) -> ClamuConfig:
    """Return the configuration that a build starts from; it does not yet say what was merged.

    What is merged under which settings is the whole configuration; it names no machine.

    Raises:
        RecipeError: if the card names another base model than the one that was loaded from the Hub.
    """
    if base.name_or_path and card.base_model not in (None, base.name_or_path):
        raise RecipeError(
            f"card: base_model is {card.base_model}, but the base model was loaded from the Hub as "
            f"{base.name_or_path}. Leave it out: the card names the one that was loaded."
        )
    return ClamuConfig(
        architecture=type(base.model).__name__,
        base_model=base.reference().to_dict(),
        base_config=base.config_dict(),
        generation_config=base.generation_dict(),
        arguments=arguments.to_dict(),
        task_spec=tasks.spec.to_dict(),
        task_ids="hmac-sha256" if tasks.is_keyed else "plain",
        peft_config=None if base.space is None else base.space.to_dict(),
        peft_merging=None if base.space is None else base.space.merging,
        card=card.to_dict(),
    )


def refreshed_config(config: ClamuConfig, state: MergedState) -> ClamuConfig:
    """Return a configuration with what it says of the state brought up to date."""
    values = config.to_file_dict()
    del values["model_type"], values["architectures"]
    values |= {
        "delta_digest": state.delta_digest or digest_tensors(state.delta),
        "alpha": state.alpha,
        "global_alpha": state.global_alpha,
        "scores": state.scores,
        "num_tasks": len(state.records),
        "num_clusters": len(state.clusters),
        "cluster_names": list(state.cluster_names),
    }
    return ClamuConfig(**values)
