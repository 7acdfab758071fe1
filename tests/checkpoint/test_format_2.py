"""Models of format 2, whose integers are 32 bits wide: they keep that width, and all else is as today.

`format_2/` is what the last commit of format 2 wrote for the local models of `format_1`.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION

FOLDER = Path(__file__).parent / "format_2"
SETTINGS = ClamuArguments(clustering="none", localization="emr", learning_rate=5e-5, fraction_bits=28, integer_bits=32)


@pytest.fixture(scope="module")
def built(build_of):
    """Return a function that gives the folder of a build without some of the tasks."""
    return functools.partial(build_of, SETTINGS)


def test_it_keeps_the_width_of_its_integers(local):
    model = ClamuModel.from_pretrained(FOLDER)
    assert {steps.dtype for steps in model.merged.state.delta.values()} == {torch.int32}
    assert model.clamu_config.arguments["integer_bits"] == 32
    assert model.verify(checkpoints=local)


def test_saved_again_it_is_a_build_of_today(tiny, built, tmp_path):
    ClamuModel.from_pretrained(FOLDER).save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(built())
    assert json.loads((tmp_path / "again/ledger.json").read_bytes())["format_version"] == FORMAT_VERSION


def test_unmerged_in_place_it_is_a_build_without(tiny, local, built, tmp_path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "model"))
    ClamuModel.from_pretrained(folder).unmerge_task("task_2", checkpoints=local).save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(built("task_2"))


def test_narrow_integers_serve_the_same_weights(build_of):
    wide = ClamuModel.from_pretrained(FOLDER)
    # The local models are whole steps of 2**-9 away from the base model.
    settings = ClamuArguments(clustering="none", localization="emr", learning_rate=5e-5, fraction_bits=9)
    narrow = ClamuModel.from_pretrained(build_of(settings))
    assert {steps.dtype for steps in narrow.merged.state.delta.values()} == {torch.int8}
    for cluster in (None, 0, 1, 2, 3):
        found, expected = (model.set_cluster(cluster).state_dict() for model in (narrow, wide))
        assert all(torch.equal(found[name], weights) for name, weights in expected.items())
