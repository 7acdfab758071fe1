"""Models of format 3, whose ledgers' digests rest on no tree, and which keep no linear digests.

`format_3/` is what the last commit of format 3 wrote for the local models of `format_1`.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.checkpoint.configuration_clamu import FORMAT_VERSION
from hf_clamu.checkpoint.ledger import read_ledger
from hf_clamu.checkpoint.membership.proof import check_membership, prove_membership
from hf_clamu.errors import CheckpointFormatError

FOLDER = Path(__file__).parent / "format_3"
SETTINGS = ClamuArguments(
    clustering="none", localization="emr", learning_rate=5e-5, fraction_bits=9, linear_digest=False
)


@pytest.fixture(scope="module")
def built(build_of):
    """Return a function that gives the folder of a build without some of the tasks."""
    return functools.partial(build_of, SETTINGS)


def test_it_keeps_no_linear_digests(local):
    model = ClamuModel.from_pretrained(FOLDER)
    assert model.clamu_config.arguments["linear_digest"] is False
    assert model.verify(checkpoints=local)


def test_saved_again_it_is_a_build_of_today(tiny, built, tmp_path):
    ClamuModel.from_pretrained(FOLDER).save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(built())
    assert json.loads((tmp_path / "again/ledger.json").read_bytes())["format_version"] == FORMAT_VERSION


def test_unmerged_in_place_it_is_a_build_without(tiny, local, built, tmp_path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "model"))
    ClamuModel.from_pretrained(folder).unmerge_task("task_2", checkpoints=local).save_pretrained(folder)
    assert tiny.digests(folder) == tiny.digests(built("task_2"))


def test_a_proof_needs_the_tree(tmp_path):
    with pytest.raises(CheckpointFormatError, match="format 3, and a proof for one task needs format 4"):
        prove_membership(read_ledger(FOLDER), "task_1", keyed=False)
    ClamuModel.from_pretrained(FOLDER).save_pretrained(tmp_path / "again")
    assert check_membership(prove_membership(read_ledger(tmp_path / "again"), "task_1", keyed=False))
