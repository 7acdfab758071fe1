"""An archive in a bucket: the real client and the real hf_xet against the double."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
from hub_client import ARCHIVE_STEPS, Client, ClientError

from hf_clamu.hub.archive import HubArchive, archive_at, is_on_hub
from hf_clamu.storage import Archive

BUCKET = "org/vectors"
PLACE = f"hf://buckets/{BUCKET}"


@pytest.fixture
def built(steps, tmp_path):
    steps("build", PLACE, tmp_path / "model")
    return tmp_path / "model"


def _files(double):
    return double.buckets[BUCKET].files


def _name(folder, task_id):
    entry = json.loads((folder / "ledger.json").read_bytes())["tasks"][task_id]
    return Archive.file_name(task_id, entry["vector_digest"])


def _names(folder):
    return {_name(folder, task_id) for task_id in json.loads((folder / "ledger.json").read_bytes())["tasks"]}


def _is_bare(home):
    return [path for path in home.rglob("*") if path.is_file()] == []


def test_a_build_fills_a_private_bucket(tiny, double, built, expected, home):
    assert double.buckets[BUCKET].private
    assert set(_files(double)) == _names(built)
    assert (double.count("bucket_batch"), double.repos) == (1, {})
    assert tiny.digests(built) == tiny.digests(expected / "all")
    assert _is_bare(home)


def test_what_is_forgotten_is_gone_at_once(tiny, client, double, steps, built, expected, home, tmp_path):
    gone = _name(built, "user_1")
    entry = f"[*api.get_bucket_paths_info({BUCKET!r}, [{gone!r}])]"
    client(f"globals().__setitem__('known', {entry})")
    content = tmp_path / "content"
    read = f"api.download_bucket_files({BUCKET!r}, [(known[0], {str(content)!r})])"
    client(read)
    vector = content.read_bytes()
    before = double.count("reconstruction")
    (receipt,) = steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    # Of five vectors one was read, and the answer is the build without the task.
    assert double.count("reconstruction") - before == 1
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "without")
    assert (receipt["archive"], receipt["vectors_from"]) == ("destroyed", "archive")
    assert set(_files(double)) == _names(built) - {gone}
    # Who remembers its hash gets nothing either.
    with pytest.raises(ClientError, match="404"):
        client(read)
    # No part of it is left on this machine: neither where it waited nor in what hf_xet keeps.
    assert _is_bare(home)
    middle = vector[len(vector) // 2 :][:64]
    assert len(middle) == 64
    assert [path for path in home.parent.rglob("*") if path.is_file() and middle in path.read_bytes()] == []
    # What stays serves the next request.
    steps("request", tmp_path / "ours", tmp_path / "less", PLACE, unmerge="user_2")
    assert len(_files(double)) == 3


def test_a_task_that_comes_back_is_kept(tiny, double, steps, built, expected, tmp_path):
    steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1", add="user_1")
    assert set(_files(double)) == _names(built)
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "all")


def test_a_public_bucket_is_refused_before_anything_is_trained(double, steps, built, tmp_path):
    double.buckets[BUCKET].private = False
    for step, args, options in (
        ("build", (PLACE, tmp_path / "again"), {}),
        ("request", (built, tmp_path / "ours", PLACE), {"unmerge": "user_1"}),
    ):
        with pytest.raises(ClientError, match=r"org/vectors is public.*name another bucket") as caught:
            steps(step, *args, **options)
        assert "HubError" in caught.value.kinds
    assert len(_files(double)) == 5
    assert not (tmp_path / "again").exists()


def test_a_bucket_of_something_else_is_refused(double, steps, built, tmp_path):
    _files(double)["README.md"] = _files(double)["runs/log.txt"] = next(iter(_files(double).values()))
    with pytest.raises(ClientError, match=r"holds more than an archive \(runs/log.txt\), and requests delete files"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    del _files(double)["runs/log.txt"]
    steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert "README.md" in _files(double)


def test_a_request_makes_no_bucket(double, steps, built, tmp_path):
    with pytest.raises(ClientError, match="there is no such bucket on the Hub"):
        steps("request", built, tmp_path / "ours", "hf://buckets/org/typo", unmerge="user_1")
    assert list(double.buckets) == [BUCKET]


def test_a_vector_of_somebody_else_is_refused(double, steps, built, tmp_path):
    _files(double)[_name(built, "user_1")] = _files(double)[_name(built, "user_2")]
    with pytest.raises(ClientError, match=r"task 'user_1' in hf://buckets/org/vectors/.* is not the one") as caught:
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert "ArchiveError" in caught.value.kinds


def test_bytes_that_change_on_the_way_are_refused(double, steps, built, home, tmp_path):
    # hf_xet takes them: nothing but our own digests stands in the way.
    double.arm("xorb", "corrupt")
    with pytest.raises(ClientError, match=r"task 'user_1' in hf://buckets/org/vectors/.* is (damaged|not the one)"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert not (tmp_path / "ours").exists()
    assert _is_bare(home)


@pytest.mark.parametrize(("kind", "status"), [("xet_token", 403), ("shard_put", 400), ("bucket_batch", 403)])
def test_an_upload_that_fails_is_made_up_for(tiny, double, steps, expected, home, kind, status, tmp_path):
    double.arm(kind, "status", status=status)
    with pytest.raises(ClientError, match="Cannot write to the archive") as caught:
        steps("build", PLACE, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert ("this token does not permit it" in str(caught.value)) is (status == 403)
    assert _files(double) == {}
    assert not (tmp_path / "model").exists()
    assert not _is_bare(home)
    steps("build", PLACE, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert set(_files(double)) == _names(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == tiny.digests(expected / "all")
    assert _is_bare(home)


@pytest.mark.parametrize("kind", ["bucket_batch", "bucket_paths"])
def test_a_destruction_that_fails_is_settled_later(double, steps, built, kind, tmp_path):
    gone = _name(built, "user_1")
    double.arm(kind, "status", status=403, skip=kind == "bucket_paths")  # the first one is asked to read
    with pytest.raises(ClientError, match=r"The model is saved, but an archived vector .* could not be destroyed"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    journal = tmp_path / "ours.journal"
    (change,) = json.loads((journal / "note.json").read_bytes())["changes"]
    assert change["archive_dir"] == PLACE
    assert steps("settle", journal, change["after"], PLACE, tmp_path / "receipts") is True
    assert gone not in _files(double)


def test_an_answer_that_is_lost_changes_nothing(double, steps, built, tmp_path):
    # The client asks again, and is told that there is no such file.
    double.arm("bucket_batch", "lost", status=503)
    (receipt,) = steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert receipt["archive"] == "destroyed"
    assert set(_files(double)) == _names(built) - {_name(built, "user_1")}


def test_two_builds_at_once(tiny, server, double, steps, expected, home, tmp_path):
    other = Client(server.url, tmp_path)
    try:
        double.arm("bucket_batch", "delay", seconds=1.0, count=2)
        other.send(f"{ARCHIVE_STEPS}.build({PLACE!r}, {str(tmp_path / 'theirs')!r})")
        steps("build", PLACE, tmp_path / "ours")
        other.receive()
    finally:
        other.close()
    assert set(_files(double)) == _names(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(tmp_path / "theirs") == tiny.digests(expected / "all")


def test_a_build_that_is_killed_leaves_nothing_half_written(tiny, server, double, steps, expected, tmp_path):
    killed = Client(server.url, tmp_path)
    try:
        double.arm("shard_put", "delay", seconds=30.0)
        killed.send(f"{ARCHIVE_STEPS}.build({PLACE!r}, {str(tmp_path / 'model')!r})")
        deadline = time.monotonic() + 120
        while not double.count("xorb_put"):
            assert time.monotonic() < deadline, double.requests
            time.sleep(0.05)
    finally:
        killed.close()
    assert _files(double) == {}
    assert not (tmp_path / "model").exists()
    steps("build", PLACE, tmp_path / "model")
    assert set(_files(double)) == _names(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == tiny.digests(expected / "all")


def test_commands_take_one(double, steps, home, recipe, tmp_path):
    model = tmp_path / "model"
    assert steps("command", "train", recipe, "--output", model, "--archive", PLACE) == 0
    gone = _name(model, "user_1")
    assert gone in _files(double)
    assert steps("command", "info", model, "--archive", PLACE) == 0
    assert steps("command", "unmerge", model, "user_1", "--archive", PLACE) == 0
    assert set(_files(double)) == _names(model)
    assert _is_bare(home)


def test_places():
    archive = archive_at(PLACE)
    assert isinstance(archive, HubArchive)
    assert archive.uri == PLACE
    assert is_on_hub(PLACE)
    # No repository has this folder.
    assert archive.folder.name == "buckets--org--vectors"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("del huggingface_hub.HfApi.batch_bucket_files", r"huggingface_hub [\d.]+ knows none: install a newer one"),
        ("sys.modules['hf_xet'] = None", "which only hf_xet reads and writes: install it"),
    ],
)
def test_what_is_lacking_is_named(missing, words):
    """Clients that lack it, by taking it away from this one."""
    lines = ["import sys, huggingface_hub", missing, "from hf_clamu.hub.archive import archive_at"]
    lines += [f"print(archive_at('hf://{BUCKET}').uri)", f"archive_at({PLACE!r})"]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert run.stdout == f"hf://{BUCKET}\n"
    assert re.search(f"ArchiveError: {re.escape(PLACE)} is a bucket, .*{words}.*or name a repository", run.stderr)
