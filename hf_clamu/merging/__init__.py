"""Merging, clustering, localization and unmerging as functions of state, data and settings."""

from hf_clamu.merging.arguments import ClamuArguments
from hf_clamu.merging.clustering import CLUSTERINGS, ClusteringArguments, canonical_clusters, cluster_tasks
from hf_clamu.merging.engine import (
    add_tasks,
    check_data,
    merge_tasks,
    unmerge_tasks,
    update_tasks,
    with_rows,
)
from hf_clamu.merging.localization import (
    ALPHA_GRID,
    LAMBDA_GRID,
    LOCALIZATIONS,
    LocalizationArguments,
    Localizer,
    scaling_coefficient,
)
from hf_clamu.merging.sources import (
    depends_on_environment,
    deriving_reads_data,
    have_data,
    is_portable,
    no_folder,
    require_finetuning,
    require_no_data,
)
from hf_clamu.merging.state import MergedState, TaskRecord, missing_tasks

__all__ = [
    "ALPHA_GRID",
    "CLUSTERINGS",
    "LAMBDA_GRID",
    "LOCALIZATIONS",
    "ClamuArguments",
    "ClusteringArguments",
    "LocalizationArguments",
    "Localizer",
    "MergedState",
    "TaskRecord",
    "add_tasks",
    "canonical_clusters",
    "check_data",
    "cluster_tasks",
    "depends_on_environment",
    "have_data",
    "deriving_reads_data",
    "is_portable",
    "merge_tasks",
    "missing_tasks",
    "no_folder",
    "require_finetuning",
    "require_no_data",
    "scaling_coefficient",
    "unmerge_tasks",
    "update_tasks",
    "with_rows",
]
