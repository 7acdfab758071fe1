"""Clusters as plain PEFT adapters, for engines that serve many adapters on one base model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.export import plain_model, save_adapter, save_adapter_config
from hf_clamu.base_models.adapters.insertion import plain_name
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.processors import save_processor
from hf_clamu.checkpoint.layout import BASE_FOLDER, MASK_NAME
from hf_clamu.errors import RecipeError
from hf_clamu.models.exports.low_rank import LowRank, low_rank, matrices_of
from hf_clamu.models.exports.proof import logits_apart, require_same_adapter
from hf_clamu.models.exports.routes import GLOBAL_ADAPTER, Routes
from hf_clamu.storage import save_tensors
from hf_clamu.tasks.kinds import traits_of

__all__ = ["AdapterExport", "ExportedAdapter", "export_adapters", "plain_base_state", "write_live_adapter"]

_HEADS = "modules_to_save"


@dataclass(frozen=True, kw_only=True)
class ExportedAdapter:
    """One adapter that was written.

    Args:
        name (`str`): the cluster's, or `"global"`.
        folder (`str`): beside `routes.json`.
        cluster (`int`, *optional*): its number; `None` for the global model.
        kept (`float`, *optional*): of an approximation, the share of the change's squared norm that it has; `None` if
            the adapter is the live one, bit for bit.
        reachable (`float`, *optional*): the share that no rank exceeds, as norms and embeddings are left out.
        apart (`float`, *optional*): of an approximation, how far logits of a few fixed inputs are from the live ones
            at most, as a share of the largest.
    """

    name: str
    folder: str
    cluster: int | None
    kept: float | None = None
    reachable: float | None = None
    apart: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterExport:
    """Everything that was written, with the routes.

    Args:
        adapters (*list* of `ExportedAdapter`): in the order of the clusters, the global model first.
        rank (`int`): of all of them.
    """

    adapters: list[ExportedAdapter]
    rank: int | None


def export_adapters(
    model: Any,
    architecture: Any,
    folder: Path,
    *,
    clusters: Iterable[int] | None,
    rank: int | None,
    kind: str | None,
    save_base: Callable[[Path], None],
) -> AdapterExport:
    """Write an adapter for the global model and for each of some clusters, and the routes to them.

    Args:
        model (`ClamuModel`): held by the caller.
        architecture (`type`): the plain model's class.
        folder (`Path`): an empty folder.
        clusters (*iterable* of `int`, *optional*): their numbers; by default all.
        rank (`int`, *optional*): approximate whole weights by LoRA adapters of this rank.
        kind (`str`, *optional*): `"lora"` writes no other type of adapter; by default the one inside the model.
        save_base (*callable*): writes the base model to a folder; called where the saved model embeds it.

    Raises:
        ExactnessError: if an adapter, loaded by PEFT, does not answer as the live model.
        RecipeError: if the clusters are no adapters and no rank is given, or one is and they are.
    """
    space = model.merged.space
    chosen = range(len(model.clusters)) if clusters is None else sorted(set(clusters))
    if rank is None:
        writer: _LiveWriter | _LowRankWriter = _LiveWriter(model, architecture, _live_space(space, kind))
    else:
        writer = _LowRankWriter(model, architecture, _checked_rank(rank, space))
    checkpoint, found = model.merged.checkpoint, []
    for cluster in (None, *chosen):
        name = GLOBAL_ADAPTER if cluster is None else model.cluster_names[cluster]
        own = GLOBAL_ADAPTER if cluster is None else f"cluster_{cluster:03d}"
        model.set_cluster(cluster)
        (folder / own).mkdir()
        found.append(writer.write(folder / own, name=name, cluster=cluster))
    if checkpoint.base.embedded:
        save_base(folder / BASE_FOLDER)
    processor = model._live.context.processor
    if processor is not None:
        save_processor(processor, folder)
    tasks = {task_id: model.cluster_names[cluster] for cluster in chosen for task_id in model.clusters[cluster]}
    Routes(
        base_model=BASE_FOLDER if checkpoint.base.embedded else checkpoint.base.name_or_path or None,
        revision=None if checkpoint.base.embedded else checkpoint.base.revision,
        adapters={one.name: one.folder for one in found},
        tasks=dict(sorted(tasks.items())),
        keyed=checkpoint.has_keyed_ids,
    ).write(folder)
    return AdapterExport(adapters=found, rank=writer.rank)


def _live_space(space: PeftSpace | None, kind: str | None) -> PeftSpace:
    if kind is not None and kind.upper() != "LORA":
        raise RecipeError(f"Adapters are exported as lora, or as what is inside the model; got {kind!r}.")
    if space is not None and kind is not None and space.peft_type != "LORA":
        raise RecipeError(
            f"The clusters of this model are {space.peft_type} adapters. Leave the format out to write them as they "
            "are, for PEFT, or give a rank (--rank 16) for LoRA adapters that approximate them."
        )
    if space is None:
        raise RecipeError(
            "The clusters of this model are whole weights and no adapters. Give a rank (--rank 16): each cluster is "
            "approximated by a LoRA adapter of it, and what that loses is measured; or export plain checkpoints "
            "(clamu export DIR --cluster K)."
        )
    return space


def _checked_rank(rank: int, space: PeftSpace | None) -> int:
    if space is not None and space.peft_type == "LORA":
        raise RecipeError("The clusters of this model are LoRA adapters as they are: leave the rank out.")
    if rank < 1:
        raise RecipeError(f"The rank of an adapter must be 1 or more, got {rank}.")
    return rank


class _LiveWriter:
    """Writes the adapter that is inside the model."""

    def __init__(self, model: Any, architecture: Any, space: PeftSpace) -> None:
        self._model, self._architecture, self._space = model, architecture, space
        self._base: dict[str, torch.Tensor] | None = plain_base_state(model, architecture)
        self.rank: int | None = getattr(space.peft_config(), "r", None)

    def write(self, folder: Path, *, name: str, cluster: int | None) -> ExportedAdapter:
        write_live_adapter(self._model, self._space, folder)
        if self._base is not None:
            # One is loaded and asked; the others have the same names and shapes, and are read from the same weights.
            require_same_adapter(self._model, self._architecture, self._base, folder)
            self._base = None
        return ExportedAdapter(name=name, folder=folder.name, cluster=cluster)


class _LowRankWriter:
    """Writes LoRA adapters that approximate whole weights, and measures what they lose."""

    def __init__(self, model: Any, architecture: Any, rank: int) -> None:
        self._model, self._architecture, self.rank = model, architecture, rank
        self._base = plain_base_state(model, architecture)
        plain = plain_model(model, architecture, merge=True)
        part = set(map(plain_name, model.merged.checkpoint.state.delta))
        if model.merged.space is not None:  # an adapter of another type changes weights that are not merged themselves
            part |= set(plain.state_dict())
        self._whole = _head_names(plain, self._base)
        self._matrices = {
            name: transposed
            for name, transposed in matrices_of(plain, part).items()
            if f"{name}.weight" not in self._whole
        }

    def write(self, folder: Path, *, name: str, cluster: int | None) -> ExportedAdapter:
        live = plain_model(self._model, self._architecture, merge=True).state_dict()
        found = low_rank(self._base, live, self._matrices, self._whole, self.rank)
        self._save(folder, found, live)
        apart = logits_apart(self._model, self._architecture, self._base, folder)
        shares = {"kept": found.kept, "reachable": found.reachable}
        return ExportedAdapter(name=name, folder=folder.name, cluster=cluster, apart=apart, **shares)

    def _save(self, folder: Path, found: LowRank, live: Mapping[str, torch.Tensor]) -> None:
        from peft import LoraConfig

        checkpoint = self._model.merged.checkpoint
        heads = sorted({name.split(".")[0] for name in self._whole})
        config: Any = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,  # the products are added as they are
            target_modules=_short(found.factors, self._model),
            fan_in_fan_out=all(self._matrices.values()),
            modules_to_save=heads or None,
            task_type=traits_of(checkpoint.task_spec.kind).peft_task,
        )
        config.base_model_name_or_path = checkpoint.base.name_or_path or None
        config.revision, config.inference_mode = checkpoint.base.revision, True
        save_adapter_config(config, folder)
        tensors = {name: live[name].detach().cpu() for name in self._whole}
        for module, (a, b) in found.factors.items():
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        save_tensors(folder / MASK_NAME, {f"base_model.model.{name}": one for name, one in tensors.items()})


def write_live_adapter(model: Any, space: PeftSpace, folder: Path) -> None:
    """Write the adapter that is inside a model, with the weights that are selected.

    Args:
        model (`ClamuModel`): held by the caller.
        space (`PeftSpace`): the adapter's shape.
        folder (`Path`): an empty folder.

    Raises:
        RecipeError: if PEFT cannot write it.
    """
    checkpoint = model.merged.checkpoint
    base, task_type = checkpoint.base, traits_of(checkpoint.task_spec.kind).peft_task
    save_adapter(space, model, folder, base.name_or_path or None, base.revision, task_type=task_type)


def plain_base_state(model: Any, architecture: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the weights of the base model without its adapter, and leave the base model selected."""
    model.set_base()
    state = plain_model(model, architecture, merge=False).state_dict()
    return {name: value.clone() for name, value in state.items()}


def _head_names(plain: Any, state: Mapping[str, Any]) -> set[str]:
    """Return the weights of a classifier's head, which an adapter keeps as they are."""
    prefix = f"{plain.base_model_prefix}."
    if "Classification" not in type(plain).__name__ or not any(name.startswith(prefix) for name in state):
        return set()
    return {name for name in state if not name.startswith(prefix)}


def _short(names: Iterable[str], model: Any) -> list[str]:
    """Return the last parts of module names if they mean no other modules, as engines expect them."""
    full = set(names)
    last = {name.rpartition(".")[2] for name in full}
    meant = {name.replace(".base_layer", "") for name, _ in model.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if meant == full else full)
