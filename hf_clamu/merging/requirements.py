"""What an operation on a merged model needs: its tasks' data or local models, or the environment of the build.

What the methods declare (`LocalizationMethod`, `ClusteringMethod`) decides; no method is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from hf_clamu.errors import DigestMismatchError, RecipeError, TaskDataError
from hf_clamu.merging.clustering.registry import CLUSTERINGS
from hf_clamu.merging.localization.registry import LOCALIZATIONS
from hf_clamu.merging.registry import listed
from hf_clamu.merging.settings.arguments import ClamuArguments
from hf_clamu.merging.state import MergedState, TaskRecord
from hf_clamu.tasks import EncodedTask, TaskDataset, traits_of
from hf_clamu.training import TaskTrainer

__all__ = [
    "REBUILD",
    "check_data",
    "depends_on_environment",
    "depends_on_threads",
    "derivation_depends_on_environment",
    "deriving_reads_data",
    "have_data",
    "keeps_base_features",
    "routing_features",
    "missing_checkpoints_error",
    "require_finetuning",
    "require_keys",
    "require_recoverable",
    "require_no_data",
    "require_public_rows",
    "with_rows",
]

REBUILD = "rebuild from the retained tasks (on_mismatch='rebuild', --on-mismatch rebuild), which is always exact."


def have_data(records: Mapping[str, TaskRecord]) -> bool:
    """Whether merged tasks came with data; all of them do, or none."""
    return any(record.data_digest is not None for record in records.values())


def _is_scored(records: Mapping[str, TaskRecord], arguments: ClamuArguments) -> bool:
    """Whether validation examples are measured after a change that leaves these tasks."""
    return arguments.score_validation and any(record.num_validation for record in records.values())


def deriving_reads_data(state: MergedState, arguments: ClamuArguments, more_validation: bool = False) -> bool:
    """Whether masks, alpha or scores are derived from the tasks' data.

    Args:
        state (`MergedState`): before the change.
        arguments (`ClamuArguments`): the settings.
        more_validation (`bool`): tasks come that have validation examples.
    """
    method = arguments.localization_method
    return (
        _is_scored(state.records, arguments)
        or (arguments.score_validation and more_validation)
        or method.reads_data != "never"
        # Unless they are archived, retraining gives them.
        or method.needs_cluster_vectors
        or arguments.chooses_alpha
    )


def keeps_base_features(arguments: ClamuArguments, kind: str) -> bool:
    """Whether the base model's feature of each task is kept beside what the tasks are clustered by.

    Args:
        arguments (`ClamuArguments`): the settings.
        kind (`str`): of the tasks.
    """
    return arguments.keep_features and not _are_clustered_by_prompts(arguments, kind)


def routing_features(state: MergedState, arguments: ClamuArguments, kind: str) -> torch.Tensor | None:
    """Return the base model's feature of each task, by sorted id, if they are kept.

    Args:
        state (`MergedState`): what is merged.
        arguments (`ClamuArguments`): the settings.
        kind (`str`): of the tasks.

    Returns:
        `torch.Tensor` of shape `(tasks, hidden_size)`, float32, or `None`.
    """
    if state.base_features is None and _are_clustered_by_prompts(arguments, kind):
        return state.task_features
    return state.base_features


def _are_clustered_by_prompts(arguments: ClamuArguments, kind: str) -> bool:
    # The clustering takes the whole example; a completion is not known yet when an input is to be routed.
    return arguments.clustering_method.uses_base_features and traits_of(kind).labels != "next_tokens"


def derivation_depends_on_environment(records: Mapping[str, TaskRecord], arguments: ClamuArguments) -> bool:
    """Whether clusters, alpha, masks and scores that are derived from given task vectors depend on the environment.

    False if they come from integers, ids and settings alone: no model runs, and no affinities are decomposed.
    """
    clustering = arguments.clustering_method
    keys = (record.cluster_key for record in records.values())
    # Each task alone, or all together, needs no affinities.
    is_trivial = clustering.num_clusters(arguments.num_clusters, len(records), keys) in (0, 1, len(records))
    return (
        (clustering.depends_on_environment and not is_trivial)
        or _is_scored(records, arguments)
        or arguments.localization_method.depends_on_environment != "never"
        or arguments.chooses_alpha
    )


def depends_on_environment(records: Mapping[str, TaskRecord], arguments: ClamuArguments) -> bool:
    """Whether the bits of a merged model depend on more than local models, ids and settings.

    Local models that were finetuned elsewhere are read, subtracted and rounded, which is the same everywhere; so are
    products of LoRA's factors, EMR's signs and, under a fixed lambda, TALL's comparisons. Where a model runs, other
    adapters are merged, or affinities are decomposed, libraries and device show in the bits.

    Args:
        records (*mapping* of `str` to `TaskRecord`): the merged tasks.
        arguments (`ClamuArguments`): the settings.
    """
    localization = arguments.localization_method.depends_on_environment
    return (
        any(not record.from_checkpoint or record.is_computed for record in records.values())
        or arguments.clustering_method.depends_on_environment
        or localization == "always"
        or (arguments.keep_features and have_data(records))
        or (localization == "with_data" and have_data(records))
        or arguments.chooses_alpha
        or _is_scored(records, arguments)
    )


def depends_on_threads(tasks: TaskDataset, arguments: ClamuArguments) -> bool:
    """Whether the number of threads can show in a build.

    It cannot where local models are added up and nothing else is computed.

    Args:
        tasks (`TaskDataset`): what is merged.
        arguments (`ClamuArguments`): the settings.
    """
    return (
        tasks.has_rows
        or arguments.clustering_method.depends_on_environment
        or arguments.localization_method.depends_on_environment == "always"
    )


def require_no_data(arguments: ClamuArguments) -> None:
    """Check that settings can be followed where tasks come without data.

    Raises:
        RecipeError: naming the setting that needs data, and values that do not.
    """
    localizations = [
        one.name for one in LOCALIZATIONS.values() if one.reads_data != "always" and not one.has_fixed_signs
    ]
    clusterings = [one.name for one in CLUSTERINGS.values() if not one.needs_data]
    needs_data = {
        "localization": (arguments.localization_method.reads_data == "always", listed(localizations)),
        "clustering": (arguments.clustering_method.needs_data, listed(clusterings)),
        "scaling": (arguments.scaling == "auto", "a multiple of 1/T, or sum"),
        "global_scaling": (arguments.global_scaling == "auto", "a multiple of 1/T, sum, or same"),
    }
    for name, (is_needed, others) in needs_data.items():
        if is_needed:
            raise RecipeError(
                f"{name}={getattr(arguments, name)!r} looks at the tasks' data, and none are given: give them "
                f"(tasks=, --recipe), or choose {others}."
            )


def require_finetuning(arguments: ClamuArguments, from_checkpoints: Sequence[str]) -> None:
    """Check that no task comes from a checkpoint where all have to be finetuned under fixed signs.

    Args:
        arguments (`ClamuArguments`): the settings.
        from_checkpoints (*sequence* of `str`): tasks that come from checkpoints.

    Raises:
        RecipeError: naming the first one.
    """
    if arguments.has_fixed_signs and from_checkpoints:
        raise RecipeError(
            f"localization={arguments.localization!r} needs every task finetuned here under its fixed signs, but task "
            f"{from_checkpoints[0]!r} comes from a checkpoint: give its data instead, or choose other settings: "
            "preset: clusters where tasks have data, localization: emr, clustering: task_vectors where they have none."
        )


def require_public_rows(arguments: ClamuArguments, are_given: bool) -> None:
    """Check that public rows, or the anchors that were placed in them, are there if the clustering needs them.

    Args:
        arguments (`ClamuArguments`): the settings.
        are_given (`bool`): whether they are there.

    Raises:
        RecipeError: if they are not, or if nothing uses them.
    """
    method = arguments.clustering_method
    if are_given and not method.needs_public_rows:
        using = listed([one.name for one in CLUSTERINGS.values() if one.needs_public_rows])
        raise RecipeError(
            f"Public rows are given, and clustering={method.name!r} does not use them: leave them out, or choose "
            f"clustering {using}."
        )
    if method.needs_public_rows and not are_given:
        raise RecipeError(
            f"clustering={method.name!r} groups tasks around rows that belong to nobody, and none are given: name a "
            "file of them (public_rows in the recipe, ClamuTrainer(public_rows=...)), or choose another clustering."
        )


def require_keys(keys: Mapping[str, str | None], arguments: ClamuArguments) -> None:
    """Check that the data name a cluster per task, if the clustering needs it.

    Args:
        keys (*mapping* of `str` to `str` or `None`): the data's own cluster of each task.
        arguments (`ClamuArguments`): the settings.

    Raises:
        TaskDataError: if they do not.
    """
    if arguments.clustering_method.needs_keys and None in keys.values():
        raise TaskDataError(
            f"clustering={arguments.clustering!r} needs the data's own clusters: name a cluster_column, or choose "
            "another clustering."
        )


def require_recoverable(
    trainer: TaskTrainer,
    arguments: ClamuArguments,
    records: Mapping[str, TaskRecord],
    leaving: Iterable[str],
    after: Mapping[str, str | None],
) -> None:
    """Check, before anything is trained, that vectors that are needed again can be recovered.

    With an archive it must have those of all tasks whose local models are not given. Without one, the local models of
    tasks that came from checkpoints must be given; the others are retrained.

    Args:
        trainer (`TaskTrainer`): knows those that are given.
        arguments (`ClamuArguments`): the settings.
        records (*mapping* of `str` to `TaskRecord`): the merged tasks before the change.
        leaving (*iterable* of `str`): merged tasks that are subtracted.
        after (*mapping* of `str` to `str` or `None`): the tasks after the change, with the data's own cluster of each.

    Raises:
        ArchiveError: naming the first task whose vector the archive lacks.
        TaskDataError: naming the first task whose folder is missing.
    """
    reasons: dict[str, str] = {}
    # The mask of a single cluster needs no vector but the merged delta.
    num_clusters = arguments.clustering_method.num_clusters(arguments.num_clusters, len(after), after.values())
    if arguments.localization_method.needs_cluster_vectors and num_clusters != 1:
        staying = [task_id for task_id in after if task_id in records]
        reasons |= dict.fromkeys(staying, f"to derive the {arguments.localization} masks again")
    reasons |= dict.fromkeys(leaving, "to be subtracted")
    read_again = [task_id for task_id in sorted(reasons) if not trainer.is_local(task_id)]
    if trainer.archive is not None:
        for task_id in read_again:
            trainer.archive.require(task_id, records[task_id].vector_digest)
        return
    absent = [task_id for task_id in read_again if records[task_id].from_checkpoint]
    if absent:
        raise missing_checkpoints_error(absent, reasons[absent[0]])


def missing_checkpoints_error(absent: Sequence[str], reason: str) -> TaskDataError:
    """Return the error for merged checkpoints that are not given again.

    Args:
        absent (*sequence* of `str`): the tasks.
        reason (`str`): what the first is needed for.
    """
    first, more = absent[0], len(absent) - 1
    return TaskDataError(
        f"Task {first!r}{f' and {more} more' if more else ''} came from checkpoints, which have to be read again "
        f"({reason}), and no folder is given. Give each as it was at the merge: "
        f"checkpoints={{{first!r}: folder}} (--checkpoint {first}=FOLDER)."
    )


def check_data(
    state: MergedState, task_ids: Sequence[str], tasks: TaskDataset, encoded: Callable[[str], EncodedTask]
) -> None:
    """Check that the data of merged tasks are those that were merged.

    Args:
        state (`MergedState`): with the recorded digests.
        task_ids (*sequence* of `str`): the tasks to check.
        tasks (`TaskDataset`): the data.
        encoded (*callable*): gives a task's tokenised data.

    Raises:
        TaskDataError: if the data of a task are missing.
        DigestMismatchError: naming the first task whose data changed.
    """
    _require_rows(
        tasks,
        task_ids,
        "Give the rows of all merged tasks as they were merged, also of those that were added later (data=, --data "
        "FILE for each file). If the rows of a task to forget or update are deleted already, on_mismatch='rebuild' "
        "(clamu unmerge and update --on-mismatch rebuild) builds from the tasks that stay.",
    )
    for task_id in task_ids:
        digest, recorded = encoded(task_id).digest, state.records[task_id].data_digest
        if digest != recorded:
            raise DigestMismatchError(
                f"The data of task {task_id!r} is not what was merged: its tokenised examples have SHA-256 "
                f"{str(digest)[:16]}…, the ledger says {str(recorded)[:16]}…. Nothing was changed. Give the data as "
                f"it was at the merge, or {REBUILD}"
            )


def with_rows(tasks: TaskDataset, task_ids: Sequence[str]) -> TaskDataset:
    """Return the data of merged tasks to build from.

    Raises:
        TaskDataError: if the data of one are missing.
    """
    _require_rows(
        tasks,
        task_ids,
        "A build from the retained tasks needs the data of all of them: give it, or forget these tasks as well.",
    )
    return tasks.select(task_ids)


def _require_rows(tasks: TaskDataset, task_ids: Sequence[str], way_out: str) -> None:
    absent = [task_id for task_id in task_ids if task_id not in tasks]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise TaskDataError(f"In {tasks.origin} there are no rows of the merged task {absent[0]!r}{more}. {way_out}")
