"""Proof that a merged model is what its tasks give: it is built again, and every byte is compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.comparison import VerificationReport, compare_folders
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.errors import EnvironmentMismatchError
from hf_clamu.models.saving import SavePlace, save_checkpoint, save_plain
from hf_clamu.operations.build import rebuild
from hf_clamu.operations.request import ChangeResult, Request
from hf_clamu.storage.staging import scratch_folder
from hf_clamu.training import Workers

__all__ = ["verify"]


def verify(request: Request, write: Callable[[Path], None]) -> VerificationReport:
    """Build a model again, with all processes of the run, and compare it with the saved one.

    Args:
        request (`Request`): on the model.
        write (*callable*): writes the model into a folder, for the case that its own folder is gone.

    Raises:
        EnvironmentMismatchError: if a rebuild here cannot give the same bits.
        DigestMismatchError: if the data of a merged task has changed.
    """
    started = time.perf_counter()
    request.require_environment()
    if request.checkpoint.localized_in is not None:
        raise EnvironmentMismatchError(
            "Clusters and masks of this model were derived in another environment than its task vectors "
            "(on_mismatch='localize'), so no build in one environment gives its bytes. A request that is carried "
            "out here derives them again."
        )
    built = rebuild(request, request.unchanged_tasks(), backwards=True)
    workers = Workers.current()
    with workers.watched():
        report = _compared(request, built, write).to_dict() if workers.is_main else {}
        report = workers.gather(report)[0]
    names = {key: tuple(report[key]) for key in ("differences", "additional")}
    return VerificationReport(**{**report, **names, "seconds": time.perf_counter() - started})


def _compared(request: Request, built: ChangeResult, write: Callable[[Path], None]) -> VerificationReport:
    space = PeftSpace.of_checkpoint(built.checkpoint)
    has_adapter = space is not None and space.is_live

    write_base = partial(save_plain, built.base, type(built.base), has_adapter=has_adapter, merge=False)
    with scratch_folder("verify") as scratch:
        rebuilt = scratch / "rebuilt"
        place = SavePlace.checked(rebuilt, built.checkpoint)
        save_checkpoint(place, built.checkpoint, request.processor, write_base)
        ours = request.origin
        if ours is None or not _holds(ours, request.checkpoint):
            ours = scratch / "ours"
            write(ours)
        return compare_folders(ours, rebuilt)


def _holds(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder holds this state, in the files of today; it may have been saved before the last request."""
    if not folder.is_dir():
        return False
    found = read_checkpoint(folder, strict=True)
    is_current = found.files is not None and found.files.format_version == FORMAT_VERSION
    is_current = is_current and found.max_shard_size == checkpoint.max_shard_size
    return is_current and found.state_digest == checkpoint.state_digest
