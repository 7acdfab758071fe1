"""What operations need, for every localization, clustering and scaling: a table beside what the methods declare."""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hf_clamu
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.merging import (
    CLUSTERINGS,
    LOCALIZATIONS,
    ClamuArguments,
    MergedState,
    TaskRecord,
    depends_on_environment,
    depends_on_threads,
    derivation_depends_on_environment,
    deriving_reads_data,
    require_no_data,
)
from hf_clamu.merging.addition import early_clusters
from hf_clamu.merging.requirements import require_recoverable

# Whether: it is derived from data; it must have data; other environments may differ with data, and without; vectors
# of the retained are needed; tasks are finetuned under fixed signs.
BY_LOCALIZATION = {
    "clamu": (True, True, True, True, False, False),
    "sift": (False, False, False, False, False, True),
    "tall": (True, False, True, False, True, False),
    "emr": (True, False, False, False, True, False),
    "global": (False, False, False, False, False, False),
}
# Whether it must have data; other environments may differ; clusters are known before finetuning. And how many clusters
# three at most are of five tasks of two groups.
BY_CLUSTERING = {
    "features": (True, True, True, 3),
    "task_vectors": (False, True, False, 3),
    "stable_kmeans": (False, False, False, 3),
    "anchored": (False, False, False, 3),
    "public_rows": (True, True, True, 3),
    "random": (False, False, True, 3),
    "column": (True, False, True, 2),
    "none": (False, False, True, 5),
}
SPACE = list(itertools.product(BY_LOCALIZATION, BY_CLUSTERING, (4.0, "sum", "auto")))
KEYS = {f"task_{number}": "xy"[number % 2] for number in range(5)}


def _records(keys, *, data=True, validation=False, elsewhere=False):
    return {
        task_id: TaskRecord(
            vector_digest="",
            data_digest="" if data else None,
            num_train=1,
            num_validation=int(validation),
            bounds={},
            cluster_key=key,
            from_checkpoint=elsewhere,
        )
        for task_id, key in keys.items()
    }


def _state(records):
    return MergedState(
        delta={}, records=records, task_features=None, clusters=(), alpha=0.0, global_alpha=0.0, masks=()
    )


def test_the_table_has_all_methods():
    assert list(BY_LOCALIZATION) == list(LOCALIZATIONS)
    assert list(BY_CLUSTERING) == list(CLUSTERINGS)


@pytest.mark.parametrize(("localization", "clustering", "scaling"), SPACE)
def test_requirements_are_those_of_the_table(localization, clustering, scaling):
    arguments = ClamuArguments(localization=localization, clustering=clustering, scaling=scaling, num_clusters=3)
    reads, needs, differs_with, differs_without, vectors, signs = BY_LOCALIZATION[localization]
    needs_too, differs_too, is_early, count = BY_CLUSTERING[clustering]
    is_auto = scaling == "auto"
    assert arguments.has_fixed_signs == signs
    if needs or needs_too or is_auto:
        with pytest.raises(RecipeError, match="looks at the tasks' data"):
            require_no_data(arguments)
    else:
        require_no_data(arguments)
    for validation in (False, True):
        records = _records(KEYS, validation=validation)
        assert deriving_reads_data(_state(records), arguments) == (reads or is_auto or validation)
        assert deriving_reads_data(_state(records), arguments, more_validation=True)
        assert depends_on_environment(records, arguments), "tasks were finetuned here"
        differs = differs_with or differs_too or is_auto or validation
        assert derivation_depends_on_environment(records, arguments) == differs
    for data, differs in ((True, differs_with), (False, differs_without)):
        records = _records(KEYS, data=data, elsewhere=True)
        assert depends_on_environment(records, arguments) == (data or differs or differs_too or is_auto)
        without = replace(arguments, keep_features=False)  # which the base model makes of the data
        assert depends_on_environment(records, without) == (differs or differs_too or is_auto)
    assert arguments.clustering_method.num_clusters(3, len(KEYS), KEYS.values()) == count
    trainer = SimpleNamespace(tasks=SimpleNamespace(cluster_key=KEYS.__getitem__))
    rows = dict(zip(KEYS, torch.eye(5), strict=True)) if clustering in ("features", "public_rows") else {}
    assert (early_clusters(tuple(KEYS), rows, trainer, arguments) is not None) == (vectors and is_early)


@pytest.mark.parametrize(("localization", "clustering"), list(itertools.product(BY_LOCALIZATION, BY_CLUSTERING)))
def test_each_task_alone_or_all_together_need_no_affinities(localization, clustering):
    differs = BY_LOCALIZATION[localization][2]
    for num_clusters, keys in ((1, dict.fromkeys(KEYS, "x")), (5, KEYS), (3, {"task_0": "x"}), (3, {})):
        arguments = ClamuArguments(localization=localization, clustering=clustering, num_clusters=num_clusters)
        assert derivation_depends_on_environment(_records(keys), arguments) == differs


@pytest.mark.parametrize(("localization", "clustering"), list(itertools.product(BY_LOCALIZATION, BY_CLUSTERING)))
def test_local_models_are_read_again_where_vectors_are_needed(localization, clustering):
    arguments = ClamuArguments(localization=localization, clustering=clustering, num_clusters=3)
    needs = BY_LOCALIZATION[localization][4]
    records = _records(KEYS, data=False, elsewhere=True)
    retained = {task_id: key for task_id, key in KEYS.items() if task_id != "task_0"}
    one_left = {"task_1": "x"}
    for given, leaving, after, is_missing in (
        ((), (), retained, needs),
        ((), ("task_0",), retained, True),
        (("task_0",), ("task_0",), retained, needs),
        (("task_0",), ("task_0",), one_left, False),
        (tuple(KEYS), ("task_0",), retained, False),
    ):
        trainer = SimpleNamespace(archive=None, is_local=set(given).__contains__)
        if is_missing:
            with pytest.raises(TaskDataError, match="which have to be read again"):
                require_recoverable(trainer, arguments, records, leaving, after)
        else:
            require_recoverable(trainer, arguments, records, leaving, after)
        asked = []
        trainer.archive = SimpleNamespace(require=lambda task_id, digest, asked=asked: asked.append(task_id))
        require_recoverable(trainer, arguments, records, leaving, after)
        assert bool(asked) == is_missing
        assert set(asked).isdisjoint(given)


@pytest.mark.parametrize(("localization", "clustering"), list(itertools.product(BY_LOCALIZATION, BY_CLUSTERING)))
def test_threads_show_where_something_is_computed(localization, clustering):
    arguments = ClamuArguments(localization=localization, clustering=clustering)
    differs = BY_LOCALIZATION[localization][3] or BY_CLUSTERING[clustering][1]
    assert depends_on_threads(SimpleNamespace(has_rows=True), arguments)
    assert depends_on_threads(SimpleNamespace(has_rows=False), arguments) == differs


def test_nothing_is_decided_by_the_name_of_a_method():
    """What a method declares decides, so that those from outside the package are served as well."""
    names = {*LOCALIZATIONS, *CLUSTERINGS}
    for path in Path(hf_clamu.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                compared = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & names
                asks_a_setting = "localization" in ast.unparse(node) or "clustering" in ast.unparse(node)
                assert not (compared and asks_a_setting), f"{path}, line {node.lineno}: {ast.unparse(node)}"
