"""The model card of a saved model, from its template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

# Not ModelCard.from_template: it needs jinja2, which hf_clamu does not depend on.
from string import Template
from typing import Any

import torch

from hf_clamu.checkpoint.base_reference import is_hub_id
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.merging import ClamuArguments, MergedState, deriving_reads_data, have_data, own_name
from hf_clamu.tasks import traits_of

__all__ = ["model_card"]

_SERVED = {"base": "base model", "global": "global model", "own": "own cluster"}


def model_card(checkpoint: Checkpoint) -> str:
    """Return the card: a function of what is saved, so that the same model has the same card.

    Args:
        checkpoint (`Checkpoint`): what is saved.
    """
    from huggingface_hub import ModelCard

    config, state, base = checkpoint.config, checkpoint.state, checkpoint.base
    is_from_elsewhere = _is_from_elsewhere(state)
    text = _template("template.md").substitute(
        metadata=_metadata(checkpoint),
        num_tasks=len(state.records),
        base_name=_base_id(checkpoint) or f"a {config.architecture}",
        mask_sentence=(
            f" A binary mask for each of {len(state.masks)} clusters says where it acts." if state.masks else ""
        ),
        base_location=(
            "is inside, in `base_model/`" if base.embedded else f"is loaded from the Hub at `{base.revision}`"
        ),
        architecture=config.architecture,
        pipeline_tag=traits_of(checkpoint.task_spec.kind).pipeline,
        unmerge_arguments=(
            '"id of a task", checkpoints={"id of a task": "its folder"})  # as it was merged'
            if is_from_elsewhere
            else f'"id of a task")  # needs {_needed_rows(checkpoint)}'
        ),
        by_name=_by_name(checkpoint),
        peft_use=_peft_use(checkpoint),
        cluster_table=_cluster_table(checkpoint),
        scores_note=_scores_note(checkpoint),
        storage_table=_storage_table(checkpoint),
        recipe_table=_recipe_table(checkpoint),
        retrains="reads the checkpoint of a task again" if is_from_elsewhere else "retrains a task alone",
        inputs="checkpoints" if is_from_elsewhere else "data",
        ledger_ids=(
            "keyed commitments to the tasks' ids" if checkpoint.has_keyed_ids else "the ids of the merged tasks"
        ),
    )
    return str(ModelCard(text))


def _needed_rows(checkpoint: Checkpoint) -> str:
    """Return what a request to forget a task needs, beside the model."""
    if deriving_reads_data(checkpoint.state, checkpoint.arguments):
        return "the rows of all merged tasks, or a snapshot of them"
    return "the rows of this task, a snapshot of them, or an archive with its vector"


def _template(name: str) -> Template:
    return Template(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _base_id(checkpoint: Checkpoint) -> str | None:
    """Return the Hub id of the base model: the one it was loaded by, otherwise what the user says it is.

    The `_name_or_path` of an embedded model's configuration is no such word: it survives any change of the weights.
    """
    name = checkpoint.base.name_or_path
    return name if name and is_hub_id(name) else checkpoint.card.base_model


def _metadata(checkpoint: Checkpoint) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    state, settings, traits = checkpoint.state, checkpoint.card, traits_of(checkpoint.task_spec.kind)
    source_name = (checkpoint.source or {}).get("dataset")
    datasets = settings.datasets or ((str(source_name),) if source_name else ())
    base_id = _base_id(checkpoint)
    # A "merge" on the Hub names two or more models that are there. Local models are nowhere; they are finetunes of
    # this one model, and so is their sum. Left out, the Hub guesses by files, and those of masks look like adapters.
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if base_id else {}
    # The Hub's newer form, `.eval_results/*.yaml`, is for tasks of data sets that are registered as benchmarks.
    # Validation examples of owners are none, so that `model-index` remains the form for them.
    results = None
    if state.scores is not None:
        best = "own" if "own" in state.scores["mean"] else "global"
        result = EvalResult(
            task_type=traits.pipeline,
            dataset_type=datasets[0] if datasets else "clamu-tasks",
            dataset_name="Validation examples of the merged tasks",
            dataset_split="validation",
            metric_type=traits.metric,
            metric_name=f"{traits.metric.replace('_', ' ').capitalize()} under the {_SERVED[best]}, mean over tasks",
            metric_value=round(state.scores["mean"][best], 4),
        )
        results = [result]
    return ModelCardData(
        base_model=base_id,
        datasets=list(datasets) or None,
        eval_results=results,
        language=list(settings.language) or None,
        library_name="hf-clamu",
        license=settings.license,
        # The Hub requires a name beside results.
        model_name="ClAMU" if results else None,
        pipeline_tag=traits.pipeline,
        tags=["clamu", "model-merging", "machine-unlearning", "peft", *settings.tags],
        **relation,
    ).to_yaml()


def _peft_use(checkpoint: Checkpoint) -> str:
    """Return how PEFT loads a mask; nothing where it cannot: it does not know of the adapter around such masks."""
    if not checkpoint.state.masks or checkpoint.config.peft_merging in ("frozen_a", "parameters"):
        return ""
    architecture, base = checkpoint.config.architecture, checkpoint.base
    if base.embedded:
        base_arguments = '"ORG/NAME", subfolder="base_model"'
    else:
        labels = checkpoint.base_config().get("id2label")
        count = f", num_labels={len(labels)}" if labels and "Classification" in architecture else ""
        base_arguments = f'"{base.name_or_path}", revision="{base.revision}"{count}'
    return _template("peft_use.md").substitute(architecture=architecture, base_arguments=base_arguments)


def _cluster_table(checkpoint: Checkpoint) -> str:
    state, scores, shows_ids = checkpoint.state, checkpoint.state.scores, checkpoint.card.task_ids
    names = list(scores["mean"]) if scores is not None else []
    shows_names = _shows_names(checkpoint)
    columns = ["cluster", *["name"] * shows_names, "tasks", "training examples", *(_SERVED[name] for name in names)]
    if shows_ids:
        columns.append("members")
    rows = []
    for cluster, members in enumerate(state.clusters):
        num_examples = sum(state.records[task_id].num_train for task_id in members)
        cluster_scores = scores["clusters"][cluster] if scores is not None else None
        rows.append(
            [str(cluster), *[_escaped(state.cluster_names[cluster])] * shows_names, str(len(members))]
            + [_count(num_examples, state)]
            + [_percent(cluster_scores[name]) if cluster_scores else "–" for name in names]
            + ([", ".join(map(_escaped, members))] if shows_ids else [])
        )
    total = sum(record.num_train for record in state.records.values())
    means = [_percent(scores["mean"][name]) for name in names] if scores is not None else []
    rows.append(["all", *[""] * shows_names, str(len(state.records)), _count(total, state), *means, *[""] * shows_ids])
    return _table(columns, rows)


def _shows_names(checkpoint: Checkpoint) -> bool:
    """Whether the names of clusters may be shown: ids of tasks only if the settings of the card say so."""
    ids = {own_name(task_id) for task_id in checkpoint.state.records}
    return checkpoint.card.task_ids or ids.isdisjoint(checkpoint.state.cluster_names)


def _by_name(checkpoint: Checkpoint) -> str:
    """Return how a cluster is selected by its name, as a comment; nothing if there is none to show."""
    names = checkpoint.state.cluster_names
    if not names or not _shows_names(checkpoint):
        return ""
    return f"  # or a cluster by its name: set_cluster({json.dumps(names[0], ensure_ascii=False)})"


def _scores_note(checkpoint: Checkpoint) -> str:
    scores, arguments = checkpoint.state.scores, checkpoint.arguments
    if scores is None:
        return ""
    # What was chosen by these examples is no longer held out from them.
    chosen = ["alpha"] * arguments.chooses_alpha + list(arguments.localization_method.chooses)
    also = f" They also chose {' and '.join(chosen)}." if chosen else ""
    metric = traits_of(checkpoint.task_spec.kind).metric.replace("_", " ")
    return (
        f"\n\nPercentages are the {metric} on {scores['num_examples']:,} validation "
        f"examples, which no training saw, of {scores['num_tasks']} tasks; each task counts the same.{also}"
    )


def _storage_table(checkpoint: Checkpoint) -> str:
    state = checkpoint.state
    num_weights = sum(steps.numel() for steps in state.delta.values())
    num_bytes = sum(steps.nbytes for steps in state.delta.values())
    rows = [
        ["base model", "in `base_model/`" if checkpoint.base.embedded else "on the Hub, not counted here"],
        ["merged delta", f"{num_bytes:,} bytes for {num_weights:,} weights"],
        ["masks", f"{_mask_bytes(state.masks):,} bytes, a bit per weight"],
    ]
    if state.factors:
        rows.append(["factors", f"{4 * sum(map(len, state.factors)):,} bytes, four per tensor and cluster"])
    if checkpoint.stored_task_masks:
        rows.append(["masks of the tasks", f"{_mask_bytes(state.task_masks):,} bytes, of which the others are made"])
    return _table(["part", "size"], rows)


def _mask_bytes(masks: Sequence[Mapping[str, torch.Tensor]]) -> int:
    return sum(bits.nbytes for mask in masks for bits in mask.values())


def _recipe_table(checkpoint: Checkpoint) -> str:
    config, state = checkpoint.config, checkpoint.state
    arguments, defaults = checkpoint.arguments.to_dict(), ClamuArguments().to_dict()
    always: tuple[str, ...] = ("clustering", "localization", "scaling", "global_scaling", "seed")
    if _is_from_elsewhere(state):
        del arguments["learning_rate"]
    else:
        always += ("finetune_steps", "learning_rate", "batch_size")
    shown = [name for name in arguments if name in always or arguments[name] != defaults[name]]
    rows = [[f"`{name}`", f"`{arguments[name]}`"] for name in sorted(shown)]
    rows.append(["scaling coefficient alpha", f"{state.alpha:.6g}"])
    rows.append(["alpha of the global model", f"{state.global_alpha:.6g}"])
    if _is_from_elsewhere(state):
        rows.append(["local models", "finetuned elsewhere, and merged from their checkpoints"])
    if checkpoint.base_bits is not None:
        rows.append(["base model", f"frozen, its linear layers in {checkpoint.base_bits} bits (bitsandbytes)"])
    if config.peft_config is not None:
        rows.append(["finetuned through", f"{config.peft_config.get('peft_type')}, merged as `{config.peft_merging}`"])
    return _table(["setting", "value"], rows)


def _is_from_elsewhere(state: MergedState) -> bool:
    return bool(state.records) and all(record.from_checkpoint for record in state.records.values())


def _count(num_examples: int, state: MergedState) -> str:
    return f"{num_examples:,}" if have_data(state.records) else "–"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _escaped(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
