"""Models of formats 2 and 3: what they lack they go on lacking, and all else is as today.

Those of format 2 have integers of 32 bits. Those of format 3 have ledgers whose digests rest on no tree, and both keep
no linear digests. `format_2/` and `format_3/` are what the last commits of these formats wrote for the local models of
`format_1`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
from hf_clamu.checkpoint.ledger import read_ledger
from hf_clamu.checkpoint.membership.proof import check_membership, prove_membership
from hf_clamu.errors import CheckpointFormatError

FOLDERS = {number: Path(__file__).parent / f"format_{number}" for number in (2, 3)}
SETTINGS = {"clustering": "none", "localization": "emr", "learning_rate": 5e-5}
OF_FORMAT = {2: {"fraction_bits": 28, "integer_bits": 32}, 3: {"fraction_bits": 9, "linear_digest": False}}

both = pytest.mark.parametrize("number", FOLDERS)


@pytest.fixture(scope="module")
def built(build_of):
    """Return a function that gives the folder of a build as in a format, without some of the tasks."""
    return lambda number, *gone: build_of(ClamuArguments(**SETTINGS, **OF_FORMAT[number]), *gone)


@both
def test_it_keeps_its_settings(local, number):
    model = ClamuModel.from_pretrained(FOLDERS[number])
    assert {key: model.clamu_config.arguments[key] for key in OF_FORMAT[number]} == OF_FORMAT[number]
    assert model.verify(checkpoints=local)


@both
def test_saved_again_it_is_a_build_of_today(tiny, built, tmp_path, number):
    ClamuModel.from_pretrained(FOLDERS[number]).save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(built(number))
    assert json.loads((tmp_path / "again/ledger.json").read_bytes())["format_version"] == FORMAT_VERSION


@both
def test_unmerged_in_place_it_is_a_build_without(tiny, local, built, tmp_path, number):
    folder = Path(shutil.copytree(FOLDERS[number], tmp_path / "model"))
    ClamuModel.from_pretrained(folder).unmerge_task("task_2", checkpoints=local).save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(built(number, "task_2"))


def test_narrow_integers_serve_the_same_weights_as_the_wide_ones_of_format_2(build_of):
    wide = ClamuModel.from_pretrained(FOLDERS[2])
    assert {steps.dtype for steps in wide.merged.state.delta.values()} == {torch.int32}
    # The local models are whole steps of 2**-9 away from the base model.
    narrow = ClamuModel.from_pretrained(build_of(ClamuArguments(**SETTINGS, fraction_bits=9)))
    assert {steps.dtype for steps in narrow.merged.state.delta.values()} == {torch.int8}
    for cluster in (None, 0, 1, 2, 3):
        found, expected = (model.set_cluster(cluster).state_dict() for model in (narrow, wide))
        assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_a_proof_needs_the_tree_that_format_3_lacks(tmp_path):
    with pytest.raises(CheckpointFormatError, match="format 3, and a proof for one task needs format 4"):
        prove_membership(read_ledger(FOLDERS[3]), "task_1", keyed=False)
    ClamuModel.from_pretrained(FOLDERS[3]).save_pretrained(tmp_path / "again")
    assert check_membership(prove_membership(read_ledger(tmp_path / "again"), "task_1", keyed=False))
