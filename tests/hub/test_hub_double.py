"""The double speaks as the real client expects, and keeps a history as the real Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub_client import ClientError, add, delete

OWNER, OTHER = "hf_owner", "hf_other"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def repo(client):
    client.call("api.create_repo", "owner/model", token=OWNER)
    return "owner/model"


def _commit(client, repo, *operations, token=OWNER, **options):
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return client(
        f"vars(api.create_commit({repo!r}, [{', '.join(operations)}], commit_message='x', token={token!r}{given}))"
    )


def test_who_am_i(client):
    assert client.call("api.whoami", token=OWNER)["name"] == "owner"
    with pytest.raises(ClientError, match=r"Invalid user token|Invalid credentials"):
        client.call("api.whoami", token="hf_nobody")


def test_a_repository_is_made_once_and_deleted(client, double):
    url = client.call("api.create_repo", "owner/model", token=OWNER)
    assert url == f"{double.url}/owner/model"
    with pytest.raises(ClientError, match="already created"):
        client.call("api.create_repo", "owner/model", token=OWNER)
    client.call("api.create_repo", "owner/model", token=OWNER, exist_ok=True)
    assert client.call("api.create_repo", "org/model", token=OWNER, exist_ok=True)
    with pytest.raises(ClientError, match="rights"):
        client.call("api.create_repo", "org/stolen", token=OTHER)
    assert client("[file.rfilename for file in api.model_info('owner/model').siblings]") == [".gitattributes"]
    client.call("api.delete_repo", "owner/model", token=OWNER)
    with pytest.raises(ClientError) as caught:
        client.call("api.model_info", "owner/model", token=OWNER)
    assert "RepositoryNotFoundError" in caught.value.kinds


def test_large_files_go_to_the_storage_and_small_ones_into_the_commit(client, double, repo):
    made = _commit(client, repo, add("model.safetensors", WEIGHTS), add("config.json", b"{}"))
    assert made["oid"] == double.repos[repo].branches["main"]
    assert (double.count("lfs_batch"), double.count("lfs_put"), double.count("lfs_verify")) == (1, 1, 1)
    entry = double.repos[repo].read("model.safetensors")
    assert entry.lfs == hashlib.sha256(WEIGHTS).hexdigest()
    assert entry.size == len(WEIGHTS)
    found = client(f"{{f.path: (f.lfs or {{}}) and f.lfs.sha256 for f in api.list_repo_tree({repo!r})}}")
    assert found == {".gitattributes": {}, "config.json": {}, "model.safetensors": entry.lfs}
    # What the Hub has is neither sent nor committed again.
    assert _commit(client, repo, add("model.safetensors", WEIGHTS), add("config.json", b"{}"))["oid"] == made["oid"]
    assert (double.count("lfs_put"), double.count("commit")) == (1, 1)


def test_a_commit_onto_an_old_head_is_refused(client, double, repo):
    old = double.repos[repo].branches["main"]
    new = double.push(repo, {"a.txt": b"1"})
    with pytest.raises(ClientError, match="412"):
        _commit(client, repo, add("a.txt", b"2"), parent_commit=old)
    assert double.content(repo, "a.txt") == b"1"
    _commit(client, repo, add("a.txt", b"2"), parent_commit=new)
    assert double.content(repo, "a.txt") == b"2"


def test_files_and_folders_are_deleted_and_missing_ones_are_an_error(client, double, repo):
    double.push(repo, {"a.txt": b"1", "masks/a.json": b"1", "masks/b/c.json": b"2"})
    with pytest.raises(ClientError, match="Entry Not Found"):
        _commit(client, repo, delete("none.txt"))
    _commit(client, repo, delete("a.txt"), delete("masks/"))
    assert list(double.repos[repo].commits[double.repos[repo].branches["main"]].files) == [".gitattributes"]


def test_trees_and_paths(client, double, repo):
    sha = double.push(repo, {"a/b/c.txt": b"1", "a/d.bin": WEIGHTS, "e.txt": b"3"})
    paths = f"[entry.path for entry in api.list_repo_tree({repo!r}"
    assert client(f"{paths}, recursive=True)]") == [".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.bin", "e.txt"]
    assert client(f"{paths})]") == [".gitattributes", "a", "e.txt"]
    assert client(f"{paths}, path_in_repo='a', revision={sha!r})]") == ["a/b", "a/d.bin"]
    with pytest.raises(ClientError, match="Entry Not Found"):
        client(f"{paths}, path_in_repo='none')]")
    expanded = client(f"[e.last_commit.oid for e in api.list_repo_tree({repo!r}, expand=True)]")
    assert expanded == [sha] * 3
    found = client(f"[(e.path, e.size) for e in api.get_paths_info({repo!r}, ['e.txt', 'a/d.bin', 'none'])]")
    assert found == [["e.txt", 1], ["a/d.bin", len(WEIGHTS)]]
    blobs = client(f"{{f.rfilename: f.size for f in api.model_info({repo!r}, files_metadata=True).siblings}}")
    assert blobs["a/d.bin"] == len(WEIGHTS)


def test_branches_tags_and_pull_requests(client, double, repo):
    first = double.repos[repo].branches["main"]
    double.push(repo, {"a.txt": b"1"})
    client.call("api.create_tag", repo, tag="v1", revision=first, token=OWNER)
    client.call("api.create_branch", repo, branch="wip/two", revision=first, token=OWNER)
    for make, name in (("api.create_tag", "tag"), ("api.create_branch", "branch")):
        with pytest.raises(ClientError, match="409"):
            client.call(make, repo, token=OWNER, **{name: "v1" if name == "tag" else "wip/two"})
    made = _commit(client, repo, add("a.txt", b"2"), token=OTHER, create_pr=True)
    assert made["pr_revision"] == "refs/pr/1"
    assert double.content(repo, "a.txt") == b"1"
    _commit(client, repo, add("a.txt", b"3"), revision="refs/pr/1")
    refs = client.call("api.list_repo_refs", repo, include_pull_requests=True)
    assert [(ref["name"], ref["target_commit"]) for ref in refs["tags"]] == [("v1", first)]
    assert {ref["ref"] for ref in refs["branches"]} == {"refs/heads/main", "refs/heads/wip/two"}
    assert [ref["ref"] for ref in refs["pull_requests"]] == ["refs/pr/1"]
    for revision, content in (("main", b"1"), ("refs/pr/1", b"3"), (made["oid"], b"2"), (made["oid"][:8], b"2")):
        assert double.content(repo, "a.txt", revision) == content
    assert client.call("api.model_info", repo, revision="wip/two")["sha"] == first
    client.call("api.delete_tag", repo, tag="v1", token=OWNER)
    client.call("api.delete_branch", repo, branch="wip/two", token=OWNER)
    with pytest.raises(ClientError, match="403"):
        client.call("api.delete_branch", repo, branch="main", token=OWNER)
    with pytest.raises(ClientError) as caught:
        client.call("api.model_info", repo, revision="v1")
    assert "RevisionNotFoundError" in caught.value.kinds


def test_downloads_carry_etags_commits_and_sizes(client, double, repo, tmp_path):
    sha = double.push(repo, {"a.txt": b"hello", "w.safetensors": WEIGHTS})
    meta = "vars(huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url({!r}, {!r})))"
    small, large = client(meta.format(repo, "a.txt")), client(meta.format(repo, "w.safetensors"))
    assert (small["commit_hash"], small["size"]) == (sha, 5)
    assert small["etag"] == double.repos[repo].read("a.txt").oid
    assert (large["commit_hash"], large["size"]) == (sha, len(WEIGHTS))
    assert large["etag"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert large["location"].startswith(double.storage_url)
    for name, data in (("a.txt", b"hello"), ("w.safetensors", WEIGHTS)):
        path = client.call("huggingface_hub.hf_hub_download", repo, name, cache_dir=tmp_path)
        assert Path(path).read_bytes() == data
        assert sha in path
    assert double.count("storage") == 1


def test_ranges_and_a_download_that_breaks_off_goes_on(client, double, repo, tmp_path):
    double.push(repo, {"a.txt": b"0123456789", "w.bin": WEIGHTS, "empty.txt": b""})
    url = f"{double.url}/{repo}/resolve/main/a.txt"
    for wanted, status, body in (
        ("2-4", 206, b"234"),
        ("7-", 206, b"789"),
        ("-3", 206, b"789"),
        ("5-99", 206, b"56789"),
    ):
        request = urllib.request.Request(url, headers={"Range": f"bytes={wanted}"})
        with urllib.request.urlopen(request) as found:
            assert (found.status, found.read()) == (status, body)
    request = urllib.request.Request(url.replace("a.txt", "empty.txt"), headers={"Range": "bytes=0-0"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 416
    caught.value.close()
    double.arm("storage", "truncate")
    path = client.call("huggingface_hub.hf_hub_download", repo, "w.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert double.count("storage") == 2


def test_private_and_gated_repositories(client, double):
    client.call("api.create_repo", "owner/secret", token=OWNER, private=True)
    double.push("owner/secret", {"a.txt": b"1"})
    assert client.call("api.model_info", "owner/secret", token=OWNER)["private"] is True
    for token in (OTHER, False):
        with pytest.raises(ClientError) as caught:
            client.call("api.model_info", "owner/secret", token=token)
        assert "RepositoryNotFoundError" in caught.value.kinds
    statuses = [status for kind, _, _, status in double.requests if kind == "info"]
    assert statuses == [200, 404, 401]
    client.call("api.create_repo", "owner/public", token=OWNER)
    with pytest.raises(ClientError, match="403"):
        client.call("api.create_tag", "owner/public", tag="v1", token=OTHER)
    double.repos["owner/public"].gated = True
    with pytest.raises(ClientError) as caught:
        client.call("huggingface_hub.hf_hub_download", "owner/public", ".gitattributes", token=OTHER)
    assert "GatedRepoError" in caught.value.kinds


def test_a_squash_leaves_old_commits_that_answer_until_their_objects_are_deleted(client, double, repo):
    old = double.push(repo, {"w.bin": WEIGHTS, "a.txt": b"old"})
    new = double.push(repo, {"w.bin": WEIGHTS[::-1], "a.txt": b"new"})
    assert client(f"[c.commit_id for c in api.list_repo_commits({repo!r})]")[:2] == [new, old]
    client.call("api.super_squash_history", repo, branch="main", token=OWNER)
    head = double.repos[repo].branches["main"]
    assert client(f"[c.commit_id for c in api.list_repo_commits({repo!r})]") == [head]
    status = (
        f"huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url({repo!r}, {{!r}}, revision={old!r})).size"
    )
    assert client(status.format("w.bin")) == len(WEIGHTS)
    dead = hashlib.sha256(WEIGHTS).hexdigest()
    listed = f"[f for f in api.list_lfs_files({repo!r}, token={OWNER!r}) if f.file_oid == {dead!r}]"
    assert client(f"[f.size for f in {listed}]") == [len(WEIGHTS)]
    client(f"api.permanently_delete_lfs_files({repo!r}, {listed}, token={OWNER!r})")
    with pytest.raises(ClientError, match="Entry Not Found"):
        client(status.format("w.bin"))
    assert client(status.format("a.txt")) == 3
    assert double.repos[repo].branches["main"] == head
    double.collect_garbage(repo)
    with pytest.raises(ClientError, match="Revision Not Found"):
        client(status.format("a.txt"))


def test_deleting_objects_rewrites_a_history_that_holds_them(client, double, repo):
    first = double.push(repo, {"a.txt": b"1"})
    double.push(repo, {"w.bin": WEIGHTS})
    old = double.push(repo, {"a.txt": b"2"})
    client(
        f"api.permanently_delete_lfs_files({repo!r}, api.list_lfs_files({repo!r}, token={OWNER!r}), token={OWNER!r})"
    )
    history = double.repos[repo].history(double.repos[repo].branches["main"])
    assert old not in history
    assert first in history
    assert "w.bin" not in double.repos[repo].commits[history[0]].files


def test_faults(client, double, repo):
    double.arm("info", "status", status=500)
    with pytest.raises(ClientError, match="500"):
        client.call("api.model_info", repo)
    double.arm("info", "drop")
    with pytest.raises(ClientError) as caught:
        client.call("api.model_info", repo)
    assert "HTTPError" in caught.value.kinds
    double.arm("tag", "lost")
    with pytest.raises(ClientError):
        client.call("api.create_tag", repo, tag="v1", token=OWNER)
    assert "v1" in double.repos[repo].tags
    double.arm("tag", "lost", status=502)
    with pytest.raises(ClientError, match="502"):
        client.call("api.create_tag", repo, tag="v2", token=OWNER)
    assert "v2" in double.repos[repo].tags
    double.arm("info", "delay", seconds=0.01, path="*/other")
    client.call("api.model_info", repo)
    assert double.faults[-1].count == 1


def test_it_runs_by_itself_and_keeps_its_state_in_a_folder(tmp_path):
    script = Path(__file__).parents[1] / "hub_double.py"

    def serve():
        command = [sys.executable, str(script), "--port", "0", "--data", str(tmp_path / "data")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""})
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        return process, url

    def ask(method, url, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Authorization": f"Bearer {OWNER}"}, method=method)
        with urllib.request.urlopen(request) as found:
            return found.read()

    shas = []
    for number in range(2):
        process, url = serve()
        try:
            if number == 0:
                ask("POST", f"{url}/api/repos/create", {"name": "model", "organization": None})
                ask("POST", f"{url}/__control__/push", {"repo": "owner/model", "files": {"a.txt": "hello"}})
            assert ask("GET", f"{url}/owner/model/resolve/main/a.txt") == b"hello"
            shas.append(json.loads(ask("GET", f"{url}/api/models/owner/model"))["sha"])
            ask("POST", f"{url}/__control__/faults", {"kind": "info", "fault": "status", "status": 503})
            with pytest.raises(urllib.error.HTTPError, match="503") as caught:
                ask("GET", f"{url}/api/models/owner/model")
            caught.value.close()
        finally:
            process.terminate()
            process.communicate()
    assert shas[0] == shas[1]


def test_a_bucket_is_made_once_filled_and_emptied(client, double, tmp_path):
    made = client.call("api.create_bucket", "org/kept", private=True, token=OWNER)
    assert made["url"] == f"{double.url}/buckets/org/kept"
    with pytest.raises(ClientError, match="already created"):
        client.call("api.create_bucket", "org/kept", private=True, token=OWNER)
    client.call("api.create_bucket", "org/kept", private=True, exist_ok=True, token=OWNER)
    with pytest.raises(ClientError, match="rights"):
        client.call("api.create_bucket", "org/stolen", token=OTHER)
    # Two files with much in common, and several xorbs' worth of chunks.
    data = b"".join(hashlib.sha256(bytes([number % 256, number // 256])).digest() for number in range(20_000))
    client(f"api.batch_bucket_files('org/kept', add=[({data!r}, 'a'), ({b'x' + data!r}, 'deep/b')], token={OWNER!r})")
    tree = f"api.list_bucket_tree('org/kept', recursive=True, token={OWNER!r})"
    listed = f"sorted((entry.path, entry.size) for entry in {tree})"
    assert client(listed) == [["a", len(data)], ["deep/b", len(data) + 1]]
    assert client(f"api.bucket_info('org/kept', token={OWNER!r}).size") == 2 * len(data) + 1
    wanted = [("a", str(tmp_path / "a")), ("deep/b", str(tmp_path / "b"))]
    client(f"api.download_bucket_files('org/kept', {wanted!r}, token={OWNER!r})")
    assert (tmp_path / "a").read_bytes() == data
    assert (tmp_path / "b").read_bytes() == b"x" + data
    client(f"api.batch_bucket_files('org/kept', delete=['a'], token={OWNER!r})")
    assert client(listed) == [["deep/b", len(data) + 1]]
    with pytest.raises(ClientError, match="a: not found"):
        client(f"api.batch_bucket_files('org/kept', delete=['a'], token={OWNER!r})")
    client.call("api.delete_bucket", "org/kept", token=OWNER)
    assert double.buckets == {}


def test_a_private_bucket_is_not_there_for_others(client, double):
    client.call("api.create_bucket", "owner/kept", private=True, token=OWNER)
    for token in (OTHER, False):
        with pytest.raises(ClientError) as caught:
            client.call("api.bucket_info", "owner/kept", token=token)
        assert "BucketNotFoundError" in caught.value.kinds
    with pytest.raises(ClientError, match="404"):
        client(f"api.batch_bucket_files('owner/kept', add=[(b'x', 'a')], token={OTHER!r})")
    client.call("api.update_bucket_settings", "owner/kept", private=False, token=OWNER)
    assert client.call("api.bucket_info", "owner/kept", token=OTHER)
    with pytest.raises(ClientError, match="403"):
        client(f"api.batch_bucket_files('owner/kept', add=[(b'x', 'a')], token={OTHER!r})")
    assert double.buckets["owner/kept"].files == {}
