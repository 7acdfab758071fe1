"""Each byte of a model is hashed once: by file, while it is unchanged; and whoever changes it is found out."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuModel, IncompatibleBaseError
from hf_clamu.checkpoint.files.unchanged import FileStamps
from hf_clamu.checkpoint.ledger import sealed
from hf_clamu.checkpoint.reader import opened_checkpoint, read_checkpoint
from hf_clamu.exact import canonical_json

# Longer than timestamps are coarse: only then is a file that was just written relied on.
SETTLED = 2.1
WEIGHTS = ["base_model/model.safetensors", "delta.safetensors"]


def _digests_of(folder, real=hashlib.sha256):
    """Return the SHA-256 of the files of weights, and of the large tensors in them."""
    files = {real((folder / name).read_bytes()).hexdigest() for name in WEIGHTS}
    tensors = [real(one.numpy().tobytes()).hexdigest() for name in WEIGHTS for one in _large(folder / name)]
    return files, {digest for digest, times in Counter(tensors).items() if times == 1}


def _large(path):
    """Return the tensors of a file that can be told apart by their digests."""
    return [tensor for tensor in load_file(path).values() if tensor.nbytes >= 256 and tensor.unique().numel() > 2]


def _rewrite(path, data):
    """Write other bytes of the same size into the same file, and set its time of content back."""
    before = path.stat()
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


# -- once ------------------------------------------------------------------------------------------------------------


def test_a_load_hashes_files_and_no_tensors(folder, hashed):
    files, tensors = _digests_of(folder)
    hashed.clear()
    ClamuModel.from_pretrained(folder)
    assert {hashed[digest] for digest in files} == {1}
    assert {hashed[digest] for digest in tensors} == {0}
    hashed.clear()
    ClamuModel.from_pretrained(folder, strict=True)
    assert {hashed[digest] for digest in files | tensors} == {1}


def test_a_second_load_in_a_process_reads_unchanged_files_no_more(tiny, folder, hashed):
    time.sleep(SETTLED)
    files, tensors = _digests_of(folder)
    ClamuModel.from_pretrained(folder)
    hashed.clear()
    model = ClamuModel.from_pretrained(folder)
    assert {hashed[digest] for digest in files | tensors} == {0}
    assert model.verify(data=tiny.tasks("text")).identical
    # Read to the last bit: as tensors, and as bytes of the saved model and of the rebuilt one.
    assert min(hashed[digest] for digest in files | tensors) >= 1


def test_what_was_just_written_is_read_again(folder, hashed):
    for name in WEIGHTS:
        (folder / name).write_bytes((folder / name).read_bytes())
    files, _ = _digests_of(folder)
    hashed.clear()
    for _ in range(2):
        ClamuModel.from_pretrained(folder)
    assert {hashed[digest] for digest in files} == {2}


def test_the_weights_are_those_of_a_load_that_hashes_everything(folder):
    found, expected = (ClamuModel.from_pretrained(folder, cluster=1, strict=strict) for strict in (False, True))
    weights = expected.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in found.state_dict().items())
    assert expected.merged.switch.base_digests == found.merged.switch.base_digests
    # They are what the weights of a copy are recognised by.
    moved = copy.deepcopy(found)
    moved.set_cluster(2)
    expected.set_cluster(2)
    assert all(torch.equal(weights[name], value) for name, value in moved.state_dict().items())


def test_a_base_model_elsewhere_is_hashed_once_in_a_process(tiny, folder, hashed, monkeypatch):
    monkeypatch.chdir(folder.parent)
    base = folder.parent / "org/base"
    base.parent.mkdir()
    tensors = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in _large(folder / WEIGHTS[0])]
    shutil.move(folder / "base_model", base)
    config, ledger = (json.loads((folder / name).read_bytes()) for name in ("config.json", "ledger.json"))
    config["base_model"] |= {"name_or_path": "org/base", "embedded": False}
    (folder / "config.json").write_bytes(canonical_json(config))
    for name in [name for name in ledger["files"] if name.startswith("base_model/")]:
        del ledger["files"][name]
    tiny.reseal(folder, files=ledger["files"])
    time.sleep(SETTLED)
    for strict, times in ((False, 1), (False, 0), (True, 1)):
        hashed.clear()
        assert ClamuModel.from_pretrained(folder, strict=strict).tasks
        assert {hashed[digest] for digest in tensors} == {times}
    data = (base / "model.safetensors").read_bytes()
    _rewrite(base / "model.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IncompatibleBaseError, match="its digest differs"):
        ClamuModel.from_pretrained(folder)
    _rewrite(base / "model.safetensors", data)
    assert ClamuModel.from_pretrained(folder).tasks


# -- whoever changes something ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WEIGHTS, "masks/cluster_000/adapter_model.safetensors", "tokenizer.json"])
def test_other_bytes_of_the_same_size_and_time_are_refused(folder, name):
    time.sleep(SETTLED)
    assert ClamuModel.from_pretrained(folder).tasks
    data = (folder / name).read_bytes()
    _rewrite(folder / name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointFormatError, match=f"{name.split('/')[-1]} has SHA-256"):
        ClamuModel.from_pretrained(folder)
    _rewrite(folder / name, data)
    assert ClamuModel.from_pretrained(folder).tasks


def test_another_file_at_the_same_place_is_refused(folder, tmp_path):
    time.sleep(SETTLED)
    assert ClamuModel.from_pretrained(folder).tasks
    path = folder / "delta.safetensors"
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    (tmp_path / "other").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(tmp_path / "other", ns=times)
    (tmp_path / "other").replace(path)
    with pytest.raises(CheckpointFormatError, match=r"delta\.safetensors has SHA-256"):
        ClamuModel.from_pretrained(folder)


def test_swapped_files_are_refused(folder):
    time.sleep(SETTLED)
    assert ClamuModel.from_pretrained(folder).tasks
    one, other = (folder / f"masks/cluster_00{number}/adapter_model.safetensors" for number in (0, 1))
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)
    with pytest.raises(CheckpointFormatError, match="has SHA-256"):
        ClamuModel.from_pretrained(folder)


def test_nothing_is_remembered_of_files_that_change_meanwhile(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    early = FileStamps.of([path])
    early.remember("content", b"one")
    assert early.recall("content") is None  # racy: the next write may have the same times
    time.sleep(SETTLED)
    stamps = FileStamps.of([path])
    path.write_bytes(b"two")
    stamps.remember("content", b"one")
    assert not stamps.hold()
    assert stamps.recall("content") is None
    time.sleep(SETTLED)
    stamps = FileStamps.of([path])
    stamps.remember("content", b"two")
    assert FileStamps.of([path]).recall("content") == b"two"
    assert FileStamps.of([path]).recall("length") is None
    path.unlink()
    assert not stamps.hold()


def test_a_changed_file_ends_the_block_that_uses_it(folder):
    path = folder / "base_model/model.safetensors"
    # Larger than what is hashed at once, so that it is hashed while the block works.
    save_file({**load_file(path), "spare": torch.zeros(300_000)}, path, metadata={"format": "pt"})
    listed = json.loads((folder / "ledger.json").read_bytes())
    listed["files"]["base_model/model.safetensors"]["size"] = path.stat().st_size
    content = {key: value for key, value in listed.items() if key != "digest"}
    (folder / "ledger.json").write_bytes(canonical_json(sealed(content)))
    worked = []
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors has SHA-256"), opened_checkpoint(folder):
        worked.append(True)
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors has SHA-256") as caught:
        with opened_checkpoint(folder):
            raise ValueError("what the changed file led to")
    assert isinstance(caught.value.__context__, ValueError)
    assert worked == [True]


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_the_ledger_says_which_files_hold_which_tensors(tiny, folder):
    ledger, config = (json.loads((folder / name).read_bytes()) for name in ("ledger.json", "config.json"))
    recorded = ledger["tensors"]
    digests = {name: entry["sha256"] for name, entry in ledger["files"].items()}
    sha256 = {
        what: hashlib.sha256(canonical_json(files)).hexdigest()
        for what, files in (
            ("delta", {"delta.safetensors": digests["delta.safetensors"]}),
            ("base_model", {name: digest for name, digest in digests.items() if name.startswith("base_model/")}),
        )
    }
    assert recorded["delta"] == {"digest": config["delta_digest"], "files": sha256["delta"]}
    assert recorded["base_model"]["files"] == sha256["base_model"]
    assert recorded["base_model"]["values"] == {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in load_file(folder / "base_model/model.safetensors").items()
    }


@pytest.mark.parametrize("entry", [None, [], {}, {"delta": 3, "base_model": []}, {"base_model": {"values": {"a": 1}}}])
def test_without_a_record_the_tensors_are_hashed(tiny, folder, hashed, entry):
    tiny.reseal(folder, tensors=entry)
    _, tensors = _digests_of(folder)
    hashed.clear()
    assert ClamuModel.from_pretrained(folder).tasks
    assert {hashed[digest] for digest in tensors} == {1}


def test_a_record_of_other_files_proves_nothing(tiny, folder):
    spare = shutil.copytree(folder, folder.with_name("spare"))
    path = folder / "base_model/model.safetensors"
    weights = load_file(path)
    weights["score.weight"][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    with pytest.raises(IncompatibleBaseError, match="its digest differs"):
        ClamuModel.from_pretrained(folder)
    path = spare / "delta.safetensors"
    steps = load_file(path)
    name = min(steps)
    steps[name] = steps[name].flip(0)
    save_file(steps, path, metadata={"format": "pt"})
    tiny.reseal(spare)
    with pytest.raises(CheckpointFormatError, match=r"is not the delta that config\.json names"):
        read_checkpoint(spare)


def test_records_that_were_made_to_fit_are_found_out_by_a_strict_load(tiny, folder):
    path = folder / "base_model/model.safetensors"
    weights = load_file(path)
    weights["score.weight"][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    ledger = json.loads((folder / "ledger.json").read_bytes())
    files = {name: entry["sha256"] for name, entry in ledger["files"].items() if name.startswith("base_model/")}
    ledger["tensors"]["base_model"]["files"] = hashlib.sha256(canonical_json(files)).hexdigest()
    tiny.reseal(folder, tensors=ledger["tensors"])
    with pytest.raises(IncompatibleBaseError, match="its digest differs"):
        ClamuModel.from_pretrained(folder, strict=True)
