"""Hashing files of a model while the next ones are written."""

from __future__ import annotations

import hashlib

import pytest

from hf_clamu.checkpoint.files.written import WrittenFiles


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_digests_of_files_that_have_begun_and_of_others(tmp_path):
    (tmp_path / "base").mkdir()
    contents = {"base/model.safetensors": b"base" * 10**6, "delta.safetensors": b"delta", "config.json": b"{}"}
    with WrittenFiles() as written:
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
            written.begin(tmp_path)
        # Only tensor files are complete at once.
        (tmp_path / "config.json").write_bytes(b"{...}")
        found = written.digests([tmp_path / name for name in contents])
    assert found == [_sha256(data) for data in (*list(contents.values())[:2], b"{...}")]


def test_a_file_that_cannot_be_read_raises(tmp_path):
    path = tmp_path / "delta.safetensors"
    path.mkdir()  # opening it fails, as a broken disk does
    with WrittenFiles() as written:
        written.begin(tmp_path)
        with pytest.raises(OSError, match="directory"):
            written.digests([path])
