"""What a build shows while it runs."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hf_clamu.trainer import progress_bars


@pytest.fixture(autouse=True)
def _bars():
    """Turned on, whatever a test before has left."""
    were_off = are_progress_bars_disabled()
    enable_progress_bars()
    yield
    if were_off:
        disable_progress_bars()


def test_a_bar_counts_and_names_no_unit(capsys):
    """A user's own loop may go over anything."""
    assert list(progress_bars([4, 5], "localize my own")) == [4, 5]
    shown = capsys.readouterr().err
    assert "localize my own" in shown
    assert "0/2 [00:00<?]" in shown
    assert "/s" not in shown
    assert "task" not in shown


def test_a_build_says_what_it_does_to_how_many(tiny):
    from hf_clamu import ClamuTrainer

    seen = []

    def progress(items, description):
        seen.append((description, len(items)))
        return items

    options = {"processing_class": tiny.processor("text"), "progress": progress}
    ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(), **options).train()
    assert ("finetune", 5) in seen
    assert ("localize clamu", 3) in seen
