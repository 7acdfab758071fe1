"""The model card of a saved model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_clamu.checkpoint.card_settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.merging import ClamuArguments, MergedState, have_data
from hf_clamu.tasks import KindTraits, traits_of

__all__ = ["model_card"]

_SERVED = {"base": "base model", "global": "global model", "own": "own cluster"}


def model_card(config: ClamuConfig, state: MergedState, source: Mapping[str, Any] | None) -> str:
    """Write the card: a function of what is saved, so that the same model has the same card.

    Args:
        config (`ClamuConfig`): of the saved model.
        state (`MergedState`): what is merged.
        source (*mapping*, *optional*): where the tasks' data came from, as the ledger has it.
    """
    from huggingface_hub import ModelCard

    settings = CardSettings.from_dict(config.card or {})
    sections = [
        f"---\n{_metadata(config, state, source, settings)}\n---",
        f"# ClAMU: {len(state.records)} tasks merged into {_base_name(config)}",
        _introduction(config, state),
        _use(config, state),
        _clusters(config, state, settings),
        _storage(config, state),
        _recipe(config, state),
        _promise(config, state),
    ]
    return str(ModelCard("\n\n".join(sections) + "\n"))


def _metadata(
    config: ClamuConfig, state: MergedState, source: Mapping[str, Any] | None, settings: CardSettings
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base: Mapping[str, Any] = config.base_model or {}
    pipeline_tag = _traits(config).pipeline
    named = (source or {}).get("dataset")
    datasets = settings.datasets or ((str(named),) if named else ())
    results = None
    if state.scores is not None:
        metric = _traits(config).metric
        best = "own" if "own" in state.scores["mean"] else "global"
        result = EvalResult(
            task_type=pipeline_tag,
            dataset_type=datasets[0] if datasets else "clamu-tasks",
            dataset_name="Validation examples of the merged tasks",
            dataset_split="validation",
            metric_type=metric,
            metric_name=f"{metric.replace('_', ' ').capitalize()} under the {_SERVED[best]}, mean over tasks",
            metric_value=round(state.scores["mean"][best], 4),
        )
        results = [result]
    return ModelCardData(
        base_model=base.get("name_or_path") or None,
        datasets=list(datasets) or None,
        eval_results=results,
        language=list(settings.language) or None,
        library_name="hf-clamu",
        license=settings.license,
        # The Hub asks for a name beside results.
        model_name="ClAMU" if results else None,
        pipeline_tag=pipeline_tag,
        tags=["clamu", "model-merging", "machine-unlearning", "peft", *settings.tags],
    ).to_yaml()


def _traits(config: ClamuConfig) -> KindTraits:
    return traits_of(str((config.task_spec or {}).get("kind")))


def _base_name(config: ClamuConfig) -> str:
    name = (config.base_model or {}).get("name_or_path")
    return str(name) if name else f"a {config.architecture}"


def _introduction(config: ClamuConfig, state: MergedState) -> str:
    base: Mapping[str, Any] = config.base_model or {}
    where = (
        "is inside, in `base_model/`"
        if base.get("embedded")
        else f"is loaded from the Hub at `{base.get('revision')}`"
    )
    masks = f" A binary mask for each of {len(state.masks)} clusters says where it acts." if state.masks else ""
    return (
        f"{len(state.records)} owners of data (tasks) each finetuned the base model on their own; their task vectors "
        f"are added into one merged delta.{masks} Any task can be forgotten exactly, see below. "
        f"The base model {where}."
    )


def _use(config: ClamuConfig, state: MergedState) -> str:
    pipeline_tag = _traits(config).pipeline
    text = f"""## Use

`pip install hf-clamu`, then, with the id of this repo or the path of this folder:

```python
from hf_clamu import ClamuModel, pipeline

model = ClamuModel.from_pretrained("ORG/NAME")  # a {config.architecture}, the global model
model.set_cluster(0)  # or set_cluster(task="id of a task")
pipe = pipeline("{pipeline_tag}", model, cluster=0)

model.unmerge_task({_again(state)}
model.push_to_hub(erase_history=True)
```"""
    # Masks in the space of an adapter need the adapter around them, which PEFT does not know of.
    if not state.masks or config.peft_merging in ("frozen_a", "parameters"):
        return text
    return f"""{text}

Each mask is a PEFT adapter of the base model; the import of hf_clamu makes its type known:

```python
import hf_clamu
from peft import PeftModel
from transformers import {config.architecture}

base_model = {config.architecture}.from_pretrained({_base_arguments(config)})
model = PeftModel.from_pretrained(base_model, "ORG/NAME", subfolder="masks/cluster_000")
```"""


def _base_arguments(config: ClamuConfig) -> str:
    """Return what transformers loads the base model with, as code."""
    base: Mapping[str, Any] = config.base_model or {}
    if base.get("embedded"):
        return '"ORG/NAME", subfolder="base_model"'
    labels = (config.base_config or {}).get("id2label")
    count = f", num_labels={len(labels)}" if labels and "Classification" in config.architecture else ""
    return f'"{base.get("name_or_path")}", revision="{base.get("revision")}"{count}'


def _clusters(config: ClamuConfig, state: MergedState, settings: CardSettings) -> str:
    scores = state.scores
    columns = ["cluster", "tasks", "training examples"]
    names = list(scores["mean"]) if scores is not None else []
    columns += [_SERVED[name] for name in names]
    if settings.task_ids:
        columns.append("members")
    rows = []
    for number, members in enumerate(state.clusters):
        examples = sum(state.records[task_id].num_train for task_id in members)
        found = scores["clusters"][number] if scores is not None else None
        rows.append(
            [str(number), str(len(members)), f"{examples:,}" if have_data(state.records) else "–"]
            + [_percent(found[name]) if found else "–" for name in names]
            + ([", ".join(map(_escaped, members))] if settings.task_ids else [])
        )
    total = sum(record.num_train for record in state.records.values())
    mean = [_percent(scores["mean"][name]) for name in names] if scores is not None else []
    shown = f"{total:,}" if have_data(state.records) else "–"
    rows.append(["all", str(len(state.records)), shown, *mean, *[""] * settings.task_ids])
    text = f"## Clusters\n\n{_table(columns, rows)}"
    if scores is None:
        return text
    arguments = ClamuArguments.from_dict(config.arguments or {})
    # What was chosen by these examples is no longer held out from them.
    chosen = ["alpha"] * (arguments.scaling == "auto") + list(arguments.localization_method.chooses)
    also = f" They also chose {' and '.join(chosen)}." if chosen else ""
    metric = _traits(config).metric.replace("_", " ")
    return (
        f"{text}\n\nPercentages are the {metric} on {scores['num_examples']:,} validation "
        f"examples, which no training saw, of {scores['num_tasks']} tasks; each task counts the same.{also}"
    )


def _storage(config: ClamuConfig, state: MergedState) -> str:
    weights = sum(steps.numel() for steps in state.delta.values())
    embedded = (config.base_model or {}).get("embedded")
    rows = [
        ["base model", "in `base_model/`" if embedded else "on the Hub, not counted here"],
        ["merged delta", f"{sum(steps.nbytes for steps in state.delta.values()):,} bytes for {weights:,} weights"],
        ["masks", f"{_mask_bytes(state.masks):,} bytes, a bit per weight"],
    ]
    if not state.has_mask_per_task and state.task_masks:
        rows.append(["masks of the tasks", f"{_mask_bytes(state.task_masks):,} bytes, of which the others are made"])
    return f"## Storage\n\n{_table(['part', 'size'], rows)}"


def _mask_bytes(masks: Sequence[Mapping[str, torch.Tensor]]) -> int:
    return sum(bits.nbytes for mask in masks for bits in mask.values())


def _recipe(config: ClamuConfig, state: MergedState) -> str:
    defaults = ClamuArguments().to_dict()
    arguments: Mapping[str, Any] = config.arguments or {}
    always: tuple[str, ...] = ("clustering", "localization", "scaling", "seed")
    if not _from_elsewhere(state):
        always += ("finetune_steps", "learning_rate", "batch_size")
    shown = [name for name in arguments if name in always or arguments[name] != defaults.get(name)]
    rows = [[f"`{name}`", f"`{arguments[name]}`"] for name in sorted(shown)]
    rows.append(["scaling coefficient alpha", f"{state.alpha:.6g}"])
    if _from_elsewhere(state):
        rows.append(["local models", "finetuned elsewhere, and merged from their checkpoints"])
    if config.peft_config is not None:
        rows.append(["finetuned through", f"{config.peft_config.get('peft_type')}, merged as `{config.peft_merging}`"])
    return f"## Recipe\n\n{_table(['setting', 'value'], rows)}\n\n`config.json` holds all of it."


def _from_elsewhere(state: MergedState) -> bool:
    return bool(state.records) and all(record.from_checkpoint for record in state.records.values())


def _again(state: MergedState) -> str:
    if not _from_elsewhere(state):
        return '"id of a task")  # needs the data of the tasks'
    return '"id of a task", checkpoints={"id of a task": "its folder"})  # as it was merged'


def _promise(config: ClamuConfig, state: MergedState) -> str:
    names = "keyed commitments to the tasks' ids" if config.task_ids != "plain" else "the ids of the merged tasks"
    how, of_what = "retrains a task alone", "data"
    if _from_elsewhere(state):
        how, of_what = "reads the checkpoint of a task again", "checkpoints"
    return f"""## Forgetting

`unmerge_task` {how}, checks its SHA-256, subtracts it and derives clusters and masks from the tasks
that are left: byte for byte what a build without the task gives, with the same recipe and environment. `clamu verify`
proves it from the {of_what} of the merged tasks. `ledger.json` holds {names}, with digests
of their task vectors and tokenised data.

This is exact unlearning, not privacy: copies that others downloaded, and exports, do not forget. Numbers on this card
are of the tasks that are merged now.

Source of the method: "Exact unlearning of finetuning data via model merging at scale" (ClAMU)."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _escaped(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
