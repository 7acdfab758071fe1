"""What the figures of the demo say."""

from __future__ import annotations

from hf_clamu.evaluation.figures import draw_demo


def test_both_axes_of_the_clusters_name_themselves(tiny, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.setdefault(path.name, figure.axes[0]))
    sizes = {"accuracy": {"base": 0.1, "clamu": 0.5}, "storage_bytes": {"base": 4, "clamu": 9}}
    result = {**sizes, "num_parameters": 1, "num_tasks": 5, "num_clusters": 3}
    draw_demo(tmp_path / "figures", result, tiny.train("text"))
    axes = drawn["clusters.png"]
    assert axes.get_xlabel().startswith("first principal component")
    assert axes.get_ylabel() == "second principal component"


def test_methods_are_labelled_and_ordered(tiny, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.setdefault(path.name, figure.axes[0]))
    names = ("clamu", "local", "mine", "tall", "base", "global")
    result = {"accuracy": dict.fromkeys(names, 0.5), "storage_bytes": dict.fromkeys(names, 4)}
    result |= {"num_parameters": 1, "num_tasks": 5, "num_clusters": 3}
    draw_demo(tmp_path / "figures", result, tiny.train("text"))
    labels = [label.get_text() for label in drawn["accuracy.png"].get_xticklabels()]
    assert labels == ["base", "global", "TALL", "ClAMU", "mine", "local"]
