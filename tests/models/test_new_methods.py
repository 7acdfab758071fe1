"""A localization and a clustering from outside the package: registered, they are built, forgotten and verified.

The two are those that CONTRIBUTING.md shows, and a third that keeps a mask per task.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.exact import pack_mask
from hf_clamu.merging import (
    CLUSTERINGS,
    LOCALIZATIONS,
    ClusteringMethod,
    LocalizationMethod,
    register_clustering,
    register_localization,
    require_no_data,
)

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
GONE = ["user_1", "user_3"]


class OwnLargest(LocalizationMethod):
    """Keeps the half of the weights that a task's own vector moves most; a cluster has those that all members keep."""

    name = "own_largest"
    summary = "the half that each member moves most"
    keeps_task_masks = True

    def task_mask(self, vector):
        return {name: pack_mask(n.abs() > n.abs().flatten().median()) for name, n in vector.steps.items()}

    def join(self, masks):
        whole = {name: bits.clone() for name, bits in masks[0].items()}
        for mask in masks[1:]:
            for name, bits in mask.items():
                whole[name] &= bits
        return whole


@pytest.fixture(scope="module")
def _methods():
    """The methods of the guide, as its readers register them."""
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("## A new localization or clustering") :].split("\n## ", 1)[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    before = {registry: set(registry) for registry in (LOCALIZATIONS, CLUSTERINGS)}
    exec(compile("\n".join(blocks), "CONTRIBUTING.md", "exec"), {"__name__": "__main__"})
    register_localization(OwnLargest())
    yield
    for registry, names in before.items():
        for name in set(registry) - names:
            registry.unregister(name)


@pytest.fixture
def saved(_methods, tiny, tmp_path):
    """Builds a model, with its tasks and settings, and saves it."""

    def build(name, tasks, **changes):
        tiny.train("text", tasks, **changes).save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


@pytest.mark.parametrize(
    ("localization", "clustering"),
    [
        ("largest", "by_distance"),
        ("clamu", "by_distance"),
        ("sift", "by_distance"),
        ("largest", "features"),
        ("own_largest", "by_distance"),
    ],
)
def test_methods_from_outside_keep_the_promise(tiny, saved, tmp_path, localization, clustering):
    changes = {"localization": localization, "clustering": clustering}
    tasks = tiny.tasks("text")
    folder, expected = saved("model", tasks, **changes), saved("expected", tasks.without(GONE), **changes)
    model = ClamuModel.from_pretrained(folder)
    assert (len(model.clusters), len(model.tasks)) == (3, 5)
    assert model.verify(data=tasks).identical
    for task_id in GONE:
        model.unmerge_task(task_id, data=tasks)
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected)
    model.add_task(tasks.select(GONE), data=tasks)
    model.save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(folder)


def test_a_kept_mask_spares_the_data_of_the_retained(tiny, saved, tmp_path):
    changes = {"localization": "own_largest", "clustering": "by_distance", "score_validation": False}
    tasks = tiny.tasks("text")
    folder, expected = saved("model", tasks, **changes), saved("expected", tasks.without(GONE), **changes)
    assert sorted(path.name for path in (folder / "task_masks").iterdir())[0] == "task_000.safetensors"
    model = ClamuModel.from_pretrained(folder).unmerge_task(GONE, data=tasks.select(GONE))
    model.save_pretrained(tmp_path / "ours")
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected)


@pytest.mark.usefixtures("_methods")
def test_what_a_method_declares_names_it_in_messages():
    require_no_data(ClamuArguments(localization="largest", clustering="by_distance"))
    with pytest.raises(RecipeError, match="or choose tall, emr, global, largest or own_largest"):
        require_no_data(ClamuArguments(clustering="by_distance"))
    with pytest.raises(
        RecipeError, match="or choose task_vectors, stable_kmeans, anchored, random, none or by_distance"
    ):
        require_no_data(ClamuArguments(localization="largest"))
    assert "largest (the tenth that the cluster moves most)" in ClamuArguments.describe()["localization"]


@pytest.mark.parametrize(
    ("registry", "changes"),
    [(LOCALIZATIONS, {"localization": "own_largest"}), (CLUSTERINGS, {"clustering": "by_distance"})],
    ids=["localization", "clustering"],
)
def test_a_process_that_lacks_the_method_says_so(saved, tiny, registry, changes):
    folder = saved("model", tiny.tasks("text"), score_validation=False, **changes)
    [(setting, name)] = changes.items()
    method = registry[name]
    registry.unregister(name)
    try:
        with pytest.raises(
            CheckpointFormatError, match=rf"{setting} must be one of .*, got '{name}'.*register_{setting}"
        ):
            ClamuModel.from_pretrained(folder)
    finally:
        registry.register(method)


def test_a_name_stands_for_one_method():
    class Again(OwnLargest):
        name = "clamu"

    class Odd(OwnLargest):
        name = "my-method"

    with pytest.raises(ValueError, match="A localization called 'clamu' is registered already"):
        register_localization(Again())
    with pytest.raises(ValueError, match="must be a word such as 'my_method', got 'my-method'"):
        register_localization(Odd())
    with pytest.raises(ValueError, match="No localization called 'clamu' was added"):
        LOCALIZATIONS.unregister("clamu")
    assert "my-method" not in LOCALIZATIONS


class _Masks(LocalizationMethod):
    name = "masks"


class _TaskMasks(LocalizationMethod):
    name = "masks"
    keeps_task_masks = True


class _Rows(ClusteringMethod):
    name = "rows"
    feature_source = "data"
    feature_dtype = torch.float32


class _Untyped(ClusteringMethod):
    name = "rows"
    feature_source = "task_vector"


@pytest.mark.parametrize(
    ("register", "method", "message"),
    [
        (register_localization, _Masks, "must implement mask"),
        (register_localization, _TaskMasks, "must implement task_mask"),
        (register_clustering, _Rows, "must implement data_feature"),
        (register_clustering, _Untyped, "feature_source and feature_dtype are declared together"),
    ],
)
def test_what_is_declared_must_be_implemented(register, method, message):
    with pytest.raises(ValueError, match=message):
        register(method())
    assert method.name not in LOCALIZATIONS
    assert method.name not in CLUSTERINGS
