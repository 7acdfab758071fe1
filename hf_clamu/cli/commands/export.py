"""`clamu export`: a plain transformers checkpoint of one cluster or of the global model, or adapters of all."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_clamu.checkpoint.layout import CONFIG_NAME
from hf_clamu.cli.models import chosen_cluster, open_model
from hf_clamu.cli.options import Cluster, Json, ModelToRead, Task
from hf_clamu.cli.output import emit, quieten, require_empty_output
from hf_clamu.errors import RecipeError

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["export"]


_Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Write plain PEFT adapters and routes.json instead: all, or a cluster's name or number; may be repeated.",
        show_default=False,
    ),
]
_Rank = Annotated[
    int | None,
    typer.Option(help="With --adapters, for clusters of whole weights: approximate each by this rank."),
]
_AdapterType = Annotated[
    str | None,
    typer.Option("--adapter-type", help="With --adapters: lora writes no other type of adapter.", show_default=False),
]


def export(
    folder: ModelToRead,
    output: Annotated[Path, typer.Option(help="New folder for what is written.", show_default=False)],
    cluster: Cluster = None,
    task: Task = None,
    adapters: _Adapters = None,
    rank: _Rank = None,
    kind: _AdapterType = None,
    as_json: Json = False,
) -> None:
    """Write the global model, or one cluster's, as a plain transformers checkpoint; or clusters as PEFT adapters."""
    from hf_clamu.storage.replace import require_replaceable

    chosen = chosen_cluster(cluster, task)
    if adapters is None and (rank is not None or kind is not None):
        raise RecipeError("--rank and --adapter-type say how adapters are written: give --adapters all, too.")
    if adapters is not None and (chosen is not None or task is not None):
        raise RecipeError("--adapters names what is written: leave --cluster and --task out.")
    require_replaceable(output)
    require_empty_output(output)
    quieten()
    model = open_model(folder)
    if adapters is not None:
        _export_adapters(model, output, adapters, rank, kind, as_json)
        return
    with model.serving(chosen, task=task):
        served = model.cluster
        model.export(output, cluster=served)
    name = None if served is None else model.cluster_names[served]
    which = "the global model" if served is None else f"cluster {served} ({name})"
    values = {"output": str(output), "cluster": served, "cluster_name": name}
    # What anybody does with it, without hf_clamu.
    loading = f"import transformers; print(transformers.{_class_of(output)}.from_pretrained({str(output)!r}))"
    emit(as_json, values, lambda: f"Wrote {which} to {output}.", then=[shlex.join(["python", "-c", loading])])


def _class_of(folder: Path) -> str:
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    return str((config.get("architectures") or ["AutoModel"])[0])


def _export_adapters(
    model: ClamuModel, output: Path, adapters: list[str], rank: int | None, kind: str | None, as_json: bool
) -> None:
    clusters = None if adapters == ["all"] else [int(one) if one.isdecimal() else one for one in adapters]
    found = model.export_adapters(output, clusters=clusters, rank=rank, format=kind)
    values = {"output": str(output), **asdict(found)}

    def text() -> str:
        lines = [f"Wrote the global model and {len(found.adapters) - 1} of the clusters as adapters to {output}."]
        lost = [one for one in found.adapters if one.kept is not None and one.reachable is not None]
        for one in lost:
            apart = "not measured" if one.apart is None else f"{100 * one.apart:.1f}% of the largest"
            shares = f"{100 * (one.kept or 0):.1f}% of the change kept (any rank: {100 * (one.reachable or 0):.1f}%)"
            lines.append(f"  {one.name}: {shares}, logits apart: {apart}")
        if lost:
            lines.append("Adapters of a rank approximate: for the weights as they are, export plain checkpoints.")
        return "\n".join(lines)

    emit(as_json, values, text, then=[shlex.join(["python", "-m", "json.tool", str(output / "routes.json")])])
