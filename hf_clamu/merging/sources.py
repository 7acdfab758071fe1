"""What a merged model needs of its tasks: their data, their local models, the environment, or none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.merging.arguments import ClamuArguments
from hf_clamu.merging.state import MergedState, TaskRecord
from hf_clamu.training import TaskTrainer

__all__ = [
    "depends_on_environment",
    "deriving_reads_data",
    "have_data",
    "is_portable",
    "no_folder",
    "require_finetuning",
    "require_local_models",
    "require_no_data",
]


def have_data(records: Mapping[str, TaskRecord]) -> bool:
    """Whether merged tasks came with data; all of them do, or none."""
    return any(record.data_digest is not None for record in records.values())


def require_no_data(arguments: ClamuArguments) -> None:
    """Check that settings can be followed where tasks come without data.

    Raises:
        RecipeError: naming the setting that needs data, and what goes without.
    """
    needs_data = {
        "localization": (arguments.localization == "clamu", "emr, tall or global"),
        "clustering": (arguments.clustering in ("features", "column"), "task_vectors, random or none"),
        "scaling": (arguments.scaling == "auto", "a multiple of 1/T, or sum"),
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
            f"localization='sift' needs every task finetuned here under its fixed signs, but task "
            f"{from_checkpoints[0]!r} comes from a checkpoint: give its data instead, or choose another localization."
        )


def deriving_reads_data(state: MergedState, arguments: ClamuArguments, more_validation: bool = False) -> bool:
    """Whether masks, alpha or scores are derived from the tasks' data.

    Args:
        state (`MergedState`): before the change.
        arguments (`ClamuArguments`): the settings.
        more_validation (`bool`): tasks come that have validation examples.
    """
    has_some = more_validation or any(record.num_validation for record in state.records.values())
    scored = arguments.score_validation and has_some
    return scored or arguments.localization not in ("global", "sift") or arguments.scaling == "auto"


def is_portable(records: Mapping[str, TaskRecord], arguments: ClamuArguments) -> bool:
    """Whether what is derived from the vectors of these tasks has the same bits in every environment.

    It has if it comes from integers, ids and settings alone: no model runs, and no affinities are decomposed.
    """
    count = min(arguments.num_clusters, len(records))
    is_grouped = arguments.clustering in ("random", "column", "none") or count in (0, 1, len(records))
    is_scored = arguments.score_validation and any(record.num_validation for record in records.values())
    is_masked = arguments.localization not in ("global", "emr", "sift")
    return is_grouped and not is_scored and not is_masked and arguments.scaling != "auto"


def depends_on_environment(records: Mapping[str, TaskRecord], arguments: ClamuArguments) -> bool:
    """Whether the bits of a merged model depend on more than local models, ids and settings.

    Local models that were finetuned elsewhere are read, subtracted and rounded, which is the same everywhere; so are
    EMR's signs and, under a fixed lambda, TALL's comparisons. Where a model runs, or affinities are decomposed,
    libraries and device show in the bits.

    Args:
        records (*mapping* of `str` to `TaskRecord`): the merged tasks.
        arguments (`ClamuArguments`): the settings.
    """
    return (
        any(not record.from_checkpoint for record in records.values())
        or arguments.clustering in ("features", "task_vectors")
        or arguments.localization == "clamu"
        or (arguments.localization == "tall" and have_data(records))
        or arguments.scaling == "auto"
        or (arguments.score_validation and any(record.num_validation for record in records.values()))
    )


def require_local_models(
    trainer: TaskTrainer,
    arguments: ClamuArguments,
    records: Mapping[str, TaskRecord],
    leaving: Iterable[str],
    staying: Sequence[str],
    num_clusters: int | None = None,
) -> None:
    """Check that local models that have to be read again are at hand, unless an archive has their vectors.

    Args:
        trainer (`TaskTrainer`): knows those that are.
        arguments (`ClamuArguments`): the settings.
        records (*mapping* of `str` to `TaskRecord`): the merged tasks before the change.
        leaving (*iterable* of `str`): merged tasks that are subtracted.
        staying (*sequence* of `str`): merged tasks whose vectors TALL and EMR need again.
        num_clusters (`int`, *optional*): clusters after the change, if known; the mask of a single one needs no
            vector but the merged delta.

    Raises:
        TaskDataError: naming the first task whose folder is missing.
    """
    by_vectors = arguments.localization in ("tall", "emr") and num_clusters != 1
    reasons = dict.fromkeys(staying if by_vectors else (), f"to derive the {arguments.localization} masks anew")
    reasons |= dict.fromkeys(leaving, "to be subtracted")
    if trainer.archive is not None:
        return
    absent = [one for one in sorted(reasons) if records[one].from_checkpoint and not trainer.is_local(one)]
    if absent:
        raise no_folder(absent, reasons[absent[0]])


def no_folder(absent: Sequence[str], why: str) -> TaskDataError:
    """Return the error for merged checkpoints that are not given again.

    Args:
        absent (*sequence* of `str`): the tasks.
        why (`str`): what the first is needed for.
    """
    first, more = absent[0], len(absent) - 1
    return TaskDataError(
        f"Task {first!r}{f' and {more} more' if more else ''} came from checkpoints, which have to be read again "
        f"({why}), and no folder is given. Give each as it was at the merge: "
        f"checkpoints={{{first!r}: folder}} (--checkpoint {first}=FOLDER)."
    )
