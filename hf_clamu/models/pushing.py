"""Pushing a merged model to the Hub, and erasing what was there before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hf_clamu.checkpoint.layout import SIGNATURE_NAME
from hf_clamu.errors import RecipeError
from hf_clamu.hub.erase import erase_history
from hf_clamu.hub.pull import place_of_repo
from hf_clamu.hub.push import PushResult, publish
from hf_clamu.models.keeping import rows_kept
from hf_clamu.models.state import LiveState, Origin
from hf_clamu.operations.signed.signing import Signing, carry_signature
from hf_clamu.signing import SigningKey
from hf_clamu.storage.staging import scratch_folder

__all__ = ["PushOptions", "push"]


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What `ClamuModel.push_to_hub` is given; its docstring explains the options."""

    repo_id: str | None = None
    private: bool | None = None
    revision: str | None = None
    commit_message: str | None = None
    create_pr: bool = False
    token: str | bool | None = None
    erase_history: bool = False
    signing_key: SigningKey | None = None
    receipt_dir: Path | None = None


def push(live: LiveState, options: PushOptions, write: Callable[[Path], None]) -> PushResult:
    """Push a model as one commit; finish its unsaved changes, unless it is only a pull request.

    Args:
        live (`LiveState`): of the model.
        options (`PushOptions`): where to, and how.
        write (*callable*): writes the model into a folder.

    Raises:
        HubConflictError: if something else was pushed since the model was loaded; nothing is overwritten.
        HubError: if the Hub refuses or cannot be reached.
    """
    before = live.context.origin
    target = options.repo_id or (before.repo_id if before is not None else None)
    if target is None:
        raise ValueError("This model came from no Hub repo: give push_to_hub a repo_id, such as 'org/name'.")
    if options.erase_history and options.create_pr:
        raise ValueError("erase_history goes with a push to a branch, not with create_pr.")
    if options.signing_key is not None and options.create_pr:
        raise ValueError("A pull request is not signed: its receipts are written when a branch has the model.")
    token = live.context.token if options.token is None else options.token
    with rows_kept(live, _replaced_place(before, target, options), starts=False), scratch_folder("push") as scratch:
        folder = scratch / "model"
        write(folder)
        signing = _signed(live, folder, target, options)
        result = publish(
            folder,
            target,
            token=token,
            private=options.private,
            revision=options.revision,
            commit_message=options.commit_message or f"Upload a ClAMU model of {len(live.merged.state.records)} tasks",
            create_pr=options.create_pr,
            parent_commit=_known_commit(before, target, options.revision),
        )
    if options.create_pr:
        return result
    branch = options.revision or "main"
    live.context.origin = Origin(
        folder=Path(target) if before is None else before.folder,
        repo_id=target,
        commit=result.commit,
        revision=branch,
        token=token,
        ledgers={} if before is None else before.ledgers,
    )
    try:
        if options.erase_history:
            old = before.commit if before is not None and before.repo_id == target else None
            commits = () if old is None else (old,)
            report = erase_history(target, token=token, keep_revision=branch, old_commits=commits)
            live.context.origin = replace(live.context.origin, commit=report.kept_commit)
            live.log.note_erasure(report.to_dict())
            result = replace(result, commit=report.kept_commit, erasure=report)
    finally:
        live.log.finalize()
        if signing is not None:
            signing.write_statements()
            signing.write_settled()
    return result


def _signed(live: LiveState, folder: Path, target: str, options: PushOptions) -> Signing | None:
    """Sign a copy that is about to be pushed, or take along the signature that the model has where it was loaded.

    Returns:
        `Signing`, *optional*: statements to be written once the copy is there.

    Raises:
        SignatureError, RecipeError: as `sign_model`; or if nobody says where receipts are.
    """
    origin, log, key = live.context.origin, live.log, options.signing_key
    if key is None:
        carry_signature(None if origin is None else origin.folder, folder)
        return None
    receipts = options.receipt_dir or next((place for place in reversed(log.receipt_dirs) if place is not None), None)
    if receipts is None:
        raise RecipeError("Signing counts the receipts of a model: give push_to_hub their folder (receipt_dir=).")
    signing = Signing.begun(
        None if origin is None else origin.folder,
        live.merged.checkpoint.state_digest,
        key,
        receipts=receipts,
        pending=[receipt for change in log.unsaved for receipt in change.receipts],
    )
    signing.sign(folder, folder / SIGNATURE_NAME, name=target)
    return signing


def _known_commit(origin: Origin | None, target: str, revision: str | None) -> str | None:
    """Return the commit that a push must follow: what was pushed after it must not be overwritten unseen."""
    return origin.commit if origin is not None and _goes_back(origin, target, revision) else None


def _goes_back(origin: Origin, target: str, revision: str | None) -> bool:
    """Whether a push goes to the branch that a model came from."""
    return origin.repo_id == target and revision in (None, origin.revision)


def _replaced_place(origin: Origin | None, target: str, options: PushOptions) -> Path | None:
    """Return the place whose snapshot goes with what a push replaces; other branches and pull requests have none."""
    if origin is None or options.create_pr or not _goes_back(origin, target, options.revision):
        return None
    return place_of_repo(target)
