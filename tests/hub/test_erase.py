"""Erasing: the old weights answer no more, and the report names what does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from hub_client import ClientError, add
from test_publish import NEW, OLD, OTHER, OWNER, REPO, write_folder

from hf_clamu.checkpoint.reader import read_checkpoint

ALL_STEPS = [
    *("delete tags", "delete branches", "squash branches", "delete lfs objects"),
    *("read kept state", "clean cache", "probe"),
]


@pytest.fixture
def erase(client, tmp_path):
    def erase(**options):
        return client.call("erase.erase_history", REPO, **{"token": OWNER, "cache_dir": tmp_path / "cache", **options})

    return erase


@pytest.fixture
def history(client, double, tmp_path):
    """A model that was pushed and pulled, tagged and branched, and then forgot a task; returns the old SHA."""
    old = client.call("push.publish", write_folder(tmp_path / "old", OLD), REPO, token=OWNER)["commit"]
    client.call("pull.download", REPO, cache_dir=tmp_path / "cache")
    client.call("api.create_tag", REPO, tag="v1", token=OWNER)
    client.call("api.create_branch", REPO, branch="wip/one", token=OWNER)
    client.call("push.publish", write_folder(tmp_path / "new", NEW), REPO, token=OWNER)
    return old


def _status(double, path, revision):
    url = f"{double.url}/{REPO}/resolve/{urllib.request.quote(revision, safe='')}/{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url)) as found:
            found.read()
            return found.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def _urls(report):
    return {found["url"].split("/resolve/")[1]: found["why"] for found in report["still_reachable"]}


def test_old_weights_are_gone_and_small_files_in_dangling_commits_are_named(double, erase, history):
    old = history
    report = erase()
    assert report["steps_done"] == ALL_STEPS
    assert report["steps_failed"] == []
    repo = double.repos[REPO]
    assert (list(repo.branches), repo.tags) == (["main"], {})
    assert report["deleted"]["tags"] == ["v1"]
    assert report["deleted"]["branches"] == ["wip/one"]
    assert report["deleted"]["squashed"] == ["main"]
    assert report["kept_commit"] == repo.branches["main"] != old
    assert repo.history(repo.branches["main"]) == [repo.branches["main"]]
    gone = {"delta.safetensors", "masks/cluster_001/adapter_model.safetensors"}
    for path, data in OLD.items():
        if path in gone:
            assert [_status(double, path, revision) for revision in (old, "v1", "wip/one")] == [404] * 3
        else:
            assert NEW.get(path, b"{}") == data
    assert len(report["deleted"]["lfs_objects"]) == 2
    assert {entry.lfs for entry in repo.commits[repo.branches["main"]].files.values() if entry.lfs} == set(repo.lfs)
    # The ledger is a small file: it names the forgotten task in a commit that still answers.
    urls = _urls(report)
    assert set(urls) == {f"{old}/ledger.json"}
    assert "collects its garbage" in urls[f"{old}/ledger.json"]
    assert _status(double, "ledger.json", old) == 200
    assert report["num_gone"] > 0
    assert report["num_unchanged"] > 0
    assert old in report["old_commits"]
    for words in ("24 hours", "others downloaded", "local_dir", "garbage", "old_commits"):
        assert any(words in line for line in report["not_checked"])


def test_the_kept_state_is_whole(client, double, erase, saved_models, tmp_path):
    before, after, _ = saved_models
    client.call("push.publish", before, REPO, token=OWNER)
    client.call("push.publish", after, REPO, token=OWNER)
    report = erase()
    folder, commit = client.call("pull.download", REPO, cache_dir=tmp_path / "fresh")
    assert commit == report["kept_commit"]
    read_checkpoint(Path(folder))
    for path in after.rglob("*"):
        if path.is_file():
            assert (Path(folder) / path.relative_to(after)).read_bytes() == path.read_bytes()


def test_once_the_hub_collected_its_garbage_nothing_answers(double, erase, history):
    erase()
    double.collect_garbage(REPO)
    report = erase(old_commits=(history,))
    assert report["still_reachable"] == []
    assert report["deleted"]["squashed"] == []
    assert report["steps_done"] == ALL_STEPS


def test_an_earlier_report_leads_to_old_commits(double, erase, history):
    first = erase()
    assert _urls(erase()) == {}
    assert _urls(erase(old_commits=tuple(first["old_commits"]))) == _urls(first)


def test_pull_requests_hold_on_and_are_named(client, double, erase, tmp_path):
    old = client.call("push.publish", write_folder(tmp_path / "old", OLD), REPO, token=OWNER)["commit"]
    made = f"[{add('more.bin', b'more')}], commit_message='x', token={OTHER!r}, create_pr=True"
    client(f"api.create_commit({REPO!r}, {made}).pr_url")
    client.call("push.publish", write_folder(tmp_path / "new", NEW), REPO, token=OWNER)
    urls = _urls(erase())
    assert "refs/pr/1 holds it" in urls["refs%2Fpr%2F1/delta.safetensors"]
    assert "refs/pr/1 holds it" in urls["refs%2Fpr%2F1/more.bin"]
    assert "refs/pr/1 holds it" in urls[f"{old}/delta.safetensors"]
    assert (
        f"press 'Delete ref' at the end of its page, {double.url}/{REPO}/discussions/1"
        in urls["refs%2Fpr%2F1/more.bin"]
    )
    assert _status(double, "delta.safetensors", "refs/pr/1") == 200
    report = erase(keep_pull_requests=False)
    urls = _urls(report)
    assert _status(double, "delta.safetensors", "refs/pr/1") == _status(double, "delta.safetensors", old) == 404
    assert "refs%2Fpr%2F1/delta.safetensors" not in urls
    assert "refs/pr/1 holds it" in urls["refs%2Fpr%2F1/ledger.json"]
    assert _status(double, "delta.safetensors", "main") == 200


def test_another_branch_can_be_kept_but_main_stays(client, double, erase, history):
    client.call("api.create_branch", REPO, branch="kept", token=OWNER)
    report = erase(keep_revision="kept")
    assert set(double.repos[REPO].branches) == {"main", "kept"}
    assert report["kept_commit"] == double.repos[REPO].branches["kept"]
    assert sorted(report["deleted"]["squashed"]) == ["kept", "main"]
    with pytest.raises(ClientError, match="has no branch 'none'; it has main, kept"):
        erase(keep_revision="none")


def test_the_local_cache_loses_the_old_state(client, erase, history, tmp_path):
    found = client.call("pull.download", REPO, revision=history, cache_dir=tmp_path / "cache")
    blob = (Path(found[0]) / "delta.safetensors").resolve()
    assert blob.read_bytes() == OLD["delta.safetensors"]
    report = erase()
    assert history in report["deleted"]["cached_revisions"]
    assert not blob.exists()
    assert not Path(found[0]).exists()
    with pytest.raises(ClientError, match="cache does not hold it"):
        client.call("pull.download", REPO, revision=history, cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_revision_that_only_the_cache_knows_is_probed(client, double, erase, history):
    client.call("api.delete_tag", REPO, tag="v1", token=OWNER)
    client.call("api.delete_branch", REPO, branch="wip/one", token=OWNER)
    client.call("api.super_squash_history", REPO, token=OWNER)
    report = erase()
    assert set(_urls(report)) == {f"{history}/ledger.json"}
    assert _status(double, "delta.safetensors", history) == 404


@pytest.mark.parametrize(
    ("kind", "failed"), [("tag", 0), ("branch", 1), ("squash", 2), ("lfs_files", 3), ("lfs_delete", 3)]
)
def test_a_step_that_fails_stops_the_deleting_and_is_named(double, erase, history, kind, failed):
    # 507 is a status for which the client does not try again.
    double.arm(kind, "status", status=507)
    report = erase()
    assert report["steps_done"] == ALL_STEPS[:failed] + ALL_STEPS[4:]
    assert [found["step"] for found in report["steps_failed"]] == [ALL_STEPS[failed]]
    assert "the Hub answered 507" in report["steps_failed"][0]["reason"]
    assert f"{history}/delta.safetensors" in _urls(report)
    assert "LFS object" in _urls(report)[f"{history}/delta.safetensors"]
    # Once more, and it is complete: the cache is clean by now, so the report's commits are handed on.
    again = erase(old_commits=tuple(report["old_commits"]))
    assert again["steps_failed"] == []
    assert set(_urls(again)) == {f"{history}/ledger.json"}


def test_addresses_that_could_not_be_probed_are_named(double, erase, history):
    double.arm("resolve", "status", status=503, path=f"*{history}/ledger.json")
    double.arm("resolve", "drop", path="*/v1/delta.safetensors")
    report = erase()
    assert report["still_reachable"] == []
    assert any(f"{history}/ledger.json: answered 503" in line for line in report["not_checked"])
    assert any("v1/delta.safetensors" in line for line in report["not_checked"])


def test_who_may_not_write_erases_nothing(client, double, erase, history):
    report = erase(token=OTHER)
    assert [found["step"] for found in report["steps_failed"]] == ["delete tags"]
    assert "does not permit it" in report["steps_failed"][0]["reason"]
    assert report["deleted"]["tags"] == report["deleted"]["lfs_objects"] == []
    assert double.repos[REPO].tags == {"v1": history}
    with pytest.raises(ClientError, match="Cannot read the history of owner/model: "):
        erase(token="hf_nobody")
    assert client.call("api.model_info", REPO)["sha"] == double.repos[REPO].branches["main"]


def _made_from(client, name, base, token=OTHER, private=False, **more):
    lines = "".join(f"{key}: {value}\n" for key, value in {"base_model": base, **more}.items())
    card = add("README.md", f"---\n{lines}---\n".encode())
    client.call("api.create_repo", name, private=private, token=token)
    client(f"api.create_commit({name!r}, [{card}], commit_message='x', token={token!r}).oid")


def test_models_that_name_it_as_their_base_are_listed(client, double, erase, history, monkeypatch):
    monkeypatch.setattr(double, "page_size", 1)
    assert erase()["descendants"] == []
    _made_from(client, "other/small", REPO, base_model_relation="quantized")
    _made_from(client, "other/tuned", f"[{REPO}, org/another]")
    _made_from(client, "owner/mine", REPO, token=OWNER, private=True, base_model_relation="adapter")
    _made_from(client, "other/hidden", REPO, private=True)
    _made_from(client, "other/elsewhere", "owner/model2")
    double.requests.clear()
    report = erase()
    assert report["descendants"] == [
        {"repo_id": "other/small", "relation": "quantized"},
        {"repo_id": "other/tuned", "relation": "finetune"},
        {"repo_id": "owner/mine", "relation": "adapter"},
    ]
    assert double.count("models") == 3
    # Asked for when the rest was done, and whatever became of it.
    assert [kind for kind, *_ in double.requests][-1] == "models"
    assert any("this token may not see" in line for line in report["not_checked"])
    double.arm("lfs_files", "status", status=507)
    report = erase()
    assert [found["step"] for found in report["steps_failed"]] == ["delete lfs objects"]
    assert len(report["descendants"]) == 3


def test_the_command_says_what_was_made_from_it(client, double, history, tmp_path):
    _made_from(client, "other/small", REPO, base_model_relation="quantized")
    words = [sys.executable, "-m", "hf_clamu.cli", "erase", REPO, "--yes"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {
        "HF_ENDPOINT": double.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": OWNER,
        "HF_HUB_DISABLE_XET": "1",
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    }
    run = partial(subprocess.run, env={**kept, **settings}, check=True, capture_output=True, text=True)
    assert "  made from it, may hold what was erased: other/small (quantized)\n" in run(words).stdout
    found = json.loads(run([*words, "--json"]).stdout)
    assert found["descendants"] == [{"repo_id": "other/small", "relation": "quantized"}]


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("status", 501, "the Hub answered 501"),
        ("status", 200, "its answer is no list of models"),  # a mirror that says something else
        ("corrupt", None, "JSONDecodeError"),
    ],
)
def test_a_hub_that_does_not_say_what_was_made_from_it_is_no_failure(double, erase, history, fault, status, reason):
    double.arm("models", fault, status=status)
    report = erase()
    assert (report["steps_done"], report["steps_failed"]) == (ALL_STEPS, [])
    assert report["descendants"] == []
    (line,) = [line for line in report["not_checked"] if line.startswith(f"models that name {REPO} as their base: ")]
    assert reason in line


def test_what_the_hub_said_of_descendants_before_it_failed_is_kept(client, double, erase, history, monkeypatch):
    monkeypatch.setattr(double, "page_size", 1)
    _made_from(client, "other/one", REPO)
    _made_from(client, "other/two", REPO)
    double.arm("models", "status", status=501, skip=1)
    report = erase()
    assert [model["repo_id"] for model in report["descendants"]] == ["other/one"]
    assert any("as their base: the Hub answered 501" in line for line in report["not_checked"])


def test_a_private_repository_is_probed_with_the_token(client, double, erase, tmp_path):
    old = client.call("push.publish", write_folder(tmp_path / "old", OLD), REPO, token=OWNER, private=True)["commit"]
    client.call("push.publish", write_folder(tmp_path / "new", NEW), REPO, token=OWNER)
    shutil.rmtree(tmp_path / "old")
    assert set(_urls(erase())) == {f"{old}/ledger.json"}
