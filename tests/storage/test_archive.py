"""Vectors come back from an archive bit for bit, or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hf_clamu
from hf_clamu import ArchiveError
from hf_clamu.exact import TaskVector
from hf_clamu.storage import Archive, Journal

STEPS = {
    "narrow": torch.tensor([[0, -1, 2**31 - 1, -(2**31 - 1)], [5, -7, 1, 3]]),
    "wide": torch.tensor([2**61, -(2**61), 0]),
    "scalar": torch.tensor(-4),
    "empty": torch.zeros(0, 3, dtype=torch.int64),
}


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "archive")


@pytest.fixture
def vector(archive):
    made = TaskVector.of(STEPS)
    archive.write("user_1", made)
    return made


def _read(archive, vector, task_id="user_1"):
    shapes = {name: steps.shape for name, steps in vector.steps.items()}
    return archive.read(task_id, vector.digest, vector.bounds, shapes)


def _path(archive):
    (found,) = archive.folder.iterdir()
    return found


def test_a_vector_comes_back(archive, vector):
    found = _read(archive, vector)
    assert (found.digest, found.bounds) == (vector.digest, vector.bounds)
    for name, steps in vector.steps.items():
        assert found.steps[name].dtype == steps.dtype
        assert torch.equal(found.steps[name], steps)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), max_size=40))
def test_any_vector_comes_back(tmp_path_factory, numbers):
    made = TaskVector.of({"w": torch.tensor(numbers, dtype=torch.int64)})
    archive = Archive(tmp_path_factory.mktemp("archive"))
    archive.write("t", made)
    assert torch.equal(_read(archive, made, "t").steps["w"], made.steps["w"])


@pytest.mark.parametrize("least_bits", [8, 32])
def test_a_vector_is_as_wide_as_it_was(archive, least_bits):
    steps = {"w": torch.tensor([3, -100]), "v": torch.tensor([2**40]), "empty": torch.zeros(0, dtype=torch.int64)}
    made = TaskVector.of(steps, least_bits)
    archive.write("t", made)
    shapes = {name: n.shape for name, n in steps.items()}
    found = archive.read("t", made.digest, made.bounds, shapes, least_bits=least_bits)
    assert {name: n.dtype for name, n in found.steps.items()} == {name: n.dtype for name, n in made.steps.items()}
    assert found.digest == made.digest
    with pytest.raises(ArchiveError):
        archive.read("t", made.digest, made.bounds, shapes, least_bits=40 - least_bits)


def test_a_file_names_nobody_and_is_for_its_owner(archive, vector):
    path = _path(archive)
    assert b"user_1" not in path.read_bytes()
    assert "user_1" not in path.name
    assert path.stat().st_mode & 0o077 == 0
    # Not even by the digest that the ledger shows: two tasks with equal vectors have a file each.
    assert vector.digest not in path.name
    archive.write("user_2", vector)
    assert len(list(archive.folder.iterdir())) == 2
    assert _read(archive, vector, "user_2").digest == vector.digest


def test_a_file_is_the_same_bytes_again(archive, vector, tmp_path):
    Archive(tmp_path / "again").write("user_1", vector)
    assert _path(Archive(tmp_path / "again")).read_bytes() == _path(archive).read_bytes()


def test_what_is_not_there(archive, vector):
    with pytest.raises(ArchiveError, match=r"no vector of task 'user_2'.*Nothing was changed.*--on-mismatch rebuild"):
        _read(archive, vector, "user_2")
    assert not archive.holds("user_2", vector.digest)
    assert archive.holds("user_1", vector.digest)


def test_no_damage_is_believed(archive, vector):
    path, draw = _path(archive), random.Random(0)
    whole = path.read_bytes()
    believed = 0
    for place in {*range(0, len(whole), 3), *range(len(whole) - 40, len(whole))}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            found = _read(archive, vector)
        except ArchiveError:
            continue
        # Two bits of the compressed streams that nobody reads, at most: what comes out is what was put in.
        believed += 1
        assert all(torch.equal(found.steps[name], steps) for name, steps in vector.steps.items())
    assert believed < 8
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match="is damaged"):
            _read(archive, vector)


def _with_data(whole, name, data):
    """Write other bytes for a tensor of a safetensors file."""
    size = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    parts, start = [], 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        old = body[slice(*entry["data_offsets"])]
        new = data if key == name else old
        entry |= {"data_offsets": [start, start + len(new)], "shape": [len(new)]}
        parts.append(new)
        start += len(new)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (zlib.compress(bytes(1 << 26)), "another size"),  # a small file that would fill the memory
        (zlib.compress(bytes(31)), "another size"),
        (zlib.compress(bytes(32)), "is not the one that was merged"),
        (zlib.compress(bytes(32))[:-1], "another size"),
        (b"no zlib", "is damaged"),
    ],
    ids=["bomb", "short", "other", "cut", "garbage"],
)
def test_data_of_somebody_else(archive, vector, data, problem):
    path = _path(archive)
    path.write_bytes(_with_data(path.read_bytes(), "narrow", data))
    with pytest.raises(ArchiveError, match=problem):
        _read(archive, vector)


def test_another_model(archive, vector):
    shapes = {name: steps.shape for name, steps in vector.steps.items() if name != "scalar"}
    with pytest.raises(ArchiveError, match="other parameters"):
        archive.read("user_1", vector.digest, vector.bounds, shapes)


def test_a_destroyed_file_is_overwritten_first(archive, vector, tmp_path):
    path = _path(archive)
    os.link(path, tmp_path / "link")  # shows what was in the blocks of the file
    size = path.stat().st_size
    archive.destroy(path.name)
    assert not path.exists()
    assert (tmp_path / "link").read_bytes() == bytes(size)
    archive.destroy(path.name)


_WRITER = """
import sys
from pathlib import Path
import torch
from hf_clamu.exact import TaskVector
from hf_clamu.storage import Archive, Journal
kind, folder = sys.argv[1], Path(sys.argv[2])
steps = {"w": torch.randint(-(2**30), 2**30, (10_000_000,), dtype=torch.int32)}
vector = TaskVector.of(steps)
print(Archive.file_name("t", vector.digest), flush=True)
while True:
    Archive(folder).write("t", vector) if kind == "archive" else Journal(folder).write("s", {}, steps)
"""


@pytest.mark.parametrize("kind", ["archive", "journal"])
def test_what_a_killed_writer_left_is_found(tmp_path, kind):
    folder = tmp_path / "folder"
    command = [sys.executable, "-c", _WRITER, kind, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_clamu.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        name = writer.stdout.readline().strip()
        # In the middle of a write, where safetensors has a file of a name of its own.
        deadline = time.monotonic() + 60
        while not any(path.is_file() for path in folder.glob(".*/*")):
            assert time.monotonic() < deadline
        writer.kill()
    assert list(folder.glob(".*/*"))
    if kind == "archive":
        Archive(folder).destroy(name)
        assert list(folder.iterdir()) == []
    else:
        Journal(folder).clear()
        assert not folder.exists()


def test_the_next_writer_finds_it_too(archive, vector):
    path = _path(archive)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.mkdir()
    (scratch / ".tmpAbCdEf").write_bytes(path.read_bytes())
    archive.write("user_1", vector)
    assert _path(archive) == path


def test_a_full_disk_leaves_no_half_file(archive, monkeypatch):
    from safetensors import SafetensorError

    def full(*arguments, **options):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("hf_clamu.storage.tensors.save_file", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left"):
        archive.write("user_1", TaskVector.of(STEPS))
    assert list(archive.folder.iterdir()) == []


# -- what may be destroyed -------------------------------------------------------------------------------------------


def _foreign(folder, kind, name):
    """Put something that no archive wrote at a place in an archive; return the file that must stay as it is."""
    victim = folder.parent / "victim"
    victim.write_bytes(b"a private key")
    if kind == "a link":
        (folder / name).symlink_to(victim)
    elif kind == "a link to a vector":
        shutil.copy(next(folder.glob("*.safetensors")), victim)
        (folder / name).symlink_to(victim)
    elif kind == "another file":
        (folder / name).write_bytes(b"a private key")
        return folder / name
    elif kind == "other tensors":
        save_file({"w": torch.ones(3)}, folder / name, metadata={"format": "pt"})
        return folder / name
    return victim


@pytest.mark.parametrize("kind", ["a link", "a link to a vector", "another file", "other tensors"])
def test_what_no_archive_wrote_is_not_destroyed(archive, vector, kind):
    name = "0" * 64 + ".safetensors"
    kept = _foreign(archive.folder, kind, name)
    before = kept.read_bytes()
    with pytest.raises(OSError, match="is no file of an archive"):
        archive.destroy_all([name])
    assert kept.read_bytes() == before


@pytest.mark.parametrize("name", ["../victim", "victim", "/etc/hosts", "0" * 64, "A" * 64 + ".safetensors", "", "."])
def test_no_other_name_is_taken(archive, vector, name):
    for folder in (archive.folder, archive.folder.parent):
        (folder / "victim").write_bytes(b"a private key")
    with pytest.raises(OSError, match="no name that a file of an archive has"):
        archive.destroy_all([name])
    for folder in (archive.folder, archive.folder.parent):
        assert (folder / "victim").read_bytes() == b"a private key"


def test_a_destruction_that_was_interrupted_goes_on(archive, vector):
    path = _path(archive)
    with path.open("r+b") as file:
        file.write(bytes(100))
    archive.destroy(path.name)
    assert not path.exists()


def test_links_in_what_a_killed_writer_left_are_not_followed(archive, vector, tmp_path):
    path = _path(archive)
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "inner" / "file").write_bytes(b"a private key")
    scratch = path.with_name(f".{path.name}.partial")
    scratch.mkdir()
    (scratch / "a").symlink_to(victim)
    (scratch / "b").symlink_to(victim / "inner" / "file")
    archive.destroy(path.name)
    assert (victim / "inner" / "file").read_bytes() == b"a private key"
    assert list(archive.folder.iterdir()) == []
