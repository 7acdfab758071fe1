"""Models on the Hugging Face Hub: one commit per push, checked pulls, and erasing what older commits still hold."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hf_clamu.checkpoint.layout import CARD_NAME, CONFIG_NAME, DATA_SUFFIXES, LEDGER_NAME, is_ours, require_data_names
from hf_clamu.checkpoint.ledger import listed_files, read_ledger
from hf_clamu.errors import CheckpointFormatError, ClamuError, HubConflictError, HubError
from hf_clamu.exact import sha256_files

__all__ = [
    "ErasureReport",
    "PushResult",
    "download",
    "erase_history",
    "publish",
    "readable",
    "repo_files",
    "require_reachable",
    "resolve_folder",
]

# What a pull brings; the ledger decides what is a part of the model.
_SAFE_PATTERNS = (*(f"*{suffix}" for suffix in DATA_SUFFIXES), CARD_NAME)
_TIMEOUT_SECONDS = 60.0
_NUM_PROBES_AT_ONCE = 8
_GONE = (404, 410)
_ANSWERS = (200, 206, 416)  # 416: the file is there and empty


# -- pushing ---------------------------------------------------------------------------------------------------------


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

    What is pushed are the model card, the ledger and the files that the ledger lists, each checked by its digest;
    other files in the folder stay here. Files of a saved model that the new state lacks are deleted by the same
    commit, files of others on the Hub stay. If the Hub's answer is lost, its history tells whether the commit
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
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    wanted = _files_to_push(folder)
    api = HfApi(token=token)
    branch = revision or "main"
    with readable(f"push to {repo_id}"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        head, is_private = _open_branch(api, repo_id, branch, may_create=not create_pr)
    if private and not is_private:
        raise HubError(
            f"{repo_id} is public, and the push was to be private. Nothing was pushed. Make it private in its "
            "settings on the Hub, or push without private=True."
        )
    push = _Push(api, repo_id, branch, parent_commit or head, wanted, create_pr=create_pr)
    if not head.startswith(push.parent):
        found = push.find()
        if found is None:
            push.conflict(head)
        return found
    push.parent = head
    with readable(f"push to {repo_id}"):
        push.known_pull_requests = push.pull_requests()
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, (path, _) in wanted.items()]
        vanished = sorted(name for name in repo_files(api, repo_id, head) if is_ours(name) and name not in wanted)
        api.preupload_lfs_files(repo_id, additions, revision=branch, create_pr=create_pr, free_memory=False)
    ignored = [addition.path_in_repo for addition in additions if getattr(addition, "_should_ignore", False)]
    if ignored:
        raise HubError(
            f"The .gitignore of {repo_id} shuts out {ignored[0]}, so the model would arrive incomplete. Nothing was "
            "pushed. Change that file on the Hub."
        )
    try:
        made = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in vanished)],
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=head,
        )
    except _client_errors() as error:
        return push.after_failure(error)
    return PushResult(commit=made.oid, url=made.commit_url, pr_url=made.pr_url)


def _files_to_push(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return path and SHA-256 of each file of a saved model, by its name in the repository."""
    listed = listed_files(folder, read_ledger(folder))
    require_data_names(listed)
    paths = {name: folder / name for name in sorted({*listed, LEDGER_NAME, CARD_NAME})}
    if not paths[CARD_NAME].is_file():
        del paths[CARD_NAME]
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
        info = api.model_info(repo_id, revision=branch, timeout=_TIMEOUT_SECONDS)
    except RevisionNotFoundError:
        if not may_create or branch.startswith("refs/"):
            raise
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch, timeout=_TIMEOUT_SECONDS)
    return info.sha, bool(info.private)


def repo_files(api: Any, repo_id: str, revision: str) -> dict[str, Any]:
    """Return the files of a commit by name, without folders."""
    found = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in found if hasattr(entry, "blob_id")}


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

    def pull_requests(self) -> dict[str, str]:
        """Return the heads of all pull requests, if this push is to be one."""
        if not self.create_pr:
            return {}
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def find(self) -> PushResult | None:
        """Return the commit that follows the parent if it holds exactly what is to be pushed."""
        with readable(f"find out whether the push to {self.repo_id} arrived"):
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
            if (entry.lfs.sha256 if entry.lfs else entry.blob_id) != (sha256 if entry.lfs else _git_oid(path)):
                return False
        return True

    def after_failure(self, error: BaseException) -> PushResult:
        """Look at the Hub after a commit without a good answer: it may have arrived all the same."""
        try:
            found = self.find()
            with readable(f"read the head of {self.repo_id}"):
                head = self.api.model_info(self.repo_id, revision=self.branch, timeout=_TIMEOUT_SECONDS).sha
        except HubError:
            raise HubError(
                f"The push to {self.repo_id} got no answer ({_reason(error)}), and the Hub does not say whether it "
                f"arrived. Push again with parent_commit={self.parent!r}: that is safe, it cannot be applied twice."
            ) from error
        if found is not None:
            return found
        if head != self.parent:
            self.conflict(head, error)
        raise HubError(
            f"Cannot push to {self.repo_id}: {_reason(error)} The old state ({self.parent}) goes on serving."
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


# -- pulling ---------------------------------------------------------------------------------------------------------


def is_repo_id(name: str) -> bool:
    """Whether a name that is no folder here can be a Hub id: `org/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def resolve_folder(name: str) -> Path:
    """Return the folder of a saved model, downloaded if the name is a Hub id."""
    return download(name)[0] if is_repo_id(name) else Path(name)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Bring a saved model into the local cache; only files that cannot run code are fetched.

    The client checks sizes, not contents: `read_checkpoint` checks every digest afterwards. A Hub that cannot be
    reached is an error, not a reason to serve an older state from the cache.

    Args:
        repo_id (`str`): the repository.
        revision (`str`, *optional*): branch, tag or commit; `"main"` by default.
        token (`str` or `bool`, *optional*): by default the one that `hf auth login` saved.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        local_files_only (`bool`): take what the cache holds and ask nobody; so does `HF_HUB_OFFLINE=1`.
        force_download (`bool`): fetch files that the cache holds, too: the way out of a damaged cache.

    Returns:
        *tuple* of `Path` and `str`: the folder, and the SHA of its commit.

    Raises:
        HubError: if there is no such repository or revision, or it cannot be reached or seen with this token.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    def fetch(wanted: str | None) -> Path:
        found = snapshot_download(
            repo_id,
            revision=wanted,
            token=token,
            cache_dir=cache_dir,
            local_files_only=offline,
            force_download=force_download and not offline,
            allow_patterns=list(_SAFE_PATTERNS),
        )
        return Path(found)

    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)
    with (
        _named_as_folder(repo_id),
        readable(
            f"load {repo_id}{f' at {revision}' if revision else ''}",
            "set HF_HUB_OFFLINE=1 to use what the cache holds",
        ),
    ):
        if offline:
            folder = fetch(revision)
            return folder, folder.name
        commit = str(HfApi(token=token).model_info(repo_id, revision=revision, timeout=_TIMEOUT_SECONDS).sha)
        folder = fetch(revision)
        if folder.name != commit:
            # The branch moved on in between, or the client fell back on an older state in the cache.
            folder = fetch(commit)
        return folder, commit


@contextmanager
def _named_as_folder(name: str) -> Iterator[None]:
    """Say that a name is no folder either where the Hub does not know it: it may be a path, seen from elsewhere."""
    from huggingface_hub import errors

    try:
        yield
    except HubError as error:
        cause = error.__cause__
        absent = (errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
        if isinstance(cause, errors.GatedRepoError) or not (isinstance(cause, absent) or _is_unreachable(cause)):
            raise
        raise HubError(f"There is no such folder here, and not found on the Hub: {name}. {error}") from cause


def require_reachable(
    name: str, *, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> None:
    """Ask the Hub once for a model that is neither here nor in the cache; loaders ask an unreachable Hub many times.

    Raises:
        HubError: if the Hub cannot be reached. Whatever else is wrong, loading says.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if Path(name).exists():
        return  # the user means what is here
    try:
        if constants.HF_HUB_OFFLINE or isinstance(
            try_to_load_from_cache(name, CONFIG_NAME, cache_dir=cache_dir, revision=revision), str
        ):
            return
        HfApi(token=token).model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    except _client_errors() as error:
        if _is_unreachable(error):
            raise HubError(
                f"Cannot load {name}: there is no such folder here, it is not in the cache, and "
                f"{_reason(error, 'give a folder that holds the model')}"
            ) from error


# -- erasing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ErasureReport:
    """What an erasure did, what still answers, and what nobody checked.

    Args:
        repo_id (`str`): the repository.
        kept_revision (`str`): the branch whose head was kept.
        kept_commit (`str`): SHA of that head afterwards.
        steps_done (*tuple* of `str`): in the order they were done.
        steps_failed (*tuple* of *dict*): `step` and `reason`; steps on the Hub after the first failure were not tried.
        deleted (*dict*): names of `tags` and `branches`, `squashed` branches, `lfs_objects` (SHA-256) and
            `cached_revisions` (SHAs).
        old_commits (*tuple* of `str`): SHAs whose files were probed.
        num_gone (`int`): old addresses that answered that there is nothing.
        num_unchanged (`int`): old addresses of contents that the kept state holds, too; they were not probed.
        still_reachable (*tuple* of *dict*): `url` and `why` of every old address that answered.
        not_checked (*tuple* of `str`): what may still hold old contents and was not or could not be looked at.
    """

    repo_id: str
    kept_revision: str
    kept_commit: str
    steps_done: tuple[str, ...]
    steps_failed: tuple[dict[str, str], ...]
    deleted: dict[str, tuple[str, ...]]
    old_commits: tuple[str, ...]
    num_gone: int
    num_unchanged: int
    still_reachable: tuple[dict[str, str], ...]
    not_checked: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return asdict(self)


def erase_history(
    repo_id: str,
    *,
    token: str | bool | None = None,
    keep_revision: str = "main",
    cache_dir: str | Path | None = None,
    keep_pull_requests: bool = True,
    old_commits: Sequence[str] = (),
) -> ErasureReport:
    """Remove everything but the head of one branch, as far as the Hub allows, and report what still answers.

    Push the new state first. Tags and other branches are deleted, the remaining branches squashed, LFS objects that no
    ref needs any more deleted for good, and old revisions removed from the local cache; then every old address is
    tried. None of this can be undone. Nobody should push meanwhile.

    Args:
        repo_id (`str`): the repository.
        token (`str` or `bool`, *optional*): one that may write to it.
        keep_revision (`str`): the branch to keep. `main` cannot be deleted: if another is kept, its head stays, too.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        keep_pull_requests (`bool`): keep LFS objects at the heads of pull requests. No call deletes those refs.
        old_commits (*sequence* of `str`): SHAs to probe besides those found, such as an earlier report's.

    Returns:
        `ErasureReport`: also if a step failed; it says which were done.

    Raises:
        HubError: if the history cannot be read, or there is no such branch; nothing was changed then.
    """
    from huggingface_hub import HfApi

    erasure = _Erasure(HfApi(token=token), repo_id, keep_revision, cache_dir, keep_pull_requests)
    with readable(f"read the history of {repo_id}"):
        erasure.collect(old_commits)
    for on_the_hub, step in (
        (True, erasure.delete_tags),
        (True, erasure.delete_branches),
        (True, erasure.squash_branches),
        (True, erasure.delete_lfs_objects),
        (False, erasure.read_kept_state),
        (False, erasure.clean_cache),
        (False, erasure.probe),
    ):
        if not (on_the_hub and erasure.failed):
            erasure.carry_out(step)
    return erasure.report()


class _Erasure:
    def __init__(
        self, api: Any, repo_id: str, keep: str, cache_dir: str | Path | None, keep_pull_requests: bool
    ) -> None:
        self.api = api
        self.repo_id = repo_id
        self.keep = keep
        self.cache_dir = cache_dir
        self.keep_pull_requests = keep_pull_requests
        self.failed: list[dict[str, str]] = []
        self.done: list[str] = []
        self.deleted: dict[str, list[str]] = {
            key: [] for key in ("tags", "branches", "squashed", "lfs_objects", "cached_revisions")
        }
        self.old: dict[str, dict[str, Any]] = {}  # files by the SHA or the name of a revision
        self.pull_requests: dict[str, str] = {}
        self.kept_commit = ""
        self.kept_contents: set[str] | None = None
        self.num_gone = 0
        self.num_unchanged = 0
        self.reachable: list[dict[str, str]] = []
        self.not_checked: list[str] = []

    def carry_out(self, step: Callable[[], None]) -> None:
        name = step.__name__.replace("_", " ")
        try:
            with readable(name):
                step()
        except HubError as error:
            self.failed.append({"step": name, "reason": str(error)})
        else:
            self.done.append(name)

    def collect(self, old_commits: Sequence[str]) -> None:
        """List what every ref leads to, before anything is deleted."""
        from huggingface_hub.errors import HfHubHTTPError

        refs = self._refs()
        if self.keep not in {ref.name for ref in refs.branches}:
            raise HubError(
                f"{self.repo_id} has no branch {self.keep!r}; it has {', '.join(ref.name for ref in refs.branches)}."
            )
        self.kept_commit = next(ref.target_commit for ref in refs.branches if ref.name == self.keep)
        self.pull_requests = {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
        names = [ref.name for ref in (*refs.branches, *refs.tags)] + [ref.ref for ref in refs.converts]
        targets = {ref.target_commit for ref in (*refs.branches, *refs.converts, *refs.tags)}
        commits = dict.fromkeys([*old_commits, *self._cached_revisions()])
        for target in sorted(targets | set(self.pull_requests.values())):
            found = self.api.list_repo_commits(self.repo_id, revision=target)
            commits |= dict.fromkeys(commit.commit_id for commit in found)
        for revision in [*commits, *names, *self.pull_requests]:
            try:
                self.old[revision] = repo_files(self.api, self.repo_id, revision)
            except HfHubHTTPError as error:
                if error.response.status_code not in _GONE or revision in (*names, *self.pull_requests):
                    raise

    def delete_tags(self) -> None:
        for ref in self._refs().tags:
            self.api.delete_tag(self.repo_id, tag=ref.name)
            self.deleted["tags"].append(ref.name)

    def delete_branches(self) -> None:
        for ref in self._refs().branches:
            if ref.name not in (self.keep, "main"):
                self.api.delete_branch(self.repo_id, branch=ref.name)
                self.deleted["branches"].append(ref.name)

    def squash_branches(self) -> None:
        for ref in self._refs().branches:
            if len(self.api.list_repo_commits(self.repo_id, revision=ref.name)) > 1:
                self.api.super_squash_history(self.repo_id, branch=ref.name, commit_message="Erase the history")
                self.deleted["squashed"].append(ref.name)

    def delete_lfs_objects(self) -> None:
        refs = self._refs()
        kept = [*refs.branches, *refs.converts, *refs.tags]
        kept += (refs.pull_requests or []) if self.keep_pull_requests else []
        live = {
            entry.lfs.sha256
            for commit in {ref.target_commit for ref in kept}
            for entry in repo_files(self.api, self.repo_id, commit).values()
            if entry.lfs
        }
        # By the object's digest alone: the listing's file names and refs are guesses of the Hub.
        dead = [file for file in self.api.list_lfs_files(self.repo_id) if file.file_oid not in live]
        if dead:
            self.api.permanently_delete_lfs_files(self.repo_id, dead, rewrite_history=True)
            self.deleted["lfs_objects"] = sorted(file.file_oid for file in dead)

    def read_kept_state(self) -> None:
        """Read the new head: a squash gives it another SHA."""
        info = self.api.model_info(self.repo_id, revision=self.keep, timeout=_TIMEOUT_SECONDS)
        self.kept_commit = info.sha
        self.kept_contents = {_content(entry) for entry in repo_files(self.api, self.repo_id, info.sha).values()}

    def clean_cache(self) -> None:
        from huggingface_hub import scan_cache_dir

        old = [commit for commit in self._cached_revisions() if commit != self.kept_commit]
        if not old:
            return
        scan_cache_dir(self.cache_dir).delete_revisions(*old).execute()
        left = self._cached_revisions()
        self.deleted["cached_revisions"] = [commit for commit in old if commit not in left]
        for commit in old:
            if commit in left:
                self.reachable.append({"url": left[commit], "why": "it could not be removed from the local cache"})

    def probe(self) -> None:
        """Ask for the first byte at every old address, all the way to the storage."""
        from huggingface_hub import hf_hub_url

        addresses = []
        for revision, files in self.old.items():
            if revision in (self.kept_commit, self.keep):
                continue
            for path, entry in files.items():
                if self.kept_contents is not None and _content(entry) in self.kept_contents:
                    self.num_unchanged += 1
                    continue
                url = hf_hub_url(self.repo_id, path, revision=revision, endpoint=self.api.endpoint)
                addresses.append((url, self._why(revision, entry)))
        with ThreadPoolExecutor(_NUM_PROBES_AT_ONCE) as executor:
            answers = list(executor.map(self._status, [url for url, _ in addresses]))
        for (url, why), status in zip(addresses, answers, strict=True):
            if status in _GONE:
                self.num_gone += 1
            elif status in _ANSWERS:
                self.reachable.append({"url": url, "why": why})
            else:
                self.not_checked.append(f"{url}: {status if isinstance(status, str) else f'answered {status}'}")

    def _status(self, url: str) -> int | str:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {**build_hf_headers(token=self.api.token), "Range": "bytes=0-0", "Accept-Encoding": "identity"}
        try:
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
            ) as answer:
                return int(answer.status_code)
        except _client_errors() as error:
            return _reason(error)

    def _why(self, revision: str, entry: Any) -> str:
        holding = [
            ref
            for ref, head in self.pull_requests.items()
            if revision in (ref, head) or (entry.lfs and _content(entry) in map(_content, self.old[ref].values()))
        ]
        if holding:
            return f"{holding[0]} holds it; no call deletes the ref of a pull request, only the Hub's support does"
        if entry.lfs:
            return "the Hub still serves this LFS object"
        return "a small file of a commit without a ref: it stays until the Hub collects its garbage"

    def _refs(self) -> Any:
        return self.api.list_repo_refs(self.repo_id, include_pull_requests=True)

    def _cached_revisions(self) -> dict[str, str]:
        """Return the folders of this repository in the local cache by commit."""
        from huggingface_hub import CacheNotFound, scan_cache_dir

        try:
            repos = scan_cache_dir(self.cache_dir).repos
        except CacheNotFound:
            return {}
        found = [repo for repo in repos if (repo.repo_type, repo.repo_id) == ("model", self.repo_id)]
        return {rev.commit_hash: str(rev.snapshot_path) for repo in found for rev in sorted(repo.revisions, key=str)}

    def report(self) -> ErasureReport:
        return ErasureReport(
            repo_id=self.repo_id,
            kept_revision=self.keep,
            kept_commit=self.kept_commit,
            steps_done=tuple(self.done),
            steps_failed=tuple(self.failed),
            deleted={key: tuple(values) for key, values in self.deleted.items()},
            old_commits=tuple(commit for commit in self.old if len(commit) == 40 and commit != self.kept_commit),
            num_gone=self.num_gone,
            num_unchanged=self.num_unchanged,
            still_reachable=tuple(self.reachable),
            not_checked=(*self.not_checked, *_NEVER_CHECKED),
        )


_NEVER_CHECKED = (
    "copies in the Hub's CDN, which may answer for up to 24 hours",
    "copies that others downloaded, duplicated or forked",
    "folders that were filled with local_dir, caches on other machines or at other places, and Xet's chunk cache",
    "commits that no ref led to before this erasure and no cache named (pass them as old_commits)",
    "small files in commits without a ref after this probe: the Hub collects its garbage when it likes",
    "texts and diffs on the pages of pull requests and discussions",
)


def _content(entry: Any) -> str:
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


# -- errors ----------------------------------------------------------------------------------------------------------


def _client_errors() -> tuple[type[BaseException], ...]:
    """Return what the client raises; its HTTP library changed its name between releases."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_error = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return (http_error, OSError, ValueError, RuntimeError, EntryNotFoundError)


@contextmanager
def readable(what: str, or_else: str = "try again later") -> Iterator[None]:
    """Turn errors of the client into one sentence.

    Args:
        what (`str`): what cannot be done.
        or_else (`str`): what to do where the Hub cannot be reached.
    """
    try:
        yield
    except ClamuError:
        raise
    except _client_errors() as error:
        raise HubError(f"Cannot {what}: {_reason(error, or_else)}") from error


def _reason(error: BaseException, or_else: str = "try again later") -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "access to it is restricted. Ask for access on its page and log in with `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such model on the Hub, or this token may not see it. Check the name, and log in with "
            "`hf auth login` or pass token=... if it is private."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such branch, tag or commit (an erased commit is gone for good)."
    if status == 401:
        return "the Hub does not know this token. Log in with `hf auth login` or pass token=...."
    if status == 403:
        return "this token does not permit it. Use one that may write to the repository."
    if status is not None and (status >= 500 or status == 429):
        return f"the Hub answered {status}. Try again later."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on. Unset HF_HUB_OFFLINE."
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__
        if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
            return _reason(cause, or_else)
        return "the cache does not hold it completely, and nothing may be fetched. Load it once while online."
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f"{_first_line(error)} {_reason(error.__cause__, or_else)}"
    if _is_unreachable(error):
        return f"this machine cannot reach the Hub ({_first_line(error)}). Check the network, or {or_else}."
    return f"{_first_line(error)} ({type(error).__name__})."


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether there was no answer at all."""
    http_error = _client_errors()[0]
    return isinstance(error, (http_error, ConnectionError, TimeoutError)) and getattr(error, "response", None) is None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
