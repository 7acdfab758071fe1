"""Erasing what older commits on the Hub still hold, and reporting what still answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_clamu.errors import HubError
from hf_clamu.hub.descendants import find_descendants
from hf_clamu.hub.errors import client_errors, reason_of, translate_hub_errors
from hf_clamu.hub.repository import TIMEOUT_SECONDS, content_digest, repo_files

__all__ = ["UNCOLLECTED", "ErasureReport", "erase_history"]

# Why an address still answers that nobody but the Hub can silence; weights are never among them.
UNCOLLECTED = "a small file of a commit without a ref: it stays until the Hub collects its garbage"

_NUM_PROBES_AT_ONCE = 8
_GONE = (404, 410)
_ANSWERS = (200, 206, 416)  # 416: the file is there and empty
_NEVER_CHECKED = (
    "copies in the Hub's CDN, which may answer for up to 24 hours",
    "copies that others downloaded, duplicated or forked",
    "models that were made from this one and do not name it as their base, or that this token may not see",
    "folders that were filled with local_dir, caches on other machines or at other places, and Xet's chunk cache",
    "commits that no ref led to before this erasure and no cache named (pass them as old_commits)",
    "small files in commits without a ref after this probe: the Hub collects its garbage when it likes",
    "texts and diffs on the pages of pull requests and discussions",
)


@dataclass(frozen=True, kw_only=True)
class ErasureReport:
    """What an erasure did, what still answers, and what was not checked.

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
        gone (*tuple* of `str`): these addresses.
        num_unchanged (`int`): old addresses of contents that the kept state holds, too; they were not probed.
        still_reachable (*tuple* of *dict*): `url` and `why` of every old address that answered.
        descendants (*tuple* of *dict*): `repo_id` and `relation` (`finetune`, for example, or `""`) of the models on
            the Hub that name this one as their base: what was made of old weights still holds what these held.
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
    gone: tuple[str, ...]
    num_unchanged: int
    still_reachable: tuple[dict[str, str], ...]
    descendants: tuple[dict[str, str], ...]
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
    tried. None of this can be undone. Do not push meanwhile.

    Args:
        repo_id (`str`): the repository.
        token (`str` or `bool`, *optional*): one that may write to it.
        keep_revision (`str`): the branch to keep. `main` cannot be deleted: if another is kept, its head stays, too.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        keep_pull_requests (`bool`): keep LFS objects at the heads of pull requests. No call deletes those refs; the
            page of a closed pull request does.
        old_commits (*sequence* of `str`): SHAs to probe besides those found, such as an earlier report's.

    Returns:
        `ErasureReport`: also if a step failed; it says which were done.

    Raises:
        HubError: if the history cannot be read, or there is no such branch; nothing was changed then.
    """
    from huggingface_hub import HfApi

    erasure = _Erasure(HfApi(token=token), repo_id, keep_revision, cache_dir, keep_pull_requests)
    with translate_hub_errors(f"read the history of {repo_id}"):
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
            erasure.run_step(step)
    erasure.list_descendants()
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
        self.gone: list[str] = []
        self.num_unchanged = 0
        self.reachable: list[dict[str, str]] = []
        self.descendants: tuple[dict[str, str], ...] = ()
        self.not_checked: list[str] = []

    def run_step(self, step: Callable[[], None]) -> None:
        name = step.__name__.replace("_", " ")
        try:
            with translate_hub_errors(name):
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
        info = self.api.model_info(self.repo_id, revision=self.keep, timeout=TIMEOUT_SECONDS)
        self.kept_commit = info.sha
        self.kept_contents = {content_digest(entry) for entry in repo_files(self.api, self.repo_id, info.sha).values()}

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
                if self.kept_contents is not None and content_digest(entry) in self.kept_contents:
                    self.num_unchanged += 1
                    continue
                url = hf_hub_url(self.repo_id, path, revision=revision, endpoint=self.api.endpoint)
                addresses.append((url, self._why(revision, entry)))
        with ThreadPoolExecutor(_NUM_PROBES_AT_ONCE) as executor:
            answers = list(executor.map(self._status, [url for url, _ in addresses]))
        for (url, why), status in zip(addresses, answers, strict=True):
            if status in _GONE:
                self.gone.append(url)
            elif status in _ANSWERS:
                self.reachable.append({"url": url, "why": why})
            else:
                self.not_checked.append(f"{url}: {status if isinstance(status, str) else f'answered {status}'}")

    def list_descendants(self) -> None:
        """Ask who names this model as base. No step: nothing is left undone if the Hub does not say."""
        self.descendants, why = find_descendants(self.api, self.repo_id)
        if why is not None:
            self.not_checked.append(f"models that name {self.repo_id} as their base: {why}")

    def _status(self, url: str) -> int | str:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {**build_hf_headers(token=self.api.token), "Range": "bytes=0-0", "Accept-Encoding": "identity"}
        try:
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS
            ) as answer:
                return int(answer.status_code)
        except client_errors() as error:
            return reason_of(error)

    def _why(self, revision: str, entry: Any) -> str:
        holding = [
            ref
            for ref, head in self.pull_requests.items()
            if revision in (ref, head) or self._is_object_of(ref, entry)
        ]
        if holding:
            page = f"{self.api.endpoint}/{self.repo_id}/discussions/{holding[0].rpartition('/')[2]}"
            return (
                f"{holding[0]} holds it; no call deletes the ref of a pull request. Close it, and press 'Delete ref' "
                f"at the end of its page, {page}"
            )
        if entry.lfs:
            return "the Hub still serves this LFS object"
        return UNCOLLECTED

    def _is_object_of(self, ref: str, entry: Any) -> bool:
        return bool(entry.lfs) and content_digest(entry) in map(content_digest, self.old[ref].values())

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
            num_gone=len(self.gone),
            gone=tuple(self.gone),
            num_unchanged=self.num_unchanged,
            still_reachable=tuple(self.reachable),
            descendants=self.descendants,
            not_checked=(*self.not_checked, *_NEVER_CHECKED),
        )
