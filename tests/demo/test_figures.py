"""What the table and the figures of the demo say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_clamu.cli.commands.demo import demo_text
from hf_clamu.demo import markdown_table, table_rows
from hf_clamu.demo.figures import draw_demo
from hf_clamu.demo.table import COLUMNS


@pytest.fixture(scope="module")
def result():
    """A result of three owners and two ways."""
    common = {
        "rows_of_others": 0,
        "others_moved": 0.0,
        "others_changed": 1 / 3,
        "worst_drop": 0.0,
        "cold_start_seconds": 0.002,
    }
    common |= {"before": {"a": 1.0, "b": 0.5, "c": 0.75}, "after": {"a": 0.9, "b": 0.6}, "num_requests": 1}
    joint = {"label": "one joint model", "needs_owner": False, "stored_bytes": 150_000, "request_seconds": 20.0}
    sift = {"label": "preset `per-task`", "needs_owner": True, "stored_bytes": 600_000, "request_seconds": 0.3}
    return {
        "num_tasks": 3,
        "num_clusters": 2,
        "num_parameters": 10,
        "accuracy": {"base": 0.4, "joint": 0.75, "sift": 0.8},
        "storage_bytes": {"joint": 150_000, "sift": 600_000},
        "approaches": {"joint": {**joint, **common, "rows_of_others": 26}, "sift": {**sift, **common}},
        "unmerged_tasks": ["c"],
        "retained_accuracy": {"before": 0.912, "after": 0.905},
        "growth": {name: {"owners": [2, 3], "seconds": [0.1, 0.2]} for name in ("joint", "sift")},
        "identical": True,
        "audit": {
            "verdict": "proven",
            "seconds": 0.5,
            "checks": [{"name": "difference", "text": "the vector that left"}],
        },
        "files_compared": 17,
        "seconds": {"total": 1.0},
        "figures": ["figures/storage.png"],
    }


def test_hundred_requests_cost_hundred_times_one(result):
    cells = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table_rows(result)}
    assert cells["base model, not trained"]["held-out accuracy"] == "40.0 %"
    assert (cells["one joint model"]["a request"], cells["one joint model"]["100 requests*"]) == ("20 s", "2000 s")
    assert cells["one joint model"]["others' rows"] == "26"
    assert cells["one joint model"]["to serve another owner"] == "nothing to do"
    per_task = cells["preset `per-task`"]
    assert (per_task["a request"], per_task["100 requests*"], per_task["stored"]) == ("0.30 s", "30 s", "0.60 MB")
    assert (per_task["others moved / changed"], per_task["to serve another owner"]) == ("0 / 0.3 of 2", "2.0 ms")


def test_a_page_may_show_some_of_the_columns(result):
    head, _, *rows, _, note = markdown_table(result, COLUMNS[:3]).splitlines()
    assert head == "| way to serve | owner known | held-out accuracy |"
    assert len(rows) == 3
    assert "extrapolated" in note


def test_the_text_says_how_well_the_others_are_served_after_the_forgetting(result):
    text = demo_text(Path("demo"), result)
    assert "Held-out accuracy of the other 2 tasks: 91.2 % before, 90.5 % after it." in text
    assert "Audit of the request of c, without any rows, 0.5 s: proven." in text
    assert "extrapolated" in text
    assert "`" not in text.split("Forgot")[0]


def test_figures_name_axes_and_ways(result, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.setdefault(path.name, figure.axes))
    assert draw_demo(tmp_path / "figures", result) == [f"figures/{name}" for name in drawn]
    assert [axes.get_title(loc="left") for axes in drawn["forgetting.png"]] == [
        "one joint model: 1 request",
        "preset per-task: 1 request",
    ]
    (requests,), (storage,) = drawn["requests.png"], drawn["storage.png"]
    assert requests.get_xlabel() == "owners"
    assert [list(line.get_xdata()) for line in requests.get_lines()] == [[2, 3], [2, 3]]
    labels = [text.get_text() for text in storage.get_legend().get_texts()]
    assert labels == ["one joint model", "preset per-task", "base model, not trained"]
