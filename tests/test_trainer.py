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


@pytest.mark.parametrize(
    ("description", "unit"),
    [("finetune", "task"), ("retrain", "task"), ("localize tall", "cluster"), ("evaluate", "cluster")],
)
def test_bars_name_what_they_count(description, unit):
    bar = progress_bars([0, 1], description)
    assert bar.unit == unit
    bar.close()


def test_bars_of_a_build_count_tasks_and_clusters(tiny):
    from hf_clamu import ClamuTrainer

    seen = []

    def progress(items, description):
        bar = progress_bars(items, description)
        seen.append((description, len(items), bar.unit))
        bar.close()
        return items

    options = {"processing_class": tiny.processor("text"), "progress": progress}
    ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(), **options).train()
    assert ("finetune", 5, "task") in seen
    assert ("localize clamu", 3, "cluster") in seen
