"""Pushing a saved model to the Hub as one commit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hf_clamu.checkpoint.layout import CARD_NAME, LEDGER_NAME, SIGNATURE_NAME, is_ours, require_data_names
from hf_clamu.checkpoint.ledger import listed_files, read_ledger
from hf_clamu.errors import CheckpointFormatError, HubConflictError, HubError
from hf_clamu.exact import sha256_files
from hf_clamu.hub.erase import ErasureReport
from hf_clamu.hub.errors import client_errors, reason_of, translate_hub_errors
from hf_clamu.hub.repository import TIMEOUT_SECONDS, content_digest, repo_files

__all__ = ["PushResult", "publish"]


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What a push made.

    Args:
        commit (`str`): SHA of the commit; the unchanged head if there was nothing to push.
        url (`str`): its page.
        pr_url (`str`, *optional*): the page of the pull request, if one was asked for.
        erasure (`ErasureReport`, *optional*): if the history was erased after it.
    """

    commit: str
    url: str
    pr_url: str | None = None
    erasure: ErasureReport | None = None


def publish(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload ClAMU model",
    create_pr: bool = False,
    parent_commit: str | None = None,
) -> PushResult:
    """Push a saved model as one commit: readers see the old state or the new one.

    What is pushed are the model card, the signature, the ledger and the files that it lists, each checked by its
    digest; other files in the folder stay here. Files of a saved model that the new state lacks are deleted by the
    same commit, files of others on the Hub stay. If the Hub's answer is lost, its history tells whether the commit
    arrived; nothing is pushed twice.

    Args:
        folder (`Path`): a folder that `ClamuModel.save_pretrained` wrote.
        repo_id (`str`): the repository; it is created if there is none.
        token (`str` or `bool`, *optional*): by default the one that `hf auth login` saved.
        private (`bool`, *optional*): for a new repository. `True` is refused for one that is public already.
        revision (`str`, *optional*): the branch, `"main"` by default; it is created if there is none.
        commit_message (`str`): the summary of the commit.
        create_pr (`bool`): open a pull request instead.
        parent_commit (`str`, *optional*): the head that the caller saw last; by default the present one.

    Raises:
        HubConflictError: if the branch is no longer at `parent_commit`; nothing is overwritten.
        HubError: if the Hub refuses or cannot be reached; the old state goes on serving.
        CheckpointFormatError: if the folder is no undamaged saved model.
    """
    from huggingface_hub import HfApi

    wanted = _files_to_push(folder)
    api = HfApi(token=token)
    branch = revision or "main"
    with translate_hub_errors(f"push to {repo_id}"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        head, is_private = _open_branch(api, repo_id, branch, may_create=not create_pr)
    if private and not is_private:
        raise HubError(
            f"{repo_id} is public, and the push was to be private. Nothing was pushed. Make it private in its "
            "settings on the Hub, or push without private=True."
        )
    push = _Push(api, repo_id, branch, parent_commit or head, wanted, create_pr=create_pr)
    if not head.startswith(push.parent):
        earlier = push.find()
        if earlier is None:
            push.conflict(head)
        return earlier
    push.parent = head
    return push.commit(commit_message)


def _files_to_push(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return path and SHA-256 of each file of a saved model, by its name in the repository."""
    listed = listed_files(folder, read_ledger(folder))
    require_data_names(listed)
    paths = {name: folder / name for name in sorted({*listed, LEDGER_NAME, CARD_NAME, SIGNATURE_NAME})}
    for name in (CARD_NAME, SIGNATURE_NAME):
        if not paths[name].is_file():
            del paths[name]
    absent = [path for path in paths.values() if not path.is_file()]
    if absent:
        raise CheckpointFormatError(f"{absent[0]} is missing: the ledger lists it. Save the model again.")
    found = dict(zip(paths, sha256_files(paths.values()), strict=True))
    for name, path in paths.items():
        if name in listed and found[name] != listed[name].sha256:
            raise CheckpointFormatError(
                f"{path} was changed after it was saved: its SHA-256 is not the ledger's. Save the model again."
            )
    return {name: (path, found[name]) for name, path in paths.items()}


def _open_branch(api: Any, repo_id: str, branch: str, *, may_create: bool) -> tuple[str, bool]:
    """Return the head of a branch, which is made if there is none, and whether the repository is private."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = api.model_info(repo_id, revision=branch, timeout=TIMEOUT_SECONDS)
    except RevisionNotFoundError:
        if not may_create or branch.startswith("refs/"):
            raise
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch, timeout=TIMEOUT_SECONDS)
    return info.sha, bool(info.private)


@dataclass
class _Push:
    """A push on its way, and how to find out what became of it."""

    api: Any
    repo_id: str
    branch: str
    parent: str
    wanted: Mapping[str, tuple[Path, str]]
    create_pr: bool = False
    known_pull_requests: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str) -> PushResult:
        """Make the commit; files of a saved model that the new state lacks are deleted by it."""
        from huggingface_hub import CommitOperationDelete

        with translate_hub_errors(f"push to {self.repo_id}"):
            self.known_pull_requests = self.pull_requests()
            old = repo_files(self.api, self.repo_id, self.parent)
            vanished = sorted(name for name in old if is_ours(name) and name not in self.wanted)
        additions = self._upload()
        deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in vanished]
        try:
            made = self.api.create_commit(
                self.repo_id,
                [*additions, *deletions],
                commit_message=message,
                revision=self.branch,
                create_pr=self.create_pr,
                parent_commit=self.parent,
            )
        except client_errors() as error:
            return self.after_failure(error)
        return PushResult(commit=made.oid, url=made.commit_url, pr_url=made.pr_url)

    def _upload(self) -> list[Any]:
        """Upload large files, and return what the commit adds.

        Raises:
            HubError: if the repository's .gitignore shuts one out.
        """
        from huggingface_hub import CommitOperationAdd

        with translate_hub_errors(f"push to {self.repo_id}"):
            additions = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, (path, _) in self.wanted.items()
            ]
            self.api.preupload_lfs_files(
                self.repo_id, additions, revision=self.branch, create_pr=self.create_pr, free_memory=False
            )
        ignored = [addition.path_in_repo for addition in additions if getattr(addition, "_should_ignore", False)]
        if ignored:
            raise HubError(
                f"The .gitignore of {self.repo_id} shuts out {ignored[0]}, so the model would arrive incomplete. "
                "Nothing was pushed. Change that file on the Hub."
            )
        return additions

    def pull_requests(self) -> dict[str, str]:
        """Return the heads of all pull requests, if this push is to be one."""
        if not self.create_pr:
            return {}
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def find(self) -> PushResult | None:
        """Return the commit that follows the parent if it holds exactly what is to be pushed."""
        with translate_hub_errors(f"find out whether the push to {self.repo_id} arrived"):
            if not self.create_pr:
                return self._find_on(self.branch)
            for ref in sorted(self.pull_requests().keys() - self.known_pull_requests.keys()):
                found = self._find_on(ref)
                if found is not None:
                    number = ref.rpartition("/")[2]
                    url = f"{self.api.endpoint}/{self.repo_id}/discussions/{number}"
                    return PushResult(commit=found.commit, url=found.url, pr_url=url)
            return None

    def _find_on(self, revision: str) -> PushResult | None:
        history = [commit.commit_id for commit in self.api.list_repo_commits(self.repo_id, revision=revision)]
        for later, earlier in itertools.pairwise(history):
            if earlier.startswith(self.parent):
                if not self._is_held_by(later):
                    return None
                return PushResult(commit=later, url=f"{self.api.endpoint}/{self.repo_id}/commit/{later}")
        return None

    def _is_held_by(self, commit: str) -> bool:
        tree = repo_files(self.api, self.repo_id, commit)
        if any(is_ours(name) and name not in self.wanted for name in tree):
            return False
        for name, (path, sha256) in self.wanted.items():
            entry = tree.get(name)
            if entry is None:
                return False
            if content_digest(entry) != (sha256 if entry.lfs else _git_oid(path)):
                return False
        return True

    def after_failure(self, error: BaseException) -> PushResult:
        """Look at the Hub after a commit without a good answer: it may have arrived all the same."""
        try:
            found = self.find()
            with translate_hub_errors(f"read the head of {self.repo_id}"):
                head = self.api.model_info(self.repo_id, revision=self.branch, timeout=TIMEOUT_SECONDS).sha
        except HubError:
            raise HubError(
                f"The push to {self.repo_id} got no answer ({reason_of(error)}), and the Hub does not say whether it "
                f"arrived. Push again with parent_commit={self.parent!r}: that is safe, it cannot be applied twice."
            ) from error
        if found is not None:
            return found
        if head != self.parent:
            self.conflict(head, error)
        raise HubError(
            f"Cannot push to {self.repo_id}: {reason_of(error)} The old state ({self.parent}) goes on serving."
        ) from error

    def conflict(self, head: str, error: BaseException | None = None) -> NoReturn:
        raise HubConflictError(
            f"{self.repo_id} was changed by another push: {self.branch} was expected at {self.parent} and is at "
            f"{head}. Nothing was overwritten. Pull and unmerge again, or pass that head as parent_commit to replace "
            "it."
        ) from error


def _git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
