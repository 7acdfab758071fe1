"""Models that a release of format 1 saved: they load, serve, forget and verify, and are written in today's format."""

from __future__ import annotations

import functools
import json

import format_1
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuModel
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
from hf_clamu.exact import canonical_json, digest_tensors


@pytest.fixture(scope="module")
def built(build_of):
    """Return a function that gives the folder of a build without some of the tasks."""
    return functools.partial(build_of, format_1.SETTINGS)


def test_a_build_of_today_in_format_1_is_the_old_files(tiny, built):
    """So `to_format_1` writes what the old release wrote."""
    folder = format_1.to_format_1(tiny, built())
    expected, found = tiny.digests(format_1.FOLDER), tiny.digests(folder)
    assert len(expected) == 14
    assert expected.pop("README.md")
    assert found.pop("README.md")
    assert found == expected


def test_it_loads_and_serves_the_same(built):
    old, new = ClamuModel.from_pretrained(format_1.FOLDER), ClamuModel.from_pretrained(built())
    assert old.tasks == new.tasks == format_1.TASKS
    pixels = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4)
    seen = []
    with torch.no_grad():
        for cluster in (None, 0, 1, 2, 3):
            seen.append(old.set_cluster(cluster)(pixel_values=pixels).logits)
            assert torch.equal(seen[-1], new.set_cluster(cluster)(pixel_values=pixels).logits)
    assert not torch.equal(seen[0], seen[1])
    assert old.clamu_config.to_file_dict() == new.clamu_config.to_file_dict()


def test_saved_again_it_is_a_build_of_today(tiny, built, tmp_path):
    ClamuModel.from_pretrained(format_1.FOLDER).save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(built())
    assert json.loads((tmp_path / "again/ledger.json").read_bytes())["format_version"] == FORMAT_VERSION


def test_unmerged_in_place_it_is_a_build_without(tiny, local, built, tmp_path):
    folder = format_1.copy(tmp_path / "model")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    model = ClamuModel.from_pretrained(folder)
    model.unmerge_task("task_2", checkpoints=local).save_pretrained(folder)
    assert not (folder / "model.safetensors").exists()
    (folder / "notes.txt").unlink()
    assert tiny.digests(folder) == tiny.digests(built("task_2"))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_trained_one_forgets_by_training_again(tiny, kind, tmp_path):
    tiny.train(kind, **format_1.BEHAVIOUR).save_pretrained(tmp_path / "model")
    folder = format_1.to_format_1(tiny, tmp_path / "model")
    model = ClamuModel.from_pretrained(folder)
    gone = model.tasks[1]
    model.unmerge_task(gone, data=tiny.tasks(kind)).save_pretrained(folder)
    without = tiny.train(kind, tiny.tasks(kind).without([gone]), **format_1.BEHAVIOUR)
    without.save_pretrained(tmp_path / "without")
    assert tiny.digests(folder) == tiny.digests(tmp_path / "without")


def test_it_is_verified_by_what_it_holds(tiny, local, tmp_path):
    folder = format_1.copy(tmp_path / "model")
    assert ClamuModel.from_pretrained(folder).verify(checkpoints=local)
    delta = load_file(folder / "model.safetensors")
    delta["classifier.bias"][0] += 1
    save_file(delta, folder / "model.safetensors", metadata={"format": "pt"})
    for path in (folder / "config.json", *folder.glob("masks/*/adapter_config.json")):
        values = json.loads(path.read_bytes())
        path.write_bytes(canonical_json({**values, "delta_digest": digest_tensors(delta)}))
    tiny.reseal(folder)
    report = ClamuModel.from_pretrained(folder).verify(checkpoints=local)
    assert not report
    assert {"delta.safetensors", "config.json", "ledger.json"} <= set(report.differences)


def test_old_and_new_files_do_not_mix(tiny, tmp_path):
    folder = format_1.copy(tmp_path / "model")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(canonical_json({**config, "format_version": 3}))
    tiny.reseal(folder)
    with pytest.raises(CheckpointFormatError, match=r"config\.json has format version 3, ledger\.json 1"):
        ClamuModel.from_pretrained(folder)


def test_an_old_delta_beside_a_new_one_is_refused(built):
    """A copy of the new files over the old ones would keep what was forgotten."""
    folder = built("task_2")
    (folder / "model.safetensors").write_bytes((format_1.FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors is no part of this model"):
        ClamuModel.from_pretrained(folder)
