"""What the desk says of a model: rows and drawings of real models and receipts, and the part in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_clamu import ClamuModel
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.desk.views.model_view import CHANGE_COLUMNS, CLUSTER_COLUMNS, draw_map, draw_scores, view_model


@pytest.fixture
def forgotten(saved_text, tiny, tmp_path):
    """A model after a request, and its receipts."""
    model = ClamuModel.from_pretrained(saved_text)
    model.unmerge_task("user_1", data=tiny.tasks("text"), receipt_dir=tmp_path / "receipts")
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def test_rows_say_what_the_files_hold(forgotten):
    view = view_model(str(forgotten / "model"), forgotten / "receipts")
    checkpoint = read_checkpoint(forgotten / "model")
    assert [row[0] for row in view.clusters] == list(checkpoint.state.cluster_names)
    assert [int(row[1]) for row in view.clusters] == [len(members) for members in checkpoint.state.clusters]
    assert {len(row) for row in view.clusters} == {len(CLUSTER_COLUMNS)}
    assert all(row[3].endswith(" %") for row in view.clusters)
    assert (view.facts["tasks"], view.facts["state"]) == ("4", checkpoint.state_digest)
    assert view.facts["base model"] == "GPT2ForSequenceClassification, inside the model"
    ((change,), (receipt,)) = view.changes, view.receipts
    assert len(change) == len(CHANGE_COLUMNS)
    assert change[2] == "5 to 4"
    effect = receipt["effect"]
    assert change[3:5] == (f"{effect['num_changed']} of 4", f"{effect['num_moved']} of 4")
    # Nobody is named, neither by these rows nor by what is drawn.
    assert "user_" not in json.dumps([view.facts, view.clusters, view.changes])


def test_a_map_has_each_task_once(forgotten):
    checkpoint = read_checkpoint(forgotten / "model")
    figure, text = draw_map(checkpoint)
    points = [len(drawn.get_offsets()) for drawn in figure.axes[0].collections]
    assert points == [len(members) for members in checkpoint.state.clusters]
    assert figure.axes[0].get_title(loc="left").startswith("4 tasks by their features")
    assert "two of them" in text


def test_a_chart_has_each_state_once(forgotten):
    view = view_model(str(forgotten / "model"), forgotten / "receipts")
    figure, _ = draw_scores(view.receipts)
    (own, *_) = figure.axes[0].lines
    mean = view.receipts[0]["effect"]["mean"]
    assert list(own.get_ydata()) == [100 * mean["before"], 100 * mean["after"]]
    assert draw_scores(view.receipts * 3)[0].axes[0].lines[0].get_xdata().tolist() == [0, 1]


def test_what_cannot_be_drawn_is_said(tiny, tmp_path):
    assert draw_scores([])[0] is None
    assert "No receipt has scores" in draw_scores([])[1]
    two = tiny.tasks("text").select(["user_0", "user_1"])
    tiny.train("text", two, localization="global", num_clusters=1).save_pretrained(tmp_path / "two")
    figure, text = draw_map(read_checkpoint(tmp_path / "two"))
    assert figure is None
    assert "this model has 2" in text or "stores no features" in text
    view = view_model(str(tmp_path / "two"), tmp_path / "receipts")
    assert (view.changes, view.clusters[0][-1]) == ([], "-")


@pytest.mark.browser
def test_the_part_in_a_browser(desk, visit, work: Path):
    page = visit(desk("model").url)
    page.page.get_by_role("tab", name="Model").click()
    page.page.wait_for_selector("#clusters .desk-table", timeout=60_000)
    page.page.wait_for_selector("#map img", timeout=60_000)
    assert "120" in page.text("#model-facts")
    assert page.page.locator("#clusters tbody tr").count() == 3
    assert "No request yet" in page.text("#changes")
    assert page.page.locator("#scores img").count() == 0
    assert page.errors == []
