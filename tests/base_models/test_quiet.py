"""What we have transformers load and save makes no noise, and what others have it do still does."""

from __future__ import annotations

import logging

import pytest
import transformers
from transformers.utils import logging as theirs

from hf_clamu import ClamuModel
from hf_clamu.base_models.library_calls import suppress_load_report


@pytest.fixture
def bars():
    """Bars on, as outside of tests and commands."""
    had = theirs.is_progress_bar_enabled()
    theirs.enable_progress_bar()
    yield
    if not had:
        theirs.disable_progress_bar()


def test_building_saving_and_loading_are_silent(tiny, tmp_path, bars, capfd):
    # A base without a head, of which transformers would report that one is missing.
    settings = {key: value for key, value in tiny.config("text").items() if key != "model_type"}
    config = transformers.GPT2Config(**settings)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "base")
    capfd.readouterr()
    model = tiny.train("text", base=str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "model")
    ClamuModel.from_pretrained(tmp_path / "model").export(tmp_path / "plain")
    err = capfd.readouterr().err
    for noise in ("LOAD REPORT", "Writing model shards", "Loading weights"):
        assert noise not in err
    # Theirs is as loud as it was.
    transformers.GPT2Model.from_pretrained(tmp_path / "plain")
    assert "Loading weights" in capfd.readouterr().err


def test_settings_come_back(bars):
    logger = logging.getLogger("transformers.modeling_utils")
    before = list(logger.filters)
    with suppress_load_report():
        assert not theirs.is_progress_bar_enabled()
    assert theirs.is_progress_bar_enabled()
    assert logger.filters == before
