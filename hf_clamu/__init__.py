"""hf_clamu: exact unlearning of finetuning data by model merging.

Names are loaded when they are first used, so that `import hf_clamu` costs nothing. The folders are the layers of
`docs/architecture.md`. The files:

trainer.py       `ClamuTrainer`: the order of the stages of a build
recipe.py        a YAML file to a build
prediction.py    deprecated: the old place of `predict`
registration.py  makes saved models and masks known to transformers and PEFT
portability.py   kernels that give the same bits on other processors
known_names.py   refuses unknown names that users write, with a hint at the right one
yaml_values.py   reads YAML text that is not trusted
errors.py        all errors
version.py       the version
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_clamu.registration import register_when_imported
from hf_clamu.version import __version__

if TYPE_CHECKING:
    from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
    from hf_clamu.checkpoint.comparison import VerificationReport
    from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
    from hf_clamu.errors import (
        ArchiveError,
        CheckpointFormatError,
        ClamuError,
        ClusterNotFoundError,
        DigestMismatchError,
        EnvironmentMismatchError,
        ExactnessError,
        FixedPointOverflowError,
        HubConflictError,
        HubError,
        IncompatibleBaseError,
        RecipeError,
        RunInProgressError,
        SaveConflictError,
        ScoreDropError,
        SignatureError,
        SnapshotError,
        StaleMaskError,
        TaskAlreadyMergedError,
        TaskDataError,
        TaskNotFoundError,
        WeightsChangedError,
        WorkerError,
    )
    from hf_clamu.merging import ClamuArguments
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.effects.values import ChangeEffect
    from hf_clamu.portability import use_portable_kernels
    from hf_clamu.recipe import Recipe
    from hf_clamu.serving.pipelines import ClamuPipeline, pipeline
    from hf_clamu.serving.prediction import predict
    from hf_clamu.tasks import TaskDataset, TaskSpec
    from hf_clamu.trainer import ClamuTrainer

_ERRORS = (
    "ArchiveError",
    "CheckpointFormatError",
    "ClusterNotFoundError",
    "ClamuError",
    "DigestMismatchError",
    "EnvironmentMismatchError",
    "ExactnessError",
    "FixedPointOverflowError",
    "HubConflictError",
    "HubError",
    "IncompatibleBaseError",
    "RecipeError",
    "RunInProgressError",
    "SaveConflictError",
    "ScoreDropError",
    "SignatureError",
    "SnapshotError",
    "StaleMaskError",
    "TaskAlreadyMergedError",
    "TaskDataError",
    "TaskNotFoundError",
    "WeightsChangedError",
    "WorkerError",
)
_HOME = {
    "ChangeEffect": "hf_clamu.operations.effects.values",
    "ClamuArguments": "hf_clamu.merging",
    "ClamuConfig": "hf_clamu.checkpoint.configuration_clamu",
    "ClamuModel": "hf_clamu.models.modeling_clamu",
    "ClamuPipeline": "hf_clamu.serving.pipelines",
    "ClamuTrainer": "hf_clamu.trainer",
    "Recipe": "hf_clamu.recipe",
    "TaskDataset": "hf_clamu.tasks",
    "TaskSpec": "hf_clamu.tasks",
    "VerificationReport": "hf_clamu.checkpoint.comparison",
    "use_portable_kernels": "hf_clamu.portability",
    "byte_tokenizer": "hf_clamu.base_models.byte_tokenizer",
    "predict": "hf_clamu.serving.prediction",
    "pipeline": "hf_clamu.serving.pipelines",
    **dict.fromkeys(_ERRORS, "hf_clamu.errors"),
}

__all__ = [
    "ArchiveError",
    "ChangeEffect",
    "CheckpointFormatError",
    "ClusterNotFoundError",
    "ClamuArguments",
    "ClamuConfig",
    "ClamuError",
    "ClamuModel",
    "ClamuPipeline",
    "ClamuTrainer",
    "DigestMismatchError",
    "EnvironmentMismatchError",
    "ExactnessError",
    "FixedPointOverflowError",
    "HubConflictError",
    "HubError",
    "IncompatibleBaseError",
    "Recipe",
    "RecipeError",
    "RunInProgressError",
    "SaveConflictError",
    "ScoreDropError",
    "SignatureError",
    "SnapshotError",
    "StaleMaskError",
    "TaskAlreadyMergedError",
    "TaskDataError",
    "TaskDataset",
    "TaskNotFoundError",
    "TaskSpec",
    "VerificationReport",
    "WeightsChangedError",
    "WorkerError",
    "__version__",
    "byte_tokenizer",
    "pipeline",
    "predict",
    "use_portable_kernels",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_imported()
