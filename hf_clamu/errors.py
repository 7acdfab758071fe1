"""The exceptions of hf_clamu.

    ClamuError
    ├ ExactnessError                     the promise "byte for byte" could not be kept, so nothing was changed
    │ ├ FixedPointOverflowError          a value is NaN, infinite or outside the integer range
    │ ├ ArchiveError                     an archive lacks a vector, or holds another one than was merged
    │ ├ SnapshotError                    a snapshot lacks the rows of a task, or they cannot be read
    │ ├ DigestMismatchError              data or retrained bits differ from what the ledger recorded
    │ ├ EnvironmentMismatchError         libraries, device or switches differ from the recorded fingerprint
    │ ├ StaleMaskError                   a mask was made for another merged delta
    │ └ WeightsChangedError              live weights were changed by other code
    ├ TaskNotFoundError (LookupError)    no merged task has this id
    ├ ClusterNotFoundError (LookupError) the model has no cluster of this number
    ├ TaskAlreadyMergedError (ValueError)
    ├ TaskDataError (ValueError)         the data of a task cannot be used
    ├ RecipeError (ValueError)           a setting is missing, unknown or out of range
    ├ IncompatibleBaseError (ValueError) the base model is not the one that was merged into
    ├ CheckpointFormatError (ValueError) a saved model is missing, truncated, tampered with or too new
    ├ HubError                           the Hub refused a request or could not be reached
    │ └ HubConflictError                 another push came in between, so nothing was overwritten
    ├ ScoreDropError                     a retained task would lose more of its score than the request allows
    ├ SignatureError                     a signed model or a chain of receipts is not as it was signed
    ├ SaveConflictError                  the folder holds another state than the one that was loaded from it
    ├ RunInProgressError                 another run works on the same output
    └ WorkerError                        another process of the run failed

Each message says what was expected, what was found, and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings

__all__ = [
    "ClamuError",
    "ExactnessError",
    "FixedPointOverflowError",
    "ArchiveError",
    "SnapshotError",
    "DigestMismatchError",
    "EnvironmentMismatchError",
    "StaleMaskError",
    "WeightsChangedError",
    "TaskNotFoundError",
    "ClusterNotFoundError",
    "TaskAlreadyMergedError",
    "TaskDataError",
    "RecipeError",
    "IncompatibleBaseError",
    "CheckpointFormatError",
    "HubError",
    "HubConflictError",
    "ScoreDropError",
    "SignatureError",
    "SaveConflictError",
    "RunInProgressError",
    "WorkerError",
]


class ClamuError(Exception):
    """Base class of every exception that hf_clamu raises on purpose."""


class ExactnessError(ClamuError):
    """The result could not be proven byte-exact, so nothing was changed."""


class FixedPointOverflowError(ExactnessError):
    """A value is NaN, infinite, or does not fit the integer grid."""

    #: The parameter that has the value, if it is known.
    parameter: str | None = None


class ArchiveError(ExactnessError):
    """An archive of task vectors lacks one, or holds another one than was merged."""


class SnapshotError(ExactnessError):
    """A snapshot lacks the rows of a task, they are not those that were merged, or its key is missing or wrong."""


class DigestMismatchError(ExactnessError):
    """Data or retrained bits differ from the digests in the ledger."""


class EnvironmentMismatchError(ExactnessError):
    """This machine or its libraries differ from the fingerprint in the ledger."""


class StaleMaskError(ExactnessError):
    """A mask belongs to another merged delta than the one it is applied to."""


class WeightsChangedError(ExactnessError):
    """Live weights no longer hold the bits that the last switch left there."""


class TaskNotFoundError(ClamuError, LookupError):
    """No merged task has this id."""


class ClusterNotFoundError(ClamuError, LookupError):
    """The model has no cluster of this number or name; the message names those that it has."""


class TaskAlreadyMergedError(ClamuError, ValueError):
    """A task of this id is merged already."""


class TaskDataError(ClamuError, ValueError):
    """The data of a task cannot be used; the message names task, column and row."""


class RecipeError(ClamuError, ValueError):
    """A setting of a recipe or of `ClamuArguments` is missing, unknown or out of range."""


class IncompatibleBaseError(ClamuError, ValueError):
    """The base model differs in revision, shape or digest from the one that was merged into."""


class CheckpointFormatError(ClamuError, ValueError):
    """A saved model is missing a file, truncated, tampered with, or written by a newer format."""


class HubError(ClamuError):
    """The Hugging Face Hub refused a request, has no such model, or could not be reached."""


class HubConflictError(HubError):
    """The branch on the Hub is not at the commit that was expected; nothing was overwritten."""


class ScoreDropError(ClamuError):
    """A retained task would lose more of its score than the request allows, or nothing tells; nothing was changed."""


class SignatureError(ClamuError):
    """A model or a receipt is not signed by a trusted key, or not as it was signed; it was not used."""


class SaveConflictError(ClamuError):
    """The folder was changed since this model was loaded from it or saved to it; nothing was overwritten."""


class RunInProgressError(ClamuError):
    """Another run works on the same output; it was not touched."""


class WorkerError(ClamuError):
    """Another process of the run failed or cannot be reached; what was finished is kept for the next start."""


def first_line(error: BaseException) -> str:
    """Return the first line that an error of another library says, or its kind if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def warn_caller(message: str) -> None:
    """Warn of something at the line outside of this package that has led to it."""
    package = os.path.dirname(__file__)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith((package, contextlib.__file__)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def sentence_of(error: BaseException) -> str:
    """Return what an error says, for a person: of a place that this user may not use, what to do about it."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return str(error)
    place, name = os.path.split(str(error.filename or ""))
    if not name:
        return str(error)
    what = place if name.startswith(".") and place else error.filename  # files of ours that nobody else knows
    return (
        f"{what} cannot be written or read by the user who runs this ({error.strerror}). Give this user the right to, "
        "for the folder that it is in, too."
    )
