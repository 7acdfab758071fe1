"""`clamu export`: a plain transformers checkpoint of one cluster, or of the global model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_clamu.cli.models import open_model, refuse_cluster_and_task
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

    refuse_cluster_and_task(cluster, task)
    require_replaceable(output)
    require_empty_output(output)
    quieten()
    model = open_model(folder)
    model.export(output, cluster=cluster, task=task)
    served = model.cluster_of(task) if task is not None else cluster
    which = "the global model" if served is None else f"cluster {served}"
    emit(as_json, {"output": str(output), "cluster": served}, lambda: f"Wrote {which} to {output}.")
