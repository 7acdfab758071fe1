"""`clamu export`: a plain transformers checkpoint of one cluster, or of the global model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_clamu.cli.models import chosen_cluster, open_model
from hf_clamu.cli.options import Cluster, Json, ModelToRead, Task
from hf_clamu.cli.output import emit, quieten, require_empty_output

__all__ = ["export"]


def export(
    folder: ModelToRead,
    output: Annotated[Path, typer.Option(help="New folder for the plain checkpoint.", show_default=False)],
    cluster: Cluster = None,
    task: Task = None,
    as_json: Json = False,
) -> None:
    """Write the global model, or one cluster's, as a plain transformers checkpoint."""
    from hf_clamu.storage.replace import require_replaceable

    chosen = chosen_cluster(cluster, task)
    require_replaceable(output)
    require_empty_output(output)
    quieten()
    model = open_model(folder)
    with model.serving(chosen, task=task):
        served = model.cluster
        model.export(output, cluster=served)
    name = None if served is None else model.cluster_names[served]
    which = "the global model" if served is None else f"cluster {served} ({name})"
    values = {"output": str(output), "cluster": served, "cluster_name": name}
    emit(as_json, values, lambda: f"Wrote {which} to {output}.")
