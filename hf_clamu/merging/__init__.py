"""Merging, clustering, localization and unmerging as functions of state, data and settings.

- `settings/`: all settings of a merged model, and presets.
- `state`: what a merged model is made of.
- `engine`: merge, add, unmerge and update.
- `addition`, `recovery`: finetune and add tasks; recover and subtract merged ones.
- `derivation`: clusters, alpha, masks and scores of the tasks that are merged.
- `clustering/`, `localization/`: the methods, a file each.
- `cluster_names`: names of clusters that last.
- `registry`: methods by name, the built-in ones and those that users add.
- `requirements`: whether an operation needs data, local models or the environment of the build.
- `scoring`: held-out scores for the model card, and what they say of a build.
- `summation`, `shared_work`: sums and small values of many tasks, by all processes and through the journal.
"""

from hf_clamu.merging.cluster_names import is_plain, own_name
from hf_clamu.merging.clustering.anchored import place_anchors
from hf_clamu.merging.clustering.arguments import ClusteringArguments
from hf_clamu.merging.clustering.base import ClusteringInputs, ClusteringMethod
from hf_clamu.merging.clustering.grouping import canonical_clusters, cluster_tasks, name_clusters
from hf_clamu.merging.clustering.registry import CLUSTERINGS, register_clustering
from hf_clamu.merging.derivation import clusters_of, names_of
from hf_clamu.merging.engine import add_tasks, merge_tasks, unmerge_tasks, update_tasks
from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.merging.localization.base import LocalizationMethod, MaskInputs
from hf_clamu.merging.localization.localizer import Localizer, MaskProblem
from hf_clamu.merging.localization.registry import LOCALIZATIONS, register_localization
from hf_clamu.merging.localization.search import ALPHA_GRID, candidate_alphas, scaling_coefficient, trial_arguments
from hf_clamu.merging.localization.tall import LAMBDA_GRID
from hf_clamu.merging.requirements import (
    check_data,
    depends_on_environment,
    depends_on_threads,
    derivation_depends_on_environment,
    deriving_reads_data,
    have_data,
    keeps_base_features,
    missing_checkpoints_error,
    require_finetuning,
    require_no_data,
    require_public_rows,
    routing_features,
    with_rows,
)
from hf_clamu.merging.scoring import recorded_scores, remark_on, score_tasks, warn_of_scores
from hf_clamu.merging.settings.arguments import WITHOUT_DATA, ClamuArguments
from hf_clamu.merging.settings.presets import METHOD_SETTINGS, PRESETS, Preset, PresetName
from hf_clamu.merging.state import MergedState, TaskRecord, require_merged

__all__ = [
    "ALPHA_GRID",
    "CLUSTERINGS",
    "LAMBDA_GRID",
    "LOCALIZATIONS",
    "METHOD_SETTINGS",
    "PRESETS",
    "WITHOUT_DATA",
    "ClamuArguments",
    "ClusteringArguments",
    "ClusteringInputs",
    "ClusteringMethod",
    "LocalizationArguments",
    "LocalizationMethod",
    "Localizer",
    "MaskInputs",
    "MaskProblem",
    "MergedState",
    "Preset",
    "PresetName",
    "TaskRecord",
    "add_tasks",
    "candidate_alphas",
    "clusters_of",
    "canonical_clusters",
    "check_data",
    "cluster_tasks",
    "depends_on_environment",
    "depends_on_threads",
    "derivation_depends_on_environment",
    "deriving_reads_data",
    "have_data",
    "is_plain",
    "keeps_base_features",
    "merge_tasks",
    "missing_checkpoints_error",
    "recorded_scores",
    "remark_on",
    "name_clusters",
    "names_of",
    "own_name",
    "place_anchors",
    "require_merged",
    "register_clustering",
    "register_localization",
    "require_finetuning",
    "require_no_data",
    "require_public_rows",
    "routing_features",
    "scaling_coefficient",
    "trial_arguments",
    "score_tasks",
    "unmerge_tasks",
    "update_tasks",
    "warn_of_scores",
    "with_rows",
]
