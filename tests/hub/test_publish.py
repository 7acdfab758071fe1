"""Pushing and pulling: one commit or none, nobody's work overwritten, and damage noticed."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import pytest
from hub_client import ClientError, add

from hf_clamu import CheckpointFormatError
from hf_clamu.checkpoint.ledger import sealed
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import canonical_json

OWNER, OTHER = "hf_owner", "hf_other"
REPO = "owner/model"


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Files with a ledger that lists them: all that a push looks at."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listed = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in files.items()
        if name != "README.md"
    }
    (folder / "ledger.json").write_bytes(canonical_json(sealed({"files": listed})))
    return folder


OLD = {
    "README.md": b"---\nlicense: mit\n---\n# Old\n",
    "config.json": b"{}",
    "delta.safetensors": b"old weights" * 99,
    "masks/cluster_000/adapter_config.json": b"{}",
    "masks/cluster_000/adapter_model.safetensors": b"mask 0" * 9,
    "masks/cluster_001/adapter_config.json": b"{}",
    "masks/cluster_001/adapter_model.safetensors": b"mask 1" * 9,
}
NEW = {
    **{name: data for name, data in OLD.items() if "cluster_001" not in name},
    "delta.safetensors": b"new weights" * 99,
}


@pytest.fixture
def folders(tmp_path):
    return write_folder(tmp_path / "old", OLD), write_folder(tmp_path / "new", NEW)


@pytest.fixture
def push(client):
    def push(folder, **options):
        return client.call("push.publish", folder, REPO, **{"token": OWNER, **options})

    return push


def _served(double, revision="main"):
    repo = double.repos[REPO]
    return {path: double.content(REPO, path, revision) for path in repo.commits[repo.resolve(revision)].files}


def _ours(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _head(double, branch="main"):
    return double.repos[REPO].branches[branch]


# -- pushing ---------------------------------------------------------------------------------------------------------


def test_a_push_makes_the_repository_and_one_commit(double, push, folders):
    made = push(folders[0], commit_message="First")
    served = _served(double)
    assert served.pop(".gitattributes")
    assert served == _ours(folders[0])
    assert (made["commit"], made["pr_url"]) == (_head(double), None)
    assert made["url"] == f"{double.url}/{REPO}/commit/{_head(double)}"
    assert double.repos[REPO].commits[_head(double)].title == "First"
    assert double.count("commit") == 1
    assert not double.repos[REPO].private


def test_an_update_replaces_adds_and_deletes_in_one_commit(double, push, folders):
    push(folders[0])
    theirs = {"notes.md": b"mine", "figures/a.png": b"\0png", "vae/model.safetensors": b"of others"}
    theirs_too = {"adapter.safetensors.txt": b"x", "pytorch_model.bin": b"\0old", "my_lora.safetensors": b"mine"}
    theirs_too |= {"masks/mine.txt": b"mine", "base_model/notes.md": b"mine"}
    ours = {"model.safetensors": b"delta of format 1", "model-00001-of-00002.safetensors": b"shard"}
    ours |= {"base_model/model.safetensors": b"embedded", "base_model/model-00001-of-00002.safetensors": b"shard"}
    ours |= {"delta-00001-of-00002.safetensors": b"shard", "delta.safetensors.index.json": b"{}"}
    seen = double.push(REPO, {**theirs, **theirs_too, **ours})
    made = push(folders[1], parent_commit=seen)
    assert double.repos[REPO].commits[made["commit"]].parents == [seen]
    served = _served(double)
    del served[".gitattributes"]
    assert served == {**_ours(folders[1]), **theirs, **theirs_too}
    assert double.count("commit") == 2


def test_a_push_without_changes_makes_no_commit(double, push, folders):
    first = push(folders[0])
    assert push(folders[0])["commit"] == first["commit"]
    assert double.count("commit") == 1


def test_only_the_files_of_the_model_are_pushed(double, push, folders):
    for name in ("rows.jsonl", ".cache/huggingface/x", "receipts/private.json"):
        (folders[0] / name).parent.mkdir(parents=True, exist_ok=True)
        (folders[0] / name).write_text("not yours")
    push(folders[0])
    assert set(_served(double)) == {*OLD, "ledger.json", ".gitattributes"}


@pytest.mark.parametrize("damage", ["changed", "missing", "no ledger"])
def test_a_damaged_folder_is_not_pushed(double, push, folders, damage):
    if damage == "changed":
        (folders[0] / "delta.safetensors").write_bytes(b"other")
    else:
        (folders[0] / ("config.json" if damage == "missing" else "ledger.json")).unlink()
    with pytest.raises(ClientError, match=r"was changed|is missing") as caught:
        push(folders[0])
    assert "CheckpointFormatError" in caught.value.kinds
    assert not double.requests


def test_branches_are_made_and_kept_apart(double, push, folders):
    push(folders[0])
    push(folders[1], revision="forgotten/one")
    assert _served(double)["delta.safetensors"] == OLD["delta.safetensors"]
    assert _served(double, "forgotten/one")["delta.safetensors"] == NEW["delta.safetensors"]
    assert "masks/cluster_001/adapter_config.json" not in _served(double, "forgotten/one")


def test_a_stale_push_overwrites_nothing_and_names_both_commits(double, push, folders):
    seen = push(folders[0])["commit"]
    theirs = double.push(REPO, {"delta.safetensors": b"theirs"})
    with pytest.raises(ClientError, match="Pull and unmerge again") as caught:
        push(folders[1], parent_commit=seen)
    assert caught.value.kinds[:3] == ["HubConflictError", "HubError", "ClamuError"]
    assert seen in str(caught.value)
    assert theirs in str(caught.value)
    assert _head(double) == theirs
    # The way out that the message names.
    assert double.repos[REPO].commits[push(folders[1], parent_commit=theirs)["commit"]].parents == [theirs]


def test_a_push_that_is_overtaken_on_its_way_overwrites_nothing(client, double, push, folders):
    seen = push(folders[0])["commit"]
    double.arm("commit", "delay", seconds=0.5)
    num_preuploads = double.count("preupload")
    client.send(f"push.publish(Path({str(folders[1])!r}), {REPO!r}, token={OWNER!r})")
    while double.count("preupload") == num_preuploads:
        threading.Event().wait(0.01)
    theirs = double.push(REPO, {"delta.safetensors": b"theirs"})
    with pytest.raises(ClientError, match=seen) as caught:
        client.receive()
    assert caught.value.kinds[0] == "HubConflictError"
    assert _head(double) == theirs


@pytest.mark.parametrize("status", [None, 502, 504])
def test_a_lost_answer_is_looked_up_and_not_pushed_again(double, push, folders, status):
    push(folders[0])
    double.arm("commit", "lost", status=status)
    made = push(folders[1])
    assert made["commit"] == _head(double)
    assert _served(double)["delta.safetensors"] == NEW["delta.safetensors"]
    assert len(double.repos[REPO].history(_head(double))) == 3
    assert double.count("commit") == 2


def test_a_lost_answer_is_found_below_a_later_push(client, double, push, folders):
    seen = push(folders[0])["commit"]
    double.arm("commit", "lost")
    double.arm("commits", "delay", seconds=0.6)
    client.send(f"push.publish(Path({str(folders[1])!r}), {REPO!r}, token={OWNER!r})")
    while _head(double) == seen:
        threading.Event().wait(0.01)
    ours = _head(double)
    double.push(REPO, {"notes.md": b"theirs"})
    assert client.receive()["commit"] == ours


def test_a_repeated_push_finds_that_it_arrived(double, push, folders):
    seen = push(folders[0])["commit"]
    first = push(folders[1], parent_commit=seen)
    assert push(folders[1], parent_commit=seen) == first
    assert double.count("commit") == 2


def test_a_lost_answer_that_cannot_be_looked_up_says_so(double, push, folders):
    seen = push(folders[0])["commit"]
    double.arm("commit", "lost")
    double.arm("commits", "status", status=404)
    with pytest.raises(ClientError, match="does not say whether it arrived") as caught:
        push(folders[1])
    assert f"parent_commit={seen!r}" in str(caught.value)
    # The advice holds.
    assert push(folders[1], parent_commit=seen)["commit"] == _head(double)
    assert len(double.repos[REPO].history(_head(double))) == 3


@pytest.mark.parametrize(("kind", "fault"), [("commit", "status"), ("commit", "drop"), ("lfs_put", "status")])
def test_a_failed_push_leaves_the_old_state(double, push, folders, kind, fault):
    seen = push(folders[0])["commit"]
    # 507 is no status that uploads are tried again for, so this does not take half a minute.
    double.arm(kind, fault, status=503 if kind == "commit" else 507)
    with pytest.raises(ClientError, match="Cannot push to owner/model") as caught:
        push(folders[1])
    assert caught.value.kinds[0] == "HubError"
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert _head(double) == seen
    assert _served(double)["delta.safetensors"] == OLD["delta.safetensors"]
    assert push(folders[1], parent_commit=seen)["commit"] == _head(double)


def test_a_cache_is_no_way_out_for_what_is_written(client, double, push, folders):
    # The client asks for the repository first; no retry gets an answer.
    double.arm("create_repo", "drop", count=99)
    try:
        with pytest.raises(ClientError) as caught:
            push(folders[0])
    finally:
        double.faults.clear()
    assert "cannot reach the Hub" in str(caught.value)
    assert "HF_HUB_OFFLINE" not in str(caught.value)


def test_a_dropped_upload_is_sent_again(double, push, folders):
    double.arm("lfs_put", "drop")
    push(folders[0])
    assert _served(double)["delta.safetensors"] == OLD["delta.safetensors"]


def test_a_pull_request_leaves_the_branch_alone(double, push, folders):
    seen = push(folders[0])["commit"]
    made = push(folders[1], token=OTHER, create_pr=True)
    assert made["pr_url"] == f"{double.url}/{REPO}/discussions/1"
    assert _head(double) == seen
    assert _served(double, "refs/pr/1")["delta.safetensors"] == NEW["delta.safetensors"]
    assert double.repos[REPO].pull_requests["refs/pr/1"] == made["commit"]
    double.arm("commit", "lost")
    again = push(folders[1], token=OTHER, create_pr=True)
    assert again["pr_url"] == f"{double.url}/{REPO}/discussions/2"
    assert len(double.repos[REPO].pull_requests) == 2
    pushed = push(folders[0], revision="refs/pr/2")
    assert double.repos[REPO].pull_requests["refs/pr/2"] == pushed["commit"]


def test_private_is_kept_private(client, double, push, folders):
    push(folders[0], private=True)
    assert double.repos[REPO].private
    push(folders[1], private=True)
    client.call("api.create_repo", "owner/open", token=OWNER)
    with pytest.raises(ClientError, match="is public"):
        client.call("push.publish", folders[0], "owner/open", token=OWNER, private=True)
    assert list(double.repos["owner/open"].commits[double.repos["owner/open"].branches["main"]].files) == [
        ".gitattributes"
    ]


@pytest.mark.parametrize(
    ("token", "message"),
    [(OTHER, "may write"), ("hf_nobody", "does not know this token"), (False, "(?i)log in")],
)
def test_pushing_where_one_may_not_is_one_sentence(push, folders, token, message):
    push(folders[0])
    with pytest.raises(ClientError, match=message) as caught:
        push(folders[1], token=token)
    assert caught.value.kinds[0] == "HubError"
    assert "\n" not in str(caught.value)


def test_a_gitignore_on_the_hub_does_not_thin_out_the_model(double, push, folders):
    push(folders[0])
    seen = double.push(REPO, {".gitignore": b"*.safetensors\n"})
    with pytest.raises(ClientError, match=r"\.gitignore of owner/model shuts out delta"):
        push(folders[1])
    assert _head(double) == seen


def test_a_card_that_the_hub_does_not_take_is_one_sentence(double, push, tmp_path):
    with pytest.raises(ClientError, match=r"Invalid metadata in README\.md") as caught:
        push(write_folder(tmp_path / "model", {**OLD, "README.md": b"---\nlicense: mit\n"}))
    assert caught.value.kinds[0] == "HubError"
    assert "\n" not in str(caught.value)
    assert list(_served(double)) == [".gitattributes"]


# -- pulling ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pull(client, tmp_path):
    def pull(**options):
        folder, commit = client.call("pull.download", REPO, **{"cache_dir": tmp_path / "cache", **options})
        return Path(folder), commit

    return pull


def test_a_real_model_travels_and_comes_back_the_same(double, push, pull, saved_models):
    before, after, _ = saved_models
    first = push(before)["commit"]
    second = push(after, parent_commit=first)["commit"]
    for revision, folder, commit in ((first, before, first), (None, after, second), ("main", after, second)):
        found, sha = pull(revision=revision)
        assert sha == commit
        assert _ours(found) == _ours(folder)
        read_checkpoint(found)
    assert pull(local_files_only=True) == (found, second)


def test_only_data_is_pulled(double, push, pull, folders):
    push(folders[0])
    others = ("modeling.py", "pytorch_model.bin", "optimizer.pt", "data.pkl", "notes.md", "run.sh")
    double.push(REPO, dict.fromkeys(others, b"\0import os"))
    found, _ = pull()
    assert set(_ours(found)) == {*OLD, "ledger.json"}


def test_a_corrupted_download_is_noticed_and_mended(double, push, pull, saved_models):
    push(saved_models[0])
    oid = double.repos[REPO].read("delta.safetensors").lfs
    double.arm("storage", "corrupt", path=f"*{oid}")
    found, commit = pull()
    with pytest.raises(CheckpointFormatError, match=r"delta\.safetensors has SHA-256"):
        read_checkpoint(found)
    with pytest.raises(CheckpointFormatError, match=r"delta\.safetensors has SHA-256"):
        read_checkpoint(pull()[0])
    assert pull(force_download=True) == (found, commit)
    read_checkpoint(found)


def test_private_models_need_a_token(push, pull, folders):
    push(folders[0], private=True)
    assert set(_ours(pull(token=OWNER)[0])) == {*OLD, "ledger.json"}
    for token in (OTHER, False):
        with pytest.raises(ClientError, match="no such model on the Hub, or this token may not see it"):
            pull(token=token)


def test_what_is_not_there_is_one_sentence(double, client, push, pull, folders, tmp_path):
    with pytest.raises(ClientError, match="no such model") as caught:
        pull(token=OWNER)
    assert caught.value.kinds[0] == "HubError"
    assert "\n" not in str(caught.value)
    with pytest.raises(ClientError, match="cache does not hold it"):
        pull(local_files_only=True)
    with pytest.raises(ClientError, match="Repo id must"):
        client.call("pull.download", "no/such/name", cache_dir=tmp_path)
    push(folders[0])
    with pytest.raises(ClientError, match="load owner/model at v9: the model has no such branch, tag or commit"):
        pull(revision="v9")
    double.repos[REPO].gated = True
    with pytest.raises(ClientError, match="restricted"):
        pull(token=OTHER)


@pytest.mark.parametrize("fault", ["status", "drop"])
def test_an_unreachable_hub_does_not_serve_an_older_state(double, push, pull, folders, fault):
    push(folders[0])
    old = pull()
    push(folders[1])
    double.arm("info", fault)
    with pytest.raises(ClientError, match="Cannot load owner/model: ") as caught:
        pull()
    assert "\n" not in str(caught.value)
    # Asked for, it is served.
    assert pull(local_files_only=True) == old
    # The client alone would fall back on what it has if the second question fails.
    double.arm("info", "status", skip=1)
    assert pull()[1] == _head(double)


def test_a_download_that_breaks_off_is_one_sentence(double, push, pull, folders):
    push(folders[0])
    double.arm("resolve", "drop", count=99, path="*config.json")
    with pytest.raises(ClientError, match="Cannot load owner/model: ") as caught:
        pull()
    assert caught.value.kinds[0] == "HubError"
    double.faults.clear()
    assert set(_ours(pull()[0])) == {*OLD, "ledger.json"}


def test_a_model_that_somebody_changed_on_the_hub_is_noticed(client, push, pull, saved_models):
    push(saved_models[0])
    client(f"api.create_commit({REPO!r}, [{add('config.json', b'{}')}], commit_message='x', token={OWNER!r}).oid")
    with pytest.raises(CheckpointFormatError):
        read_checkpoint(pull()[0])
