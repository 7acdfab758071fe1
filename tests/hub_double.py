"""A double of the Hugging Face Hub for tests, on loopback: spoken to by the real client, nothing is patched.

It keeps a real history. A commit answers by its SHA for as long as the real Hub would let it: squashing, deleting a
branch or a tag leaves dangling commits that go on answering; LFS objects end when they are deleted for good, small
files in dangling commits only with the garbage collection, which no client call starts (`collect_garbage` does).

```python
with HubDouble() as hub:
    run_a_process(env={"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_owner"})
    hub.arm("commit", "lost")                    # the next commit is applied, its answer never arrives
    hub.repos["owner/model"].branches["main"]    # the SHA of the head
```

`python tests/hub_double.py --port 0 --data FOLDER` serves it to other processes and prints its URL; faults are armed
there with `POST /__control__/faults` and a body such as `{"kind": "commit", "fault": "status", "status": 503}`.

Kinds of requests: see `_ROUTES`. Faults:

    status     answer `status`, do nothing
    drop       close the connection, do nothing
    lost       do it, then close the connection; with `status` answer that instead
    delay      wait `seconds`, then do it
    corrupt    send the body with one byte changed
    truncate   send half of the body, then close the connection
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import fnmatch
import hashlib
import json
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

__all__ = ["Bucket", "Fault", "HubDouble", "Repo"]

TOKENS = {"hf_owner": ("owner", ("org",)), "hf_other": ("other", ())}
LFS_BYTES = 10_000_000
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.onnx", "*.h5", "*.msgpack", "*.parquet", "*.zip", "*.gz")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


# -- the state -------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A file in a commit: a blob of git, or a pointer to an LFS object."""

    oid: str
    size: int
    lfs: str | None = None


@dataclass
class Commit:
    parents: list[str]
    files: dict[str, Entry]
    title: str
    message: str
    author: str
    date: str


@dataclass
class LfsObject:
    size: int
    pushed_at: str
    filename: str = ""
    ref: str | None = None


@dataclass
class Repo:
    """One model repository."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, LfsObject] = field(default_factory=dict)
    created_at: str = ""

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def resolve(self, revision: str) -> str:
        """Return the SHA of a branch, tag, PR ref or (shortened) SHA."""
        plain = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for names, key in ((self.branches, plain), (self.tags, plain), (self.pull_requests, revision)):
            if key in names:
                return names[key]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [sha for sha in self.commits if sha.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def heads(self) -> set[str]:
        return {*self.branches.values(), *self.tags.values(), *self.pull_requests.values()}

    def history(self, sha: str) -> list[str]:
        """SHAs from a commit back to the first one."""
        found = []
        current: str | None = sha
        while current is not None:
            found.append(current)
            parents = self.commits[current].parents
            current = parents[0] if parents else None
        return found

    def read(self, path: str, revision: str = "main") -> Entry:
        return self.commits[self.resolve(revision)].files[path]


@dataclass
class Bucket:
    """One bucket: Xet hashes by the names of files."""

    name: str
    private: bool = False
    created_at: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Term:
    """A part of a Xet file: chunks `start` to `end` (exclusive) of a xorb, `size` bytes once they are unpacked."""

    xorb: str
    size: int
    start: int
    end: int


class RefusedError(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        body: dict[str, Any] | None = None,
        *,
        commit: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.commit = commit  # that was found to lack something
        self.code = code
        self.body = body


@dataclass
class Fault:
    """What goes wrong with the next `count` requests of a kind whose path fits a pattern."""

    kind: str
    fault: str
    count: int = 1
    status: int | None = None
    seconds: float = 0.0
    path: str = "*"
    skip: int = 0


class _Bytes:
    """Contents by digest, in memory or in a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, bytes] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, data: bytes) -> None:
        if self._folder is None:
            self._memory[key] = data
        else:
            (self._folder / key).write_bytes(data)

    def get(self, key: str) -> bytes:
        if self._folder is None:
            return self._memory[key]
        return (self._folder / key).read_bytes()

    def has(self, key: str) -> bool:
        return key in self._memory if self._folder is None else (self._folder / key).exists()

    def drop(self, key: str) -> None:
        if self._folder is None:
            self._memory.pop(key, None)
        else:
            (self._folder / key).unlink(missing_ok=True)


class HubDouble:
    """The server. Enter it as a context, or call `start` and `stop`.

    Args:
        port (`int`): 0 takes a free one.
        data (`Path`, *optional*): a folder for contents and state; without one they live in memory.
        tokens (*dict*): token to a user's name and organizations.
    """

    def __init__(
        self, port: int = 0, *, data: Path | None = None, tokens: dict[str, tuple[str, tuple[str, ...]]] | None = None
    ) -> None:
        self.tokens = dict(TOKENS if tokens is None else tokens)
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, Bucket] = {}
        self.xet_files: dict[str, list[Term]] = {}  # by Xet hash; never forgotten, as clients remember what they sent
        self.xet_tokens: dict[str, tuple[str, str]] = {}  # a bucket, and "read" or "write"
        self.requests: list[tuple[str, str, str, int]] = []  # kind, method, path, status (0: no answer)
        self.faults: list[Fault] = []
        self.page_size = 1000  # of a list of models
        self.lock = threading.RLock()
        self._secret = secrets.token_hex(8)
        self._data = data
        self._contents = _Bytes(None if data is None else data / "contents")
        self._load()
        hub = self

        class Handler(_Handler):
            double = hub

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Large files live at another origin, as on the real Hub: tokens must not travel there.
        self.storage_url = f"http://localhost:{self.port}"
        self._thread: threading.Thread | None = None

    def start(self) -> HubDouble:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.close_all()

    def __enter__(self) -> HubDouble:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- for tests -----------------------------------------------------------------------------------------------

    def arm(self, kind: str, fault: str, **options: Any) -> None:
        """Let the next requests of a kind go wrong; see the module and `Fault`."""
        assert kind in {route[0] for route in _ROUTES}, f"no kind {kind!r}"
        assert fault in ("status", "drop", "lost", "delay", "corrupt", "truncate"), f"no fault {fault!r}"
        with self.lock:
            self.faults.append(Fault(kind, fault, **options))

    def count(self, kind: str, method: str | None = None) -> int:
        """How many requests of a kind came in."""
        with self.lock:
            return sum(k == kind and method in (None, m) for k, m, _, _ in self.requests)

    def collect_garbage(self, name: str) -> None:
        """Remove what no ref leads to, as the Hub's own garbage collection does some day."""
        with self.lock:
            repo = self.repos[name]
            live = {sha for head in repo.heads() for sha in repo.history(head)}
            repo.commits = {sha: commit for sha, commit in repo.commits.items() if sha in live}
            self.save()

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """The bytes of a file."""
        with self.lock:
            entry = self.repos[name].read(path, revision)
            return self._contents.get(entry.lfs or entry.oid)

    def push(self, name: str, files: dict[str, bytes | None], *, branch: str = "main", title: str = "Push") -> str:
        """Commit to a branch as somebody else would; `None` deletes a file. Returns the SHA."""
        with self.lock:
            repo = self.repos[name]
            head = repo.branches[branch]
            tree = dict(repo.commits[head].files)
            for path, data in files.items():
                if data is None:
                    del tree[path]
                elif is_lfs(path, len(data), data[:512]):
                    oid = hashlib.sha256(data).hexdigest()
                    self.put_lfs(repo, oid, data)
                    tree[path] = self.pointer(oid, len(data))
                else:
                    tree[path] = self.put_blob(data)
            repo.branches[branch] = self.commit(repo, tree, [head], title, author="somebody")
            self.save()
            return repo.branches[branch]

    # -- storage -------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes) -> Entry:
        oid = git_oid("blob", data)
        self._contents.put(oid, data)
        return Entry(oid, len(data))

    def put_lfs(self, repo: Repo, oid: str, data: bytes) -> None:
        self._contents.put(oid, data)
        repo.lfs[oid] = LfsObject(len(data), now())

    def get_bytes(self, key: str) -> bytes:
        return self._contents.get(key)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._contents.put(key, data)

    def has_bytes(self, key: str) -> bool:
        return self._contents.has(key)

    def xorb_signature(self, oid: str) -> str:
        return hashlib.sha256(f"{self._secret} {oid}".encode()).hexdigest()[:16]

    def drop_lfs(self, repo: Repo, oid: str) -> None:
        repo.lfs.pop(oid, None)
        if not any(oid in other.lfs for other in self.repos.values()):
            self._contents.drop(oid)

    @staticmethod
    def pointer(oid: str, size: int) -> Entry:
        return Entry(git_oid("blob", pointer_text(oid, size)), size, oid)

    def commit(
        self, repo: Repo, files: dict[str, Entry], parents: list[str], title: str, message: str = "", author: str = ""
    ) -> str:
        date = now()
        text = json.dumps([parents, sorted((p, e.oid) for p, e in files.items()), title, message, author, date])
        sha = git_oid("commit", f"{text}{len(repo.commits)}".encode())
        repo.commits[sha] = Commit(parents, dict(sorted(files.items())), title, message, author, date)
        return sha

    def signature(self, repo: Repo, oid: str) -> str:
        return hashlib.sha256(f"{self._secret} {repo.name} {oid}".encode()).hexdigest()[:16]

    def save(self) -> None:
        if self._data is None:
            return
        state: dict[str, Any] = {"repos": {name: asdict(repo) for name, repo in self.repos.items()}}
        state["buckets"] = {name: asdict(bucket) for name, bucket in self.buckets.items()}
        state["xet_files"] = {name: [asdict(term) for term in terms] for name, terms in self.xet_files.items()}
        partial = self._data / "state.json.new"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self._data / "state.json")

    def _load(self) -> None:
        path = None if self._data is None else self._data / "state.json"
        if path is None or not path.exists():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        self.buckets = {name: Bucket(**values) for name, values in state["buckets"].items()}
        self.xet_files = {name: [Term(**term) for term in terms] for name, terms in state["xet_files"].items()}
        for name, values in state["repos"].items():
            commits = {}
            for sha, commit in values.pop("commits").items():
                files = {p: Entry(**entry) for p, entry in commit.pop("files").items()}
                commits[sha] = Commit(files=files, **commit)
            lfs = {oid: LfsObject(**found) for oid, found in values.pop("lfs").items()}
            self.repos[name] = Repo(commits=commits, lfs=lfs, **values)

    def take_fault(self, kind: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.count > 0 and fnmatch.fnmatchcase(path, fault.path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.count -= 1
                    return fault
        return None


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer_text(oid: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    name = path.rpartition("/")[2]
    return size > LFS_BYTES or b"\0" in sample or any(fnmatch.fnmatchcase(name, p) for p in LFS_PATTERNS)


# -- the protocol ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def answer(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})


@dataclass
class Request:
    """A request with the parts of its address, its user and its body."""

    hub: HubDouble
    method: str
    parts: dict[str, str]
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    user: str | None
    orgs: tuple[str, ...]

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def may_write(self, namespace: str) -> bool:
        return self.user is not None and namespace in (self.user, *self.orgs)

    def repo(self, *, write: bool = False) -> Repo:
        """The repository of the address, if this user may see it (and change it)."""
        repo = self.hub.repos.get(self.parts["repo"])
        if repo is None or (repo.private and not self.may_write(repo.owner)):
            # Who is not logged in is not told whether it exists.
            raise RefusedError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        if write and not self.may_write(repo.owner):
            raise RefusedError(403, "You don't have the required permissions to perform this action")
        return repo

    def bucket(self, *, write: bool = False) -> Bucket:
        """The bucket of the address, if this user may see it (and change it)."""
        bucket = self.hub.buckets.get(self.parts["repo"])
        if bucket is None or (bucket.private and not self.may_write(bucket.owner)):
            raise RefusedError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and not self.may_write(bucket.owner):
            raise RefusedError(403, "You don't have the required permissions to perform this action")
        return bucket

    def xet_bucket(self, scope: str) -> Bucket:
        """The bucket that the token of a Xet request is for."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        name, allowed = self.hub.xet_tokens.get(token, ("", ""))
        if name not in self.hub.buckets:
            raise RefusedError(401, "Invalid token")
        if scope == "write" != allowed:
            raise RefusedError(403, "The token is for reading")
        return self.hub.buckets[name]


def whoami(request: Request) -> Answer:
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    return answer({"type": "user", "name": request.user, "orgs": [{"name": org} for org in request.orgs]})


def validate_yaml(request: Request) -> Answer:
    content = request.json()["content"]
    match = re.match(r"---\n(.*?)\n?---\n", content, re.DOTALL)
    if content.startswith("---\n") and match is None:
        raise RefusedError(400, "Invalid metadata", body={"errors": [{"message": "the YAML block has no end"}]})
    warnings = [] if match and match[1].strip() else [{"message": "empty or missing yaml metadata in repo card"}]
    return answer({"errors": [], "warnings": warnings})


def create_repo(request: Request) -> Answer:
    values = request.json()
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    namespace = values.get("organization") or request.user
    if not request.may_write(namespace):
        raise RefusedError(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
    name = f"{namespace}/{values['name']}"
    url = f"{request.hub.url}/{name}"
    if name in request.hub.repos:
        raise RefusedError(409, "You already created this model repo", body={"url": url, "name": name})
    private = values.get("visibility") == "private" or values.get("private") is True
    repo = Repo(name, private=private, created_at=now())
    request.hub.repos[name] = repo
    files = {".gitattributes": request.hub.put_blob(GITATTRIBUTES)}
    repo.branches["main"] = request.hub.commit(repo, files, [], "initial commit", author="system")
    return answer({"url": url, "name": name, "id": git_oid("repo", name.encode())[:24]})


def delete_repo(request: Request) -> Answer:
    values = request.json()
    request.parts["repo"] = f"{values.get('organization') or request.user}/{values['name']}"
    repo = request.repo(write=True)
    for oid in list(repo.lfs):
        request.hub.drop_lfs(repo, oid)
    del request.hub.repos[repo.name]
    return Answer()


def info(request: Request) -> Answer:
    repo = request.repo()
    sha = repo.resolve(request.parts.get("rev", "main"))
    siblings = []
    for path, entry in repo.commits[sha].files.items():
        found: dict[str, Any] = {"rfilename": path}
        if request.flag("blobs"):
            found |= {key: value for key, value in file_entry(path, entry).items() if key in ("size", "lfs")}
            found["blobId"] = entry.oid
            if "lfs" in found:
                found["lfs"]["sha256"] = found["lfs"].pop("oid")
        siblings.append(found)
    commit_ = repo.commits[sha]
    values: dict[str, Any] = {"id": repo.name, "modelId": repo.name, "author": repo.owner, "sha": sha}
    values |= {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
    values |= {"createdAt": repo.created_at, "lastModified": commit_.date, "siblings": siblings}
    return answer({**values, "tags": [], "downloads": 0, "likes": 0})


def list_models(request: Request) -> Answer:
    """Models with all the tags that are asked for, a page at a time."""
    wanted, first = set(request.query.get("filter", [])), int(request.query.get("cursor", ["0"])[0])
    found = []
    for repo in sorted(request.hub.repos.values(), key=lambda repo: repo.name):
        if repo.private and not request.may_write(repo.owner):
            continue
        tags = card_tags(request.hub, repo)
        if wanted <= set(tags):
            values = {"_id": git_oid("repo", repo.name.encode())[:24], "id": repo.name, "modelId": repo.name}
            found.append({**values, "private": repo.private, "tags": tags, "downloads": 0, "likes": 0})
    last = first + request.hub.page_size
    page = answer(found[first:last])
    if last < len(found):
        query = urlencode([*(("filter", tag) for tag in sorted(wanted)), ("cursor", last)])
        page.headers["Link"] = f'<{request.hub.url}/api/models?{query}>; rel="next"'
    return page


def card_tags(hub: HubDouble, repo: Repo) -> list[str]:
    """The tags that the Hub makes of the base models in a card."""
    import yaml

    entry = repo.commits[repo.branches["main"]].files.get("README.md")
    match = entry and re.match(r"---\n(.*?)\n---\n", hub.get_bytes(entry.oid).decode(), re.DOTALL)
    values = yaml.safe_load(match[1]) if match else None
    values = values if isinstance(values, dict) else {}
    named, relation = values.get("base_model") or [], values.get("base_model_relation", "finetune")
    bases = [named] if isinstance(named, str) else named
    return [tag for base in bases for tag in (f"base_model:{base}", f"base_model:{relation}:{base}")]


def preupload(request: Request) -> Answer:
    repo = writable(request)
    sha = repo.resolve(request.parts["rev"])
    tree = repo.commits[sha].files
    ignored = []
    if ".gitignore" in tree:
        ignored = request.hub.get_bytes(tree[".gitignore"].oid).decode().split()
    values = request.json()
    ignored += values.get("gitIgnore", "").split()
    files = []
    for file in values["files"]:
        path = file["path"]
        lfs = is_lfs(path, file["size"], base64.b64decode(file["sample"]))
        found = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
        found["shouldIgnore"] = any(fnmatch.fnmatchcase(path.rpartition("/")[2], pattern) for pattern in ignored)
        if path in tree:
            found["oid"] = tree[path].lfs or tree[path].oid
        files.append(found)
    return answer({"files": files})


def writable(request: Request) -> Repo:
    """A repository to commit to, or to open a pull request in."""
    repo = request.repo(write=not request.flag("create_pr"))
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    return repo


def lfs_batch(request: Request) -> Answer:
    repo = request.repo()
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    objects = []
    for wanted in request.json()["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.lfs:
            sign = request.hub.signature(repo, wanted["oid"])
            found["actions"] = {
                "upload": {"href": f"{request.hub.storage_url}/storage/{repo.name}/{wanted['oid']}?sign={sign}"},
                "verify": {"href": f"{request.hub.url}/{repo.name}.git/info/lfs/objects/verify"},
            }
        objects.append(found)
    return answer({"transfer": "basic", "objects": objects})


def lfs_put(request: Request) -> Answer:
    repo = signed(request)
    oid = request.parts["oid"]
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise RefusedError(400, "The content does not have the digest that was announced")
    request.hub.put_lfs(repo, oid, request.body)
    return Answer(headers={"ETag": f'"{oid}"'})


def signed(request: Request) -> Repo:
    # The storage knows no tokens; the signature in the address lets in.
    repo = request.hub.repos.get(request.parts["repo"])
    if repo is None or request.query.get("sign", [""])[0] != request.hub.signature(repo, request.parts["oid"]):
        raise RefusedError(403, "Access denied")
    return repo


def lfs_verify(request: Request) -> Answer:
    values = request.json()
    found = request.repo().lfs.get(values["oid"])
    if found is None or found.size != values["size"]:
        raise RefusedError(404, "The object is not there")
    return answer({"message": "ok"})


def storage(request: Request) -> Answer:
    repo = signed(request)
    oid = request.parts["oid"]
    if oid not in repo.lfs:
        raise RefusedError(404, "No such key")
    return ranged(request, request.hub.get_bytes(oid), {"ETag": f'"{oid}"'})


def commit(request: Request) -> Answer:
    repo = writable(request)
    hub, revision, as_pr = request.hub, request.parts["rev"], request.flag("create_pr")
    refs = repo.pull_requests if revision in repo.pull_requests else repo.branches
    if revision not in refs:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header = next(line["value"] for line in lines if line["key"] == "header")
    expected = header.get("parentCommit")
    head = refs[revision]
    if as_pr and expected:
        head = repo.resolve(expected)
    elif expected and not head.startswith(expected):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(repo.commits[head].files)
    for line in lines:
        apply_operation(hub, repo, tree, line["key"], line["value"])
    for path, entry in tree.items():
        if entry.lfs in repo.lfs:
            repo.lfs[entry.lfs].filename = path
            repo.lfs[entry.lfs].ref = revision
    sha = hub.commit(repo, tree, [head], header["summary"], header.get("description", ""), request.user or "")
    url = None
    if as_pr:
        number = len(repo.pull_requests) + 1
        repo.pull_requests[f"refs/pr/{number}"] = sha
        url = f"{hub.url}/{repo.name}/discussions/{number}"
    else:
        refs[revision] = sha
    commit_url = f"{hub.url}/{repo.name}/commit/{sha}"
    values = {"success": True, "commitOid": sha, "commitUrl": commit_url, "hookOutput": "", "pullRequestUrl": url}
    return answer(values)


def apply_operation(hub: HubDouble, repo: Repo, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    path = value.get("path", "")
    if key == "file":
        tree[path] = hub.put_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs:
            raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        tree[path] = hub.pointer(value["oid"], repo.lfs[value["oid"]].size)
    elif key == "deletedFile":
        if path not in tree:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        del tree[path]
    elif key == "deletedFolder":
        inside = [name for name in tree if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in inside:
            del tree[name]


def merge(request: Request) -> Answer:
    repo = request.repo(write=True)
    ref = f"refs/pr/{request.parts['num']}"
    if ref not in repo.pull_requests:
        raise RefusedError(404, "Discussion not found")
    sha = repo.pull_requests[ref]
    if repo.branches["main"] not in repo.history(sha):
        raise RefusedError(409, "The pull request has conflicts")
    repo.branches["main"] = sha
    return Answer()


def refs(request: Request) -> Answer:
    repo = request.repo()

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

    values: dict[str, Any] = {"converts": [], "branches": listed(repo.branches, "refs/heads/")}
    values["tags"] = listed(repo.tags, "refs/tags/")
    if request.flag("include_prs"):
        values["pullRequests"] = listed(repo.pull_requests, "")
    return answer(values)


def branch(request: Request) -> Answer:
    repo = request.repo(write=True)
    name = request.parts["name"]
    if request.method == "DELETE":
        if name == "main":
            raise RefusedError(403, "Cannot delete the main branch")
        if name not in repo.branches:
            raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del repo.branches[name]
    else:
        if name in repo.branches:
            raise RefusedError(409, "Reference already exists")
        repo.branches[name] = repo.resolve(request.json().get("startingPoint") or "main")
    return Answer()


def tag(request: Request) -> Answer:
    repo = request.repo(write=True)
    name = request.parts["name"]
    if request.method == "DELETE":
        if name not in repo.tags:
            raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del repo.tags[name]
    else:
        sha, name = repo.resolve(name), request.json()["tag"]
        if name in repo.tags:
            raise RefusedError(409, "Tag already exists")
        repo.tags[name] = sha
    return Answer()


def file_entry(path: str, entry: Entry) -> dict[str, Any]:
    values: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.lfs is not None:
        pointer_size = len(pointer_text(entry.lfs, entry.size))
        values["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": pointer_size}
    return values


def listing(repo: Repo, sha: str, expand: bool) -> dict[str, dict[str, Any]]:
    """Every file and folder of a commit as the tree and paths-info calls show them."""
    files = repo.commits[sha].files
    found = {path: file_entry(path, entry) for path, entry in files.items()}
    for folder in sorted({path[:end] for path in files for end in range(len(path)) if path[end] == "/"}):
        inside = [(path, entry.oid) for path, entry in files.items() if path.startswith(folder + "/")]
        oid = git_oid("tree", repr(inside).encode())
        found[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
    if expand:
        commit_ = repo.commits[sha]
        last = {"id": sha, "title": commit_.title, "date": commit_.date}
        for values in found.values():
            values["lastCommit"] = last
            if values["type"] == "file":
                values["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return dict(sorted(found.items()))


def tree(request: Request) -> Answer:
    repo = request.repo()
    found = listing(repo, repo.resolve(request.parts["rev"]), request.flag("expand"))
    folder = request.parts.get("path", "")
    if folder and found.get(folder, {}).get("type") != "directory":
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    prefix = f"{folder}/" if folder else ""
    inside = {path: values for path, values in found.items() if path.startswith(prefix)}
    if not request.flag("recursive"):
        inside = {path: values for path, values in inside.items() if "/" not in path.removeprefix(prefix)}
    return answer(list(inside.values()))


def paths_info(request: Request) -> Answer:
    repo = request.repo()
    form = parse_qs(request.body.decode())
    found = listing(repo, repo.resolve(request.parts["rev"]), form.get("expand", ["false"])[0].lower() == "true")
    return answer([found[path] for path in form.get("paths", []) if path in found])


def commits(request: Request) -> Answer:
    repo = request.repo()
    found = []
    for sha in repo.history(repo.resolve(request.parts["rev"])):
        made = repo.commits[sha]
        values = {"id": sha, "title": made.title, "message": made.message, "date": made.date}
        found.append({**values, "authors": [{"user": made.author}]})
    return answer(found)


def squash(request: Request) -> Answer:
    repo = request.repo(write=True)
    name = request.parts["name"]
    if name not in repo.branches:
        if name in repo.tags:
            raise RefusedError(400, "Invalid reference for a branch")
        raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    files = repo.commits[repo.branches[name]].files
    repo.branches[name] = request.hub.commit(repo, files, [], request.json()["message"], author=request.user or "")
    return Answer()


def lfs_files(request: Request) -> Answer:
    found = []
    for oid, values in request.repo(write=True).lfs.items():
        ids = {"fileOid": oid, "oid": git_oid("lfs", oid.encode())[:24]}
        found.append(
            {**ids, "filename": values.filename, "ref": values.ref, "pushedAt": values.pushed_at, "size": values.size}
        )
    return answer(found)


def lfs_delete(request: Request) -> Answer:
    repo = request.repo(write=True)
    deletions = request.json()["deletions"]
    dead = set(deletions["sha"])
    for oid in dead:
        request.hub.drop_lfs(repo, oid)
    if deletions["rewriteHistory"]:
        # Pull requests are left alone: no call is known to rewrite them.
        for names in (repo.branches, repo.tags):
            for name, sha in names.items():
                names[name] = rewritten(request.hub, repo, sha, dead)
    return Answer()


def rewritten(hub: HubDouble, repo: Repo, head: str, dead: set[str]) -> str:
    """Return a history without some objects; its commits up to the first one that held any keep their SHA."""
    parent: str | None = None
    for sha in reversed(repo.history(head)):
        old = repo.commits[sha]
        files = {path: entry for path, entry in old.files.items() if entry.lfs not in dead}
        parents = [] if parent is None else [parent]
        if files == old.files and parents == old.parents:
            parent = sha
        else:
            parent = hub.commit(repo, files, parents, old.title, old.message, old.author)
    assert parent is not None
    return parent


def resolve(request: Request) -> Answer:
    repo = request.repo()
    if repo.gated and not request.may_write(repo.owner):
        raise RefusedError(401 if request.user is None else 403, "Access to this model is restricted", "GatedRepo")
    sha = repo.resolve(request.parts["rev"])
    entry = repo.commits[sha].files.get(request.parts["path"])
    if entry is None or (entry.lfs is not None and entry.lfs not in repo.lfs):
        raise RefusedError(404, "Entry not found", "EntryNotFound", commit=sha)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.lfs or entry.oid}"'}
    if entry.lfs is None:
        return ranged(request, request.hub.get_bytes(entry.oid), headers)
    headers |= {"X-Linked-ETag": f'"{entry.lfs}"', "X-Linked-Size": str(entry.size)}
    sign = request.hub.signature(repo, entry.lfs)
    headers["Location"] = f"{request.hub.storage_url}/storage/{repo.name}/{entry.lfs}?sign={sign}"
    return Answer(status=302, headers=headers)


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or match.groups() == ("", ""):
        return Answer(data, 200, headers)
    first = int(match[1]) if match[1] else max(len(data) - int(match[2]), 0)
    last = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
    if first > last:
        return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Answer(data[first : last + 1], 206, headers)


# -- buckets and Xet -------------------------------------------------------------------------------------------------


def bucket_create(request: Request) -> Answer:
    name, values = request.parts["repo"], request.json()
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    if not request.may_write(name.split("/")[0]):
        raise RefusedError(403, f"You don't have the rights to create a bucket under the namespace of {name!r}")
    url = f"{request.hub.url}/buckets/{name}"
    if name in request.hub.buckets:
        raise RefusedError(409, "You already created this bucket", body={"url": url, "name": name})
    request.hub.buckets[name] = Bucket(name, private=values.get("visibility") == "private", created_at=now())
    return answer({"url": url, "name": name})


def bucket_info(request: Request) -> Answer:
    bucket = request.bucket()
    values: dict[str, Any] = {"id": bucket.name, "private": bucket.private, "createdAt": bucket.created_at}
    values["size"] = sum(xet_size(request.hub, oid) for oid in bucket.files.values())
    return answer({**values, "totalFiles": len(bucket.files)})


def bucket_delete(request: Request) -> Answer:
    del request.hub.buckets[request.bucket(write=True).name]
    return Answer()


def bucket_settings(request: Request) -> Answer:
    request.bucket(write=True).private = request.json()["private"]
    return Answer()


def bucket_entry(hub: HubDouble, bucket: Bucket, path: str) -> dict[str, Any]:
    oid = bucket.files[path]
    return {"type": "file", "path": path, "size": xet_size(hub, oid), "xetHash": oid, "mtime": now()}


def bucket_tree(request: Request) -> Answer:
    bucket, prefix = request.bucket(), request.parts.get("path", "")
    paths = [path for path in sorted(bucket.files) if path.startswith(prefix)]
    if request.flag("recursive"):
        folders: set[str] = set()
    else:
        folders = {path.split("/")[0] for path in paths if "/" in path}
        paths = [path for path in paths if "/" not in path]
    found = [bucket_entry(request.hub, bucket, path) for path in paths]
    return answer([*({"type": "directory", "path": path} for path in sorted(folders)), *found])


def bucket_paths(request: Request) -> Answer:
    bucket = request.bucket()
    paths = [path for path in request.json()["paths"] if path in bucket.files]
    return answer([bucket_entry(request.hub, bucket, path) for path in paths])


def bucket_batch(request: Request) -> Answer:
    """Do one operation after the other; what fails does not keep the others from being done."""
    bucket, failed = request.bucket(write=True), []
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    for line in lines:
        if line["type"] == "addFile" and line["xetHash"] in request.hub.xet_files:
            bucket.files[line["path"]] = line["xetHash"]
        elif line["type"] == "deleteFile" and line["path"] in bucket.files:
            del bucket.files[line["path"]]
        else:
            failed.append({"path": line["path"], "error": "not found"})
    values = {"success": not failed, "processed": len(lines), "succeeded": len(lines) - len(failed), "failed": failed}
    return answer(values, 422 if len(failed) == len(lines) else 200)


def bucket_resolve(request: Request) -> Answer:
    bucket = request.bucket()
    oid = bucket.files.get(request.parts["path"])
    if oid is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    route = f"{request.hub.url}/api/buckets/{bucket.name}/xet-read-token"
    headers = {"X-Xet-Hash": oid, "X-Xet-Refresh-Route": route, "X-Linked-Size": str(xet_size(request.hub, oid))}
    return Answer(headers=headers)


def xet_token(request: Request) -> Answer:
    """A token for the storage below, and where that is: at another origin, as on the real Hub."""
    scope = request.parts["scope"]
    bucket = request.bucket(write=scope == "write")
    token = f"xet-{secrets.token_hex(8)}"
    request.hub.xet_tokens[token] = (bucket.name, scope)
    return answer({"casUrl": request.hub.storage_url, "accessToken": token, "exp": int(time.time()) + 3600})


def xet_chunk(request: Request) -> Answer:
    request.xet_bucket("read")
    raise RefusedError(404, "No other file is known to have this chunk")


def xorb_put(request: Request) -> Answer:
    request.xet_bucket("write")
    key = f"xorb-{request.parts['oid']}"
    request.hub.put_bytes(key, request.body)
    return answer({"was_inserted": True})


def chunk_ends(xorb: bytes) -> list[int]:
    """Return where the chunks of a xorb begin, and where the last one ends."""
    ends = [0]
    # Of a chunk: version, packed size (3 bytes), compression, size (3 bytes), then the packed bytes.
    while ends[-1] < len(xorb) and xorb[ends[-1]] == 0:
        ends.append(ends[-1] + 8 + int.from_bytes(xorb[ends[-1] + 1 : ends[-1] + 4], "little"))
    return ends


def xet_hash(data: bytes) -> str:
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))


def shard_put(request: Request) -> Answer:
    """Take in the files of a shard: a header of 48 bytes, then entries of 48 bytes, the last one of ones."""
    request.xet_bucket("write")
    body, at = request.body, 48
    while body[at : at + 32] != b"\xff" * 32:
        oid, terms = xet_hash(body[at : at + 32]), []
        flags, count = struct.unpack_from("<II", body, at + 32)
        for start in range(at + 48, at + 48 * (count + 1), 48):
            _, size, first, last = struct.unpack_from("<4I", body, start + 32)
            terms.append(Term(xet_hash(body[start : start + 32]), size, first, last))
        for term in terms:
            if not request.hub.has_bytes(f"xorb-{term.xorb}"):
                raise RefusedError(400, f"The shard names a xorb that is not there: {term.xorb}")
        request.hub.xet_files[oid] = terms
        # What a file's entry may be followed by: hashes of its parts, and what it is.
        at += 48 * (1 + count + (count if flags & 1 << 31 else 0) + (1 if flags & 1 << 30 else 0))
    return answer({"result": 1})


def xet_size(hub: HubDouble, oid: str) -> int:
    return sum(term.size for term in hub.xet_files[oid])


def reconstruction(request: Request) -> Answer:
    """Which chunks make a range of a file, and where they are."""
    hub, oid = request.hub, request.parts["oid"]
    if oid not in request.xet_bucket("read").files.values():
        raise RefusedError(404, "File not found")
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    first, last = (int(match[1]), int(match[2])) if match else (0, xet_size(hub, oid) - 1)
    if first >= xet_size(hub, oid):
        raise RefusedError(416, "The range begins after the end")
    terms, fetch, at, skipped = [], {}, 0, 0
    for term in hub.xet_files[oid]:
        if at <= last and at + term.size > first:
            skipped = max(first - at, skipped)
            chunks = {"start": term.start, "end": term.end}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            ends = chunk_ends(hub.get_bytes(f"xorb-{term.xorb}"))
            place = {"start": ends[term.start], "end": ends[term.end] - 1}
            url = f"{hub.storage_url}/xorbs/{term.xorb}?sign={hub.xorb_signature(term.xorb)}"
            fetch.setdefault(term.xorb, []).append({"range": chunks, "url": url, "url_range": place})
        at += term.size
    return answer({"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch})


def xorb(request: Request) -> Answer:
    oid = request.parts["oid"]
    if request.query.get("sign", [""])[0] != request.hub.xorb_signature(oid):
        raise RefusedError(403, "Access denied")
    return ranged(request, request.hub.get_bytes(f"xorb-{oid}"), {})


def control(request: Request) -> Answer:
    hub, what = request.hub, request.parts["name"]
    if what == "faults" and request.method == "POST":
        hub.arm(**request.json())
    elif what == "faults":
        hub.faults.clear()
    elif what == "requests":
        return answer(hub.requests)
    elif what == "push":
        values = request.json()
        files = {path: None if text is None else text.encode() for path, text in values.pop("files").items()}
        return answer({"sha": hub.push(values.pop("repo"), files, **values)})
    elif what == "garbage":
        hub.collect_garbage(request.json()["repo"])
    elif what == "gate":
        hub.repos[request.json()["repo"]].gated = True
    else:
        raise RefusedError(404, "No such control")
    return Answer()


# Segments are matched before they are unquoted: a revision such as refs/pr/1 comes as refs%2Fpr%2F1.
_REPO = "(?P<repo>[^/]+/[^/]+)"
_API = f"/api/models/{_REPO}"
_BUCKET = f"/api/buckets/{_REPO}"
_ROUTES: list[tuple[str, str, str, Callable[[Request], Answer]]] = [
    ("whoami", "GET", "/api/whoami-v2", whoami),
    ("validate_yaml", "POST", "/api/validate-yaml", validate_yaml),
    ("create_repo", "POST", "/api/repos/create", create_repo),
    ("delete_repo", "DELETE", "/api/repos/delete", delete_repo),
    ("models", "GET", "/api/models", list_models),
    ("preupload", "POST", f"{_API}/preupload/(?P<rev>[^/]+)", preupload),
    ("lfs_batch", "POST", f"/{_REPO}\\.git/info/lfs/objects/batch", lfs_batch),
    ("lfs_verify", "POST", f"/{_REPO}\\.git/info/lfs/objects/verify", lfs_verify),
    ("lfs_put", "PUT", f"/storage/{_REPO}/(?P<oid>[0-9a-f]+)", lfs_put),
    ("storage", "GET HEAD", f"/storage/{_REPO}/(?P<oid>[0-9a-f]+)", storage),
    ("commit", "POST", f"{_API}/commit/(?P<rev>[^/]+)", commit),
    ("merge", "POST", f"{_API}/discussions/(?P<num>[0-9]+)/merge", merge),
    ("refs", "GET", f"{_API}/refs", refs),
    ("branch", "POST DELETE", f"{_API}/branch/(?P<name>[^/]+)", branch),
    ("tag", "POST DELETE", f"{_API}/tag/(?P<name>[^/]+)", tag),
    ("tree", "GET", f"{_API}/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", tree),
    ("paths_info", "POST", f"{_API}/paths-info/(?P<rev>[^/]+)", paths_info),
    ("commits", "GET", f"{_API}/commits/(?P<rev>[^/]+)", commits),
    ("squash", "POST", f"{_API}/super-squash/(?P<name>[^/]+)", squash),
    ("lfs_files", "GET", f"{_API}/lfs-files", lfs_files),
    ("lfs_delete", "POST", f"{_API}/lfs-files/batch", lfs_delete),
    ("resolve", "GET HEAD", f"/{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    ("info", "GET", f"{_API}(/revision/(?P<rev>[^/]+))?", info),
    ("bucket_create", "POST", _BUCKET, bucket_create),
    ("bucket_info", "GET", _BUCKET, bucket_info),
    ("bucket_delete", "DELETE", _BUCKET, bucket_delete),
    ("bucket_settings", "PUT", f"{_BUCKET}/settings", bucket_settings),
    ("bucket_tree", "GET", f"{_BUCKET}/tree(/(?P<path>[^/]+))?", bucket_tree),
    ("bucket_paths", "POST", f"{_BUCKET}/paths-info", bucket_paths),
    ("bucket_batch", "POST", f"{_BUCKET}/batch", bucket_batch),
    ("bucket_resolve", "GET HEAD", f"/buckets/{_REPO}/resolve/(?P<path>[^/]+)", bucket_resolve),
    ("xet_token", "GET", f"{_BUCKET}/xet-(?P<scope>read|write)-token", xet_token),
    ("xet_chunk", "GET", "/v1/chunks/[^/]+/(?P<oid>[0-9a-f]+)", xet_chunk),
    ("xorb_put", "POST", "/v1/xorbs/default/(?P<oid>[0-9a-f]+)", xorb_put),
    ("shard_put", "POST", "/v1/shards", shard_put),
    ("reconstruction", "GET", "/v1/reconstructions/(?P<oid>[0-9a-f]+)", reconstruction),
    ("xorb", "GET", "/xorbs/(?P<oid>[0-9a-f]+)", xorb),
    ("control", "GET POST DELETE", "/__control__/(?P<name>[a-z]+)", control),
]


def _route(method: str, path: str) -> tuple[str, re.Match[str], Callable[[Request], Answer]] | None:
    for kind, methods, pattern, function in _ROUTES:
        match = re.fullmatch(pattern, path)
        if match is not None and method in methods.split():
            return kind, match, function
    return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    # Headers and body in one packet: without these every answer waits for a delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    double: HubDouble

    def _serve(self) -> None:
        address = urlsplit(self.path)
        body = self._body()
        route = _route(self.command, address.path)
        if route is None:
            self._send(self._refusal(RefusedError(404, f"No route for {self.command} {address.path}")))
            self._log("unknown", 404)
            return
        kind, match, function = route
        fault = self.double.take_fault(kind, unquote(address.path))
        if fault is not None and fault.fault == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.fault == "status":
            self._send(self._refusal(RefusedError(fault.status or 503, "Something went wrong, try again later")))
            self._log(kind, fault.status or 503)
            return
        if fault is not None and fault.fault == "drop":
            self._hang_up()
            self._log(kind, 0)
            return
        parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
        made = self._carry_out(function, parts, parse_qs(address.query), body)
        if fault is not None and fault.fault == "lost":
            if fault.status is None:
                self._hang_up()
            else:
                self._send(self._refusal(RefusedError(fault.status, "Something went wrong, try again later")))
            self._log(kind, fault.status or 0)
            return
        data = bytearray(made.body)
        if fault is not None and fault.fault == "corrupt" and data:
            data[len(data) // 2] ^= 1
        self._log(kind, made.status)
        self._send(made, bytes(data), cut=fault is not None and fault.fault == "truncate")

    def _carry_out(
        self, function: Callable[[Request], Answer], parts: dict[str, str], query: dict[str, list[str]], body: bytes
    ) -> Answer:
        hub = self.double
        try:
            user, orgs = self._user()
            with hub.lock:
                made = function(Request(hub, self.command, parts, query, self.headers, body, user, orgs))
                if self.command not in ("GET", "HEAD"):
                    hub.save()
            return made
        except RefusedError as refusal:
            return self._refusal(refusal)

    def _user(self) -> tuple[str | None, tuple[str, ...]]:
        found = self.headers.get("Authorization")
        if found is None:
            return None, ()
        token = found.removeprefix("Bearer ")
        if token in self.double.xet_tokens:  # it opens nothing but the storage: see `Request.xet_bucket`
            return None, ()
        if token not in self.double.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.double.tokens[token]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @staticmethod
    def _refusal(refusal: RefusedError) -> Answer:
        headers = {"X-Error-Message": str(refusal)}
        if refusal.code is not None:
            headers["X-Error-Code"] = refusal.code
        if refusal.commit is not None:
            headers["X-Repo-Commit"] = refusal.commit
        return answer(refusal.body or {"error": str(refusal)}, refusal.status, **headers)

    def _send(self, made: Answer, body: bytes | None = None, *, cut: bool = False) -> None:
        body = made.body if body is None else body
        self.send_response(made.status)
        for name, value in made.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, kind: str, status: int) -> None:
        if kind != "control":
            with self.double.lock:
                self.double.requests.append((kind, self.command, unquote(self.path), status))

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        """Close the door and the connections that clients keep alive."""
        self.server_close()
        with self._guard:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(port: int, data: Path | None) -> Iterator[HubDouble]:
    hub = HubDouble(port, data=data)
    with hub:
        yield hub


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a double of the Hugging Face Hub on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data", type=Path, help="a folder for contents and state; without one they live in memory")
    options = parser.parse_args()
    with serving(options.port, options.data) as hub:
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
