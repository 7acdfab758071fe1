"""What only an archive in a bucket has: the real hf_xet, in several processes, against the double."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
from archive_places import BucketPlace, is_bare, vector_name, vector_names
from hub_client import ARCHIVE_STEPS, Client, ClientError

BUCKET, PLACE = BucketPlace.name, BucketPlace.uri


@pytest.fixture
def built(steps, tmp_path):
    steps("build", PLACE, tmp_path / "model")
    return tmp_path / "model"


def _files(double):
    return double.buckets[BUCKET].files


def test_bytes_that_change_on_the_way_are_refused(double, steps, built, home, tmp_path):
    # hf_xet takes them: nothing but our own digests stands in the way.
    double.arm("xorb", "corrupt")
    with pytest.raises(ClientError, match=r"task 'user_1' in hf://buckets/org/vectors/.* is (damaged|not the one)"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert not (tmp_path / "ours").exists()
    assert is_bare(home)


def test_an_answer_that_is_lost_changes_nothing(double, steps, built, tmp_path):
    _files(double)["README.md"] = next(iter(_files(double).values()))
    # The client asks again, and is told that there is no such file.
    double.arm("bucket_batch", "lost", status=503)
    (receipt,) = steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert receipt["archive"] == "destroyed"
    assert set(_files(double)) == {*vector_names(built), "README.md"} - {vector_name(built, "user_1")}


def test_two_builds_at_once(tiny, server, double, steps, expected, home, tmp_path):
    other = Client(server.url, tmp_path)
    try:
        double.arm("bucket_batch", "delay", seconds=1.0, count=2)
        other.send(f"{ARCHIVE_STEPS}.build({PLACE!r}, {str(tmp_path / 'theirs')!r})")
        steps("build", PLACE, tmp_path / "ours")
        other.receive()
    finally:
        other.close()
    assert set(_files(double)) == vector_names(tmp_path / "ours")
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
    assert set(_files(double)) == vector_names(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == tiny.digests(expected / "all")


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
